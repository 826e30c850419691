"""The photos that Train ViCo learns from: checked, made square, encoded once."""

import io
from dataclasses import dataclass

import comfy.ldm.models.autoencoder
import torch
from PIL import Image
from torch import Tensor

from ...train_core import weights_hash
from ...vico_core.photos import resize
from ...vico_core.training import Photos
from ..host.copies import as_a_node
from ..host.pictures import to_pictures
from .masks import as_images, as_masks, is_stand_in
from .photos import SMALLEST_SIDE, with_axes_of

THUMBNAIL = 256  # pixels


@dataclass(frozen=True)
class Picture:
    """image [H, W, 3] in 0..1; mask [H, W] in 0..1, or None."""

    image: Tensor
    mask: Tensor | None = None


def flatten_pictures(photos: list, masks: list | None) -> list[Picture]:
    """Batches of any sizes and their masks, in the host's forms, as single pictures. ValueError for what cannot be learnt from."""
    images = [image for batch in photos for image in as_images(batch, "batch of photos")]
    given = [as_masks(batch, "masks") for batch in masks or []]
    areas = [mask for batch in given for mask in batch]
    if all(map(is_stand_in, given)):
        areas = [None] * len(images)
    if len(areas) != len(images):
        raise ValueError(
            f"Connect one mask a photo, or none at all.\nThere are {len(images)} photos and {len(areas)} masks."
        )
    for number, (image, mask) in enumerate(zip(images, areas, strict=True), start=1):
        check_photo(number, image, mask)
    return [Picture(image.clone(), mask) for image, mask in zip(images, areas, strict=True)]


def check_photo(number: int, image: torch.Tensor, mask: torch.Tensor | None) -> None:
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"Use photos of {SMALLEST_SIDE} pixels or more a side.\nPhoto {number} is {width}×{height} pixels: too small to learn from."
        )
    if not torch.isfinite(image).all():
        raise ValueError(f"Look at the node that made photo {number}.\nIt holds NaN or infinity.")
    if mask is not None and not mask.max() > 0:
        raise ValueError(f"Paint the object white, or connect no masks.\nThe mask of photo {number} is empty.")


def encode_photos(vae, model, pictures: list[Picture], size: int) -> Photos:
    """Every photo through the VAE once: size × size, bicubic, no crop, as the authors train (ViCo §4)."""
    square = [resize(p.image, size, size, Image.Resampling.BICUBIC) for p in pictures]
    posteriors = [
        tuple(part if part is None else with_axes_of(model, part) for part in posterior(vae, image[None]))
        for image in square
    ]
    scale = model.model.process_latent_in
    means = torch.cat([scale(mean).float().cpu() for mean, _ in posteriors])
    stds = None
    if all(std is not None for _, std in posteriors):
        stds = torch.cat([(scale(mean + std) - scale(mean)).float().cpu() for mean, std in posteriors])
    masks = None
    if all(p.mask is not None for p in pictures):
        masks = torch.stack([square_mask(p.mask, size) for p in pictures])
    return Photos(means, stds, masks)


def posterior(vae, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """(mean, std) of the VAE's latent of pixels [1, H, W, 3]; std None where it answers with a latent and no distribution."""
    regularization = getattr(vae.first_stage_model, "regularization", None)
    if not isinstance(regularization, comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer):
        return as_a_node(vae.encode, pixels), None
    moments = []
    hook = regularization.register_forward_hook(lambda module, args, out: moments.append(args[0]))
    try:
        mean = as_a_node(vae.encode, pixels)
    finally:
        hook.remove()
    log_variance = moments[-1].chunk(2, dim=1)[1].to(mean)
    whole = len(moments) == 1  # short of memory, the host encodes in tiles, and has no one distribution
    return mean, (0.5 * log_variance.clamp(-30, 20)).exp() if whole else None


def square_mask(mask: Tensor, size: int) -> Tensor:
    return torch.nn.functional.interpolate(mask[None, None].float(), size=(size, size), mode="area")[0, 0].cpu()


def pictures_hash(pictures: list[Picture]) -> str:
    tensors = {f"{i}.image": p.image for i, p in enumerate(pictures)}
    tensors |= {f"{i}.mask": p.mask for i, p in enumerate(pictures) if p.mask is not None}
    return weights_hash(tensors)


def thumbnail(picture: Picture) -> bytes:
    """PNG bytes of a photo, for the concept's file."""
    (image,) = to_pictures([picture.image])
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()
