"""Masks and pictures in the forms that the host's nodes give them, as ViCo's nodes work on them."""

import torch
import torch.nn.functional as F
from torch import Tensor

STAND_IN = (64, 64)  # LoadImage's mask of a picture that has no alpha: black, of this size
HALF = 0.5


def as_masks(mask: Tensor | None, name: str) -> Tensor | None:
    """[H, W], [B, H, W], [B, 1, H, W] of any type -> [B, H, W] float32 on the CPU. ValueError for one of no pixels."""
    if mask is None:
        return None
    if mask.ndim < 2 or mask.numel() == 0:
        raise ValueError(f"Look at the node that made the {name}.\nIt has no pixels: its shape is {list(mask.shape)}.")
    masks = mask.detach().reshape(-1, *mask.shape[-2:]).float().cpu()
    if not torch.isfinite(masks).all():
        raise ValueError(f"Look at the node that made the {name}.\nIt holds NaN or infinity.")
    return masks


def as_images(image: Tensor, name: str) -> Tensor:
    """[H, W, C] or [B, H, W, C] of any type, with one, three or four channels -> [B, H, W, 3] float32 on the CPU."""
    if image.ndim not in (3, 4) or image.numel() == 0 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"Connect a picture of one, three or four channels.\nThe {name} has the shape {list(image.shape)}."
        )
    images = image.detach().reshape(-1, *image.shape[-3:])[..., :3].float().cpu()
    return images.expand(*images.shape[:-1], 3)


def is_stand_in(mask: Tensor) -> bool:
    """Whether it is what LoadImage gives for a picture without alpha. mask: [B, H, W]."""
    return mask.shape[-2:] == STAND_IN and not mask.any()


def resized(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, h, w] -> [B, *size], each the mean of what it covers; where that leaves nothing of half or more, what it touches.

    So a line thinner than a token still counts.
    """
    means = F.interpolate(masks[:, None], size=size, mode="area")[:, 0]
    thin = (means < HALF).flatten(1).all(1) & (masks >= HALF).flatten(1).any(1)
    return torch.where(thin[:, None, None], F.adaptive_max_pool2d(masks[:, None], size)[:, 0], means)


def tile_of(whole: Tensor, tile: Tensor) -> tuple[int, int, int] | None:
    """(row, top, left) where a tile [C, h, w] was cut out of a batch [B, C, H, W], told by its numbers."""
    height, width = tile.shape[-2:]
    for row, top, left in (whole[:, 0] == tile[0, 0, 0]).nonzero().tolist():
        if torch.equal(whole[row, :, top : top + height, left : left + width], tile):
            return row, top, left
    return None
