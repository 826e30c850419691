"""DINO similarity (DreamBooth's identity metric): ViT-S/16 of arXiv 2104.14294, cosine of the CLS tokens."""

from pathlib import Path

from .clip import ReferenceScorer, unit
from .pictures import IMAGENET_MEAN, IMAGENET_STD, ShortestSide, Square
from .weights import HF_VIT, build, checkpoint_of, read_config, read_weights, weights_in

POSITIONS = "embeddings.position_embeddings"


class Dino(ReferenceScorer):
    """Mean cosine of CLS tokens. `protocol` says whose preprocessing: the standard one, or DreamMatcher's."""

    def __init__(self, protocol: str, *arguments):
        super().__init__(*arguments)
        self.name = "DINO ViT-S/16" if protocol == "standard" else "DINO ViT-S/16 (DreamMatcher)"

    def embed(self, pixels):
        return unit(self.module(pixel_values=pixels).last_hidden_state[:, 0])


def load(path: Path, protocol: str = "standard") -> Dino:
    """path: the folder dino-vits16 as it is on the hub.

    protocol: "standard" resizes to 256, crops 224 and normalises as ImageNet; "dreammatcher" feeds 256² in [-1, 1].
    """
    from transformers import ViTConfig, ViTModel

    config = read_config(ViTConfig, path, "DINO", layer_norm_eps=1e-6)  # the hub's file says 1e-12
    weights = weights_in(path, "DINO")
    state = read_weights(weights, HF_VIT, "DINO")
    side, steps = config.image_size, ShortestSide(256, config.image_size, IMAGENET_MEAN, IMAGENET_STD)
    if protocol == "dreammatcher":
        steps, config.image_size = Square(side * 256 // 224), side * 256 // 224
        state[POSITIONS] = stretched(state[POSITIONS], config.image_size // config.patch_size)
    model = build(ViTModel, config, state, f'DINO, "{path}"', add_pooling_layer=False)
    return Dino(protocol, model, steps, [checkpoint_of(weights)])


def stretched(positions, grid: int):
    """Position embeddings for grid × grid patches by DINO's own rule, whose 0.1 shifts the samples a little.

    positions: [1, 1 + old², D]. Returns [1, 1 + grid², D].
    """
    import torch
    from einops import rearrange
    from torch.nn.functional import interpolate

    old = round((positions.shape[1] - 1) ** 0.5)
    patches = rearrange(positions[:, 1:].float(), "1 (h w) d -> 1 d h w", h=old)
    patches = interpolate(patches, scale_factor=((grid + 0.1) / old,) * 2, mode="bicubic")
    return torch.cat([positions[:, :1].float(), rearrange(patches, "1 d h w -> 1 (h w) d")], dim=1)
