"""What image attention takes for the object in the reference: one step of sampling, and its masks over the photos."""

from collections.abc import Iterator

import comfy.samplers
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .attach import ApplySettings, attach, make_subject
from .capture import Capture
from .photos import Photo
from .trigger import with_trigger

DARK = 0.25  # brightness of what is left out


def capture_masks(model, clip, concept, reference, settings: ApplySettings, prompt, percent) -> list[Capture]:
    """Runs one step at the given moment of the sampling and returns every photo's Capture."""
    subject = make_subject(model, clip, concept, reference, settings)
    captured = []
    subject.on_masks = captured.extend
    clip, model = with_trigger(clip, subject.trigger), attach(model, subject)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    sigma = model.get_model_object("model_sampling").percent_to_sigma(max(percent, 1e-3))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning, conditioning)
    own = model.model.latent_format.latent_channels  # an inpainting or pix2pix model reads more than it draws
    latent = torch.zeros_like(subject.latents[0][:, :own])
    euler, one_step = comfy.samplers.sampler_object("euler"), torch.tensor([float(sigma), 0.0])
    guider.sample(latent, latent, euler, one_step, disable_pbar=True, seed=0)
    return captured


def masks_on_photo(capture: Capture, photo: Photo, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each place, coarse to fine: (the photo with what is left out dark [H, W, 3], the mask [H, W]), scaled to `size`."""
    for name, grid in capture.grids.items():
        seen = on_photo(capture.masks[name][0], grid, photo.image)
        shown = photo.image * (DARK + (1 - DARK) * seen[..., None])
        yield scaled(shown, size), scaled(seen[..., None], size)[..., 0]


def on_photo(mask: Tensor, grid: tuple[int, int], image: Tensor) -> Tensor:
    """bool [M] on the place's grid to [H, W] in 0..1 over the photo, patches as squares."""
    squares = rearrange(mask.float(), "(h w) -> 1 1 h w", h=grid[0])
    return F.interpolate(squares, size=image.shape[:2], mode="nearest")[0, 0].cpu()


def scaled(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[h, w, C] to [*size, C], so that photos of several sizes make one batch."""
    planes = F.interpolate(rearrange(image, "h w c -> 1 c h w"), size=size, mode="nearest")
    return rearrange(planes, "1 c h w -> h w c")
