"""From a picture to what a scorer's network sees, as each scorer's authors did it: Pillow's filters, to the bit.

Axes: B pictures, 3 colours, H × W pixels. Pixels of a Pillow picture are uint8, those of a tensor float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resize_shortest(picture: Image.Image, size: int) -> Image.Image:
    """Shortest side to `size`, bicubic with Pillow's antialiasing; the long side rounds down as in torchvision."""
    width, height = picture.size
    target = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    return picture if target == picture.size else picture.resize(target, Image.BICUBIC)


def crop_centre(picture: Image.Image, size: int, odd: str) -> Image.Image:
    """The middle size × size. Where the margin is odd, transformers rounds it down and torchvision to the even half."""
    if picture.size == (size, size):
        return picture
    margins = [side - size for side in picture.size]  # x, y
    left, top = (margin // 2 if odd == "transformers" else round(margin / 2) for margin in margins)
    return picture.crop((left, top, left + size, top + size))


def stack(pictures: Sequence[Image.Image]):
    """Pictures of one size as a float32 tensor in [0, 1]. Returns [B, 3, H, W]."""
    import torch

    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))  # [B, H, W, 3] uint8
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def normalise(pixels, mean: Sequence[float], std: Sequence[float]):
    """(pixels - mean) / std by colour, in place. pixels: [B, 3, H, W] in [0, 1]."""
    mean, std = pixels.new_tensor(mean)[:, None, None], pixels.new_tensor(std)[:, None, None]
    return pixels.sub_(mean).div_(std)


@dataclass(frozen=True)
class ShortestSide:
    """Shortest side bicubic, centre crop, mean and std: CLIP's, ImageReward's and DINO's way."""

    resize: int = 224
    crop: int = 224
    mean: tuple = CLIP_MEAN
    std: tuple = CLIP_STD
    odd: str = "torchvision"  # how an odd margin is cropped: as the scorer's authors' library does

    def __call__(self, pictures: Sequence[Image.Image]):
        """Pictures of any sizes. Returns [B, 3, crop, crop]."""
        cropped = [crop_centre(resize_shortest(picture, self.resize), self.crop, self.odd) for picture in pictures]
        return normalise(stack(cropped), self.mean, self.std)

    def __str__(self) -> str:
        return (
            f"shortest side {self.resize} bicubic (Pillow), centre crop {self.crop} ({self.odd}), "
            f"mean {self.mean}, std {self.std}"
        )


@dataclass(frozen=True)
class LongestSide:
    """Longest side to `size` and black beside it: HPS v2's way, which resizes floats, so Pillow has no part in it.

    antialias: True is what its code does with torchvision 0.17 and later; False is what it did in 2023, when its
    published figures were made. The two differ where a picture is made smaller.
    """

    size: int = 224
    antialias: bool = True
    mean: tuple = CLIP_MEAN
    std: tuple = CLIP_STD

    def __call__(self, pictures: Sequence[Image.Image]):
        """Pictures of any sizes. Returns [B, 3, size, size]."""
        import torch

        return normalise(torch.cat([self.fit(picture) for picture in pictures]), self.mean, self.std)

    def fit(self, picture: Image.Image):
        """One picture, fitted and padded. Returns [1, 3, size, size] in about [0, 1]: bicubic may overshoot."""
        from torch.nn.functional import interpolate, pad

        pixels, scale = stack([picture]), self.size / max(picture.size)
        height, width = (round(side * scale) for side in pixels.shape[2:])
        if scale != 1:
            pixels = interpolate(pixels, (height, width), mode="bicubic", align_corners=False, antialias=self.antialias)
        x, y = self.size - width, self.size - height
        return pad(pixels, (x // 2, x - x // 2, y // 2, y - y // 2))

    def __str__(self) -> str:
        return (
            f"longest side {self.size} bicubic (float, antialias {'on' if self.antialias else 'off'}), black padding, "
            f"mean {self.mean}, std {self.std}"
        )


@dataclass(frozen=True)
class Square:
    """Bicubic to size × size whatever the aspect, in [-1, 1] without anyone's mean: what DreamMatcher feeds to DINO."""

    size: int = 256

    def __call__(self, pictures: Sequence[Image.Image]):
        """Pictures of any sizes. Returns [B, 3, size, size] in [-1, 1]."""
        import torch

        pixels = np.stack([np.asarray(squared(picture, self.size)) for picture in pictures])  # [B, H, W, 3]
        pixels = (pixels / 127.5 - 1.0).astype(np.float32)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def __str__(self) -> str:
        return f"bicubic (Pillow) to {self.size} × {self.size}, in [-1, 1]"


@dataclass(frozen=True)
class SquareThenClip:
    """DreamMatcher's CLIP: its 256² picture, then CLIP's 224² on floats (torchvision's tensor resize, antialiased)."""

    size: int = 256
    crop: int = 224

    def __call__(self, pictures: Sequence[Image.Image]):
        """Pictures of any sizes. Returns [B, 3, crop, crop]."""
        from torch.nn.functional import interpolate

        pixels = Square(self.size)(pictures).add_(1).div_(2)
        small = interpolate(pixels, (self.crop, self.crop), mode="bicubic", align_corners=False, antialias=True)
        return normalise(small, CLIP_MEAN, CLIP_STD)

    def __str__(self) -> str:
        return f"{Square(self.size)}, then {self.crop} bicubic (float, antialias on), mean {CLIP_MEAN}, std {CLIP_STD}"


def squared(picture: Image.Image, size: int) -> Image.Image:
    return picture if picture.size == (size, size) else picture.resize((size, size), Image.BICUBIC)
