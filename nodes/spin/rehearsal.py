"""A training rehearsed on small noise before the first picture is drawn: what has no gradient is named, what it needs is told."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import comfy.model_management
import torch

from ...spin_core.batches import Corpus
from ...spin_core.players import LoRAPlayer
from ...train_core import Denoiser
from ..host.memory import MOMENTS, Growth, Need, peak_of

LATENTS = 6  # of a row, beside its forward: picture, noise, x_t, target, both players' predictions; float32


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
        """base: bytes of the model as stored; rounds: adapters that stay applied. Raises: ValueError as growth does."""
        weights = sum(p.nbytes for p in self.player.adapter(self.player.seed).parameters())
        return Need(base, (rounds + MOMENTS) * weights, self.growth(), self.drawing())

    def growth(self) -> Growth:
        """Of a step. Raises: ValueError naming the kernel that has no gradient, or the layer to which none comes."""
        adapter = self.player.adapter(self.player.seed)
        channels, *_, height, width = max(self.corpus.shapes, key=lambda shape: shape[-1] * shape[-2])
        with adapter.attached():
            growth = Growth.measured(partial(self.step_peak, adapter), (height, width))
        return replace(growth, pixel=growth.pixel + LATENTS * 4 * channels)

    def drawing(self) -> int:
        if self.drawn == 0:
            return 0
        one, two = (peak_of(lambda count=count: self.draw(count)) for count in (1, 2))
        return one + (self.drawn - 1) * max(0, two - one)

    def step_peak(self, adapter, rows: int, side: tuple[int, int]) -> int:
        """Bytes at the peak of a forward and its backward pass, gradients included."""

        def step() -> None:
            self.check(adapter, self.answer(rows, side))
            adapter.zero_grad()

        return peak_of(step)

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
