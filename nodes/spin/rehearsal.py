"""A training rehearsed on small noise before the first picture is drawn: what has no gradient is named, what it needs is told."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import comfy.model_management
import torch

from ...spin_core.batches import Corpus
from ...spin_core.players import LoRAPlayer
from ...train_core import Allocated, Denoiser

SMALL, LARGE = 16, 32  # sides of the latents that are tried
MOMENTS = 2  # AdamW's, beside each trained weight; its gradient is counted in a step
LATENTS = 6  # of a row, beside its forward: picture, noise, x_t, target, both players' predictions; float32


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
    """Bytes on the device: the model as stored, adapters with the moments of the one that learns, a step, a drawing."""

    base: int
    adapters: int
    growth: Growth
    drawing: int

    def beside(self, rows: int, area: int) -> int:
        """What must be free beside the model, for steps of so many rows and latents of that area."""
        return self.adapters + max(self.growth.at(rows, area), self.drawing)

    def text(self, rows: int, area: int) -> str:
        step = self.growth.at(rows, area)
        parts = (
            f"model {size(self.base)}, LoRA {size(self.adapters)}, a step {size(step)}, drawing {size(self.drawing)}"
        )
        return f"Memory: about {size(self.base + self.beside(rows, area))} ({parts})."


@dataclass(frozen=True)
class Rehearsal:
    """A LoRA's training in small. policy: the player under the training's precision.

    draw: so many pictures as the run will, but in few steps. drawn: how many it will draw at once; 0 where none is.
    """

    player: LoRAPlayer
    policy: Denoiser
    corpus: Corpus
    draw: Callable[[int], None]
    drawn: int

    def need(self, base: int, rounds: int) -> Need:
        """base: bytes of the model as stored; rounds: adapters that stay applied.

        Raises: ValueError naming the kernel that has no gradient, or the layer to which none comes.
        """
        adapter = self.player.adapter(self.player.seed)
        adapters = (rounds + MOMENTS) * sum(p.nbytes for p in adapter.parameters())
        channels, *_, height, width = max(self.corpus.shapes, key=lambda shape: shape[-1] * shape[-2])
        with adapter.attached():
            growth = Growth.measured(partial(self.step_peak, adapter), (height, width))
        per_pixel = replace(growth, pixel=growth.pixel + LATENTS * 4 * channels)
        return Need(base, adapters, per_pixel, self.drawing())

    def drawing(self) -> int:
        if self.drawn == 0:
            return 0
        one, two = (self.drawing_peak(count) for count in (1, 2))
        return one + (self.drawn - 1) * max(0, two - one)

    def drawing_peak(self, count: int) -> int:
        with Allocated() as held:
            self.draw(count)
        return held.peak

    def step_peak(self, adapter, rows: int, side: tuple[int, int]) -> int:
        """Bytes at the peak of a forward and its backward pass, gradients included."""
        with Allocated() as held:
            self.check(adapter, self.answer(rows, side))
            adapter.zero_grad()
        return held.peak

    def answer(self, rows: int, side: tuple[int, int]) -> torch.Tensor:
        shape = (*self.corpus.shapes[0][:-2], *side)
        device, steps = self.player.device, len(self.policy.schedule)
        x_t = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0)).to(device)
        prompt = max(self.corpus.prompts, key=len)
        context = self.corpus.context([prompt] * rows, shape)
        return self.policy.predict(x_t, torch.full((rows,), steps // 2, device=device), context)

    def check(self, adapter, answer: torch.Tensor) -> None:
        """The backward pass, and that it comes everywhere."""
        try:
            answer.square().mean().backward()
        except RuntimeError as error:
            if comfy.model_management.is_oom(error):
                raise
            raise ValueError(f"Connect another model.\nThis one has a kernel without a gradient: {error}") from error
        lost = [name for name, layer in adapter.layers().items() if layer.up.grad is None]
        if lost:
            raise ValueError(
                f"Choose other layers, or another model.\nNo gradient comes to {lost[0]} ({len(lost)} of {len(self.player.names)} "
                "layers): a kernel of this model has none."
            )


def size(count: int) -> str:
    return f"{count / 2**30:.2f} GB" if count >= 2**28 else f"{count / 2**20:.1f} MB"
