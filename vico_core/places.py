"""Where image attention goes (ViCo §3.1: the decoder of a U-Net, every second attention block), and in a diffusion transformer."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BLOCK = re.compile(r"(output_blocks\.(\d+)\.\d+)\.transformer_blocks\.(\d+)\.")
UNET = "U-Net"  # the family's name in a concept's file
MOST_PLACES = 4  # as in SD1.x
SHARE = 0.06  # of the model's parameters that the paper's image attention has (5.96%)


@dataclass(frozen=True)
class Place:
    """A transformer block after which image attention runs.

    name: as files write it (`output_blocks.4.1` in the original's, `layers.22` in a diffusion transformer); block: its path
    from the diffusion model down.
    """

    name: str
    block: str


def decoder_places(keys: Iterable[str]) -> list[Place]:
    """Every place that a U-Net has, told by its parameter names (`output_blocks.N.M.transformer_blocks.K. …`), in the order they run.

    After each decoder block that has attention, behind the last of its transformer blocks. Empty for other models.
    """
    depths: dict[str, tuple[int, int]] = {}
    for key in keys:
        found = BLOCK.match(key)
        if found:
            name, level, depth = found[1], int(found[2]), int(found[3])
            depths[name] = (level, max(depth, depths.get(name, (level, 0))[1]))
    ordered = sorted((level, name, depth) for name, (level, depth) in depths.items())
    return [Place(name, f"{name}.transformer_blocks.{depth}") for _, name, depth in ordered]


def paper_places(places: Sequence[Place]) -> list[Place]:
    """The paper's of a U-Net's places, every second one: 4, 6, 8, 10 in SD1.x and SD2.x; 1, 3, 5 in SDXL."""
    return list(places[1::2])


def spread_places(blocks: Sequence[str], count: int) -> list[Place]:
    """`count` places evenly over the second half of a transformer's blocks (their paths, in the order they run)."""
    half = len(blocks) / 2
    chosen = sorted({int(half + (i + 0.5) * half / count) for i in range(count)})
    return [Place(blocks[i], blocks[i]) for i in chosen]


def place_parameters(dim: int) -> int:
    """Parameters of image attention at a place of this width (ViCo §3.1): 20 d² + 17 d."""
    return 20 * dim**2 + 17 * dim


def place_count(dim: int, parameters: int) -> int:
    """How many whole modules of this width come closest to the paper's share of a model's parameters, one to four."""
    return min(MOST_PLACES, max(1, round(SHARE * parameters / place_parameters(dim))))
