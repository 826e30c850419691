"""The world's autoencoder: 128 x 128 pixels <-> 4 x 16 x 16 latents, Stable Diffusion's factor 8 and its scale.

A picture is pixel art shown 4 x 4, so the encoder first takes the mean of each 4 x 4 block and the decoder last repeats
each art pixel; the convolutions between work on 2 x 2 art pixels a latent. Any size that 8 divides will do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .pictures import PIXELS

LATENT_CHANNELS = 4
SCALE = 0.18215  # Stable Diffusion's: latents times this have unit variance


class ResBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class SpriteAutoencoder(nn.Module):
    """encode: [B, 3, 8h, 8w] in -1..1 -> [B, 4, h, w]; decode: the way back."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            ResBlock(width),
            ResBlock(width),
            nn.SiLU(),
            nn.Conv2d(width, LATENT_CHANNELS, 1),
        )
        self.from_white = nn.Conv2d(LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.decoder = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, width, 3, padding=1),
            ResBlock(width),
            ResBlock(width),
            ResBlock(width),
            nn.SiLU(),
            nn.Conv2d(width, 12, 1),
        )

    def encode_art(self, art: Tensor) -> Tensor:
        """[B, 3, 32, 32] in -1..1 -> unit-variance latents [B, 4, 16, 16]."""
        return self.encoder(art)

    def decode_art(self, latent: Tensor) -> Tensor:
        """Unit-variance latents [B, 4, 16, 16] -> [B, 3, 32, 32]."""
        return F.pixel_shuffle(self.decoder(self.from_white(latent)), 2)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.encode_art(F.avg_pool2d(pixels, PIXELS)) / SCALE

    def decode(self, latent: Tensor) -> Tensor:
        return F.interpolate(self.decode_art(latent * SCALE), scale_factor=PIXELS, mode="nearest")


@torch.no_grad()
def whiten(model: SpriteAutoencoder, latents: Tensor) -> None:
    """Folds the whitening of these latents [N, 4, h, w] into both ends, so that channels are uncorrelated, unit, centred."""
    flat = rearrange(latents.double(), "n c h w -> (n h w) c")
    mean, (values, vectors) = flat.mean(0), torch.linalg.eigh(flat.T.cov())
    to_white = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    last, weight, bias = (
        model.encoder[-1],
        model.encoder[-1].weight.flatten(1).double(),
        model.encoder[-1].bias.double(),
    )
    last.weight.copy_((to_white @ weight)[..., None, None])
    last.bias.copy_(to_white @ (bias - mean))
    model.from_white.weight.copy_(torch.linalg.inv(to_white)[..., None, None])
    model.from_white.bias.copy_(mean)
