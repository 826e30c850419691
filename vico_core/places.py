"""Where image attention goes in a U-Net of the SD family (ViCo §3.1: the decoder, every second attention block)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

BLOCK = re.compile(r"(output_blocks\.(\d+)\.\d+)\.transformer_blocks\.(\d+)\.")


@dataclass(frozen=True)
class Place:
    """A transformer block of the decoder after which image attention runs.

    name: as the original's files write it (`output_blocks.4.1`); level: the decoder block's number; depth: the number of its
    last transformer block.
    """

    name: str
    level: int
    depth: int

    @property
    def block(self) -> str:
        """Path of the transformer block, from the U-Net down."""
        return f"{self.name}.transformer_blocks.{self.depth}"


def find_places(keys: Iterable[str]) -> list[Place]:
    """The places of a U-Net, told by its parameter names (`output_blocks.N.M.transformer_blocks.K. …`), in the order they run.

    Every second decoder block that has attention: 4, 6, 8, 10 in SD1.x and SD2.x; 1, 3, 5 in SDXL. Empty for other models.
    """
    depths: dict[str, tuple[int, int]] = {}
    for key in keys:
        found = BLOCK.match(key)
        if found:
            name, level, depth = found[1], int(found[2]), int(found[3])
            depths[name] = (level, max(depth, depths.get(name, (level, 0))[1]))
    ordered = sorted((level, name, depth) for name, (level, depth) in depths.items())
    return [Place(name, level, depth) for level, name, depth in ordered[1::2]]
