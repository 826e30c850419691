"""What a training needs, before its first step: measured on small steps, told on the node, kept free on the device."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import comfy.model_management

from ...train_core import Allocated
from .frozen import Frozen

SMALL, LARGE = 16, 32  # sides of the latents that are tried; Z-Image fills up the tokens of smaller ones
MOMENTS = 2  # AdamW's, beside each trained weight; its gradient is counted in a step


def peak_of(run: Callable[[], object]) -> int:
    """Bytes that it holds at its peak, beside what was there before."""
    with Allocated() as held:
        run()
    return held.peak


@dataclass(frozen=True)
class Growth:
    """Bytes at their peak: a part that is always there, a part a row, a part a row and pixel of the latent."""

    fixed: float
    row: float
    pixel: float

    @classmethod
    def measured(cls, peak: Callable[[int, tuple[int, int]], int], side: tuple[int, int]) -> "Growth":
        """peak(rows, height and width of the latent) on a few small runs, for latents of up to that height and width."""
        area = side[0] * side[1]
        if area <= LARGE**2:  # small enough to be run itself
            alone, pair = peak(1, side), peak(2, side)
            return cls(2 * alone - pair, 0, (pair - alone) / area)
        alone, pair, large = peak(1, (SMALL, SMALL)), peak(2, (SMALL, SMALL)), peak(2, (LARGE, LARGE))
        row, fixed = pair - alone, alone - (pair - alone)
        pixel = ((large - fixed) / 2 - row) / (LARGE**2 - SMALL**2)
        return cls(fixed, row - pixel * SMALL**2, pixel)

    def at(self, rows: int, area: int) -> int:
        return round(self.fixed + rows * (self.row + self.pixel * area))


@dataclass(frozen=True)
class Need:
    """Bytes on the device: models as stored, what is trained with its moments, a step, a drawing (0: none).

    names: of the models and of what is trained, in words.
    """

    base: int
    trained: int
    growth: Growth
    drawing: int = 0
    names: tuple[str, str] = ("model", "LoRA")

    def beside(self, rows: int, area: int) -> int:
        """What must be free beside the models, for steps of so many rows and latents of that area."""
        return self.trained + max(self.growth.at(rows, area), self.drawing)

    def text(self, rows: int, area: int) -> str:
        parts = {self.names[0]: self.base, self.names[1]: self.trained, "a step": self.growth.at(rows, area)}
        parts |= {"drawing": self.drawing} if self.drawing else {}
        told = ", ".join(f"{name} {size(count)}" for name, count in parts.items())
        return f"Memory: about {size(self.base + self.beside(rows, area))} ({told})."


def make_room(
    frozen: Frozen, need: Need, rows: int, area: int, savings: Iterable[tuple[str, int]], otherwise: str
) -> str:
    """Keeps free what steps of so many rows and that area need. Returns it in words and, where it is too much, what would fit.

    savings: settings, and the bytes beside the models with them. otherwise: what to do where none of them fits.
    """
    told, wanted = need.text(rows, area), need.beside(rows, area)
    free = comfy.model_management.get_free_memory(frozen.patchers[0].load_device)
    if wanted <= free:
        return told
    frozen.reserve(wanted)
    if wanted <= free + need.base:
        return f"{told} {size(free)} are free: some of the model is read from system memory, which takes longer."
    fitting = next((words for words, bytes in savings if bytes <= free + need.base), None)
    advice = f"it would fit with {fitting}." if fitting else otherwise
    return f"{told} {size(free + need.base)} are there: {advice}"


def size(count: int) -> str:
    return f"{count / 2**30:.2f} GB" if count >= 2**28 else f"{count / 2**20:.1f} MB"
