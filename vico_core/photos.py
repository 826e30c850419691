"""Photos as ViCo takes them: resized by Pillow as in the authors' code, no crop, no flip."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

STEP = 64  # pixels: the U-Nets halve the VAE's latent (1/8) three times


def resize(image: Tensor, width: int, height: int, method: Image.Resampling = Image.Resampling.BILINEAR) -> Tensor:
    """image [H, W, 3] in 0..1 -> [height, width, 3] in 0..1, through 8 bits (bilinear for a reference, bicubic in training)."""
    if image.shape[:2] == (height, width):
        return image
    picture = Image.fromarray((image.cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8))
    return torch.from_numpy(np.asarray(picture.resize((width, height), method)).astype(np.float32) / 255)


def size_of_area(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height) of the picture's aspect and about side² pixels, in steps of 64; a square becomes side × side."""
    scale = side / math.sqrt(width * height)
    return tuple(max(STEP, round(length * scale / STEP) * STEP) for length in (width, height))
