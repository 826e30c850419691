"""IMAGE, the host's batch [B, H, W, 3] in 0..1, from and to Pillow."""

from collections.abc import Iterable

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

ROW = 4  # pictures beside each other in a strip
SHEET_PICTURES = 24  # that a sheet on a node shows at most, of a data set of any size


def to_image(*pictures: Image.Image) -> Tensor:
    """Pictures of one size as IMAGE: [B, H, W, 3]."""
    pixels = [np.asarray(picture.convert("RGB"), dtype=np.float32) / 255 for picture in pictures]
    return torch.from_numpy(np.stack(pixels))


def to_pictures(image: Iterable[Tensor]) -> list[Image.Image]:
    """IMAGE [B, H, W, 3 or 4] as the pictures that Save Image would write, its rounding included, without transparency."""
    return [Image.fromarray(np.clip(255.0 * p[..., :3].cpu().numpy(), 0, 255).astype(np.uint8)) for p in image]


def strip(image: Tensor) -> Tensor:
    """A batch side by side, in rows of four: [B, H, W, 3] to [1, rows·H, columns·W, 3]; places without a picture are black."""
    columns = min(ROW, len(image))
    missing = image.new_zeros(-len(image) % columns, *image.shape[1:])
    return rearrange(torch.cat([image, missing]), "(r b) h w c -> 1 (r h) (b w) c", b=columns)
