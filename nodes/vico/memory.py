"""A ViCo training rehearsed in small before its first step: what it needs is told, with the setting that would fit."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch

from ...vico_core.training import Batch, TrainedConcept, ViCoObjective
from ..host.frozen import Frozen
from ..host.memory import MOMENTS, Growth, Need, make_room, peak_of
from .streams import HostStreams, checkpointed

SIZE_STEP = 64


@dataclass(frozen=True)
class Rehearsal:
    """A training in small. side: of the photos' latents. draw: a preview in few steps; None where none is drawn."""

    frozen: Frozen
    streams: HostStreams
    trained: TrainedConcept
    caption: str
    side: int
    masks: torch.Tensor | None = None
    draw: Callable[[], object] | None = None

    def told(self, size: int, batch_size: int, spared: bool) -> str:
        """What steps at size x size need, kept free from now on. spared: checkpointing is on already."""
        need = self.need()
        savings = self.savings(need, size, batch_size, spared)
        return make_room(self.frozen, need, batch_size, self.side**2, savings, "close other programs first.")

    def need(self) -> Need:
        base = sum(patcher.model_size() for patcher in self.frozen.patchers)
        weights = sum(p.nbytes for p in self.trained.parameters() if p.requires_grad)
        names = ("model" if len(self.frozen.patchers) == 1 else "model and text encoder", "image attention")
        drawing = peak_of(self.draw) if self.draw else 0
        return Need(base, (1 + MOMENTS) * weights, self.growth(), drawing, names)

    def growth(self) -> Growth:
        return Growth.measured(self.step_peak, (self.side, self.side))

    def step_peak(self, rows: int, side: tuple[int, int]) -> int:
        """Bytes at the peak of a step of the objective, gradients included."""
        batch = self.batch(rows, side)

        def step() -> None:
            ViCoObjective(self.streams)(batch, torch.Tensor.backward)
            self.trained.zero_grad()

        return peak_of(step)

    def batch(self, rows: int, side: tuple[int, int]) -> Batch:
        form, device = self.streams.model.latent_format, self.streams.engine.device
        frames = [1] * (form.latent_dimensions == 3)
        latent = torch.randn(rows, form.latent_channels, *frames, *side, generator=torch.Generator().manual_seed(0))
        t = torch.full((rows,), len(self.streams.schedule) // 2)
        masks = None if self.masks is None else self.masks[:1].expand(rows, -1, -1)
        return Batch(latent, latent, latent, t, [self.caption] * rows, masks).to(device)

    def savings(self, need: Need, size: int, batch_size: int, spared: bool) -> Iterator[tuple[str, int]]:
        """Settings that need less, each with those before it, and the bytes beside the models with them."""
        words, rows, area = [], batch_size, self.side**2
        with nullcontext() if spared else checkpointed(self.streams.unet):
            if not spared:
                words.append("gradient_checkpointing")
                need = replace(need, growth=self.growth())
                yield words[0], need.beside(rows, area)
            if batch_size > 1:
                words.append(f"batch_size 1 and accumulation {batch_size}")
                rows = 1
                yield " and ".join(words), need.beside(rows, area)
            for smaller in range(size - SIZE_STEP, 0, -SIZE_STEP):
                yield ", ".join([*words, f"size {smaller}"]), need.beside(rows, round(area * (smaller / size) ** 2))
