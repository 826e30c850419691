"""The rows of Checkpoint Grid: the pictures of a concept each, drawn once for all choices among them."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ...scores.sheet import Cell, sheet
from ...vico_core import ViCoConcept
from ..host.folders import marks
from ..host.pictures import to_pictures
from ..host.progress import Filling
from ..host.sampling import Sampling
from .drawing import draw_with_concept
from .photos import Reference

SMALLEST_CELL = 256  # pixels: small pictures are shown larger, so that the prompts above them can be read
Row = list[Image.Image]


@dataclass(frozen=True)
class Asked:
    """Which pictures stand in a row."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    sampling: Sampling

    def __post_init__(self):
        if not self.prompts:
            raise ValueError("Write prompts, one a line.\nThere is none to draw.")

    def columns(self) -> list[str]:
        several = len(self.seeds) > 1
        return [f"{prompt}, {seed}" if several else prompt for prompt in self.prompts for seed in self.seeds]


@dataclass(frozen=True)
class Drawn:
    """Rows by their concept's file, and what they were drawn by. A reference keeps its last ones: choosing draws nothing."""

    by: tuple
    rows: dict[tuple, Row] = field(default_factory=dict)


def draw_rows(models: tuple, reference: Reference, concepts: dict[Path, ViCoConcept], asked: Asked) -> list[Row]:
    """A row a concept, by their files, shown on the node as they come. models: MODEL, CLIP and VAE."""
    kept, files = drawn_before(models, reference, asked), {mark: file for file in concepts for mark in marks(file)}
    filling = Filling(len(files.keys() - kept.keys()) * len(asked.prompts) * asked.sampling.steps)
    rows: list[Row] = []
    for mark, file in files.items():
        if mark not in kept:
            how = (asked.prompts, asked.seeds, asked.sampling)
            kept[mark] = to_pictures(draw_with_concept(*models, concepts[file], reference, *how, on_step=filling.step))
        rows.append(kept[mark])
        filling.show(grid_of(rows, list(concepts.values()), asked))
    return rows


def drawn_before(models: tuple, reference: Reference, asked: Asked) -> dict[tuple, Row]:
    by = (*map(weakref.ref, models), asked)
    if reference.drawn is None or reference.drawn.by != by:
        reference.drawn = Drawn(by)
    return reference.drawn.rows


def grid_of(rows: Sequence[Row], concepts: Sequence[ViCoConcept], asked: Asked) -> Image.Image:
    """The rows so far, each beside its concept's step."""
    names = [f"step {concept.step}" for concept in concepts[: len(rows)]]
    return sheet([[Cell(picture, "") for picture in row] for row in rows], names, asked.columns(), side_of(rows))


def side_of(rows: Sequence[Row]) -> int:
    return max(SMALLEST_CELL, *rows[0][0].size)
