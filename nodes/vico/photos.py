"""The photos of VICO_REFERENCE: checked, scaled, encoded."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...vico_core import FeatureBank
from ...vico_core.photos import resize, size_of_area
from .masks import as_masks, is_stand_in

if TYPE_CHECKING:
    from .grid import Drawn

SMALLEST_SIDE = 32  # pixels of a reference picture


@dataclass
class Photo:
    """latent [1, C, h, w] as the VAE gives it; image [H, W, 3] in 0..1; mask [H, W] in 0..1, or None."""

    latent: Tensor
    image: Tensor
    mask: Tensor | None = None


@dataclass
class Reference:
    """What VICO_REFERENCE carries: photos of one object, and the features that its pictures share."""

    photos: list[Photo]
    bank: FeatureBank = field(default_factory=FeatureBank)
    drawn: "Drawn | None" = None  # Checkpoint Grid's last rows


def reference_masks(mask: Tensor | None, invert: bool) -> Tensor | None:
    """The masks of a reference's pictures [B, H, W], white where the object is; none where LoadImage had none to give."""
    masks = as_masks(mask, "reference's mask")
    if masks is None or is_stand_in(masks):
        return None
    return 1 - masks if invert else masks


def check_reference(image, mask) -> None:
    height, width = image.shape[1:3]
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"Use a picture of {SMALLEST_SIDE} pixels or more a side.\nThe reference picture is {width}×{height} pixels: too small to show an object."
        )
    if not torch.isfinite(image).all():
        raise ValueError("Look at the node that made the reference picture.\nIt holds NaN or infinity.")
    if mask is not None and not (mask.flatten(1).amax(1) > 0).all():
        raise ValueError("Paint the object white, or connect no mask.\nThe reference's mask is empty.")


def mask_of(mask, i: int):
    return None if mask is None else mask[min(i, mask.shape[0] - 1)]


def encode_photo(vae, picture, mask, size: int) -> Photo:
    width, height = size_of_area(picture.shape[1], picture.shape[0], size)
    picture = resize(picture, width, height)
    return Photo(vae.encode(picture[None]), picture, mask)


def with_axes_of(model, latent: Tensor) -> Tensor:
    """The VAE's latent as the model takes it: [1, C, h, w], or [1, C, 1, h, w] where the model has frames."""
    if model.model.latent_format.latent_dimensions == 3:
        return latent if latent.ndim == 5 else latent.unsqueeze(2)
    return latent if latent.ndim == 4 else latent[:, :, 0]
