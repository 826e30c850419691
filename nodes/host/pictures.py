"""IMAGE, the host's batch [B, H, W, 3] in 0..1, from and to Pillow."""

from collections.abc import Iterable

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor


def to_image(*pictures: Image.Image) -> Tensor:
    """Pictures of one size as IMAGE: [B, H, W, 3]."""
    pixels = [np.asarray(picture.convert("RGB"), dtype=np.float32) / 255 for picture in pictures]
    return torch.from_numpy(np.stack(pixels))


def to_pictures(image: Iterable[Tensor]) -> list[Image.Image]:
    """IMAGE [B, H, W, 3 or 4] as the pictures that Save Image would write, its rounding included, without transparency."""
    return [Image.fromarray(np.clip(255.0 * p[..., :3].cpu().numpy(), 0, 255).astype(np.uint8)) for p in image]


def strip(image: Tensor) -> Tensor:
    """A batch side by side: [B, H, W, 3] to [1, H, B·W, 3]."""
    return rearrange(image, "b h w c -> 1 h (b w) c")
