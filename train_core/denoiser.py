"""The seam between a trainer and a model: anything that answers predict(x_t, t, context) can be trained."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .engine import Engine
from .schedule import NoiseSchedule, Prediction

# What a model is conditioned on: the text tokens [B, N, d]; or by name tensors with the batch first (SDXL: context and y) and
# constants (Lumina 2: num_tokens); or such a one for each row of the batch, where the rows' texts differ in length.
Context = Tensor | dict[str, Tensor | int | float | str | None] | list


class Denoiser(Protocol):
    """A model as a trainer sees it. `prediction` says what its answer means, `schedule` what x_t is made of."""

    schedule: NoiseSchedule
    prediction: Prediction

    def predict(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """x_t: [B, C, H, W]; t: int [B], 0..T-1. Returns the prediction, [B, C, H, W]."""
        ...


@dataclass(frozen=True)
class MixedPrecision:
    """A denoiser whose forward runs under the engine's autocast, and whose answer is float32 again for the loss."""

    denoiser: Denoiser
    engine: Engine

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    @property
    def prediction(self) -> Prediction:
        return self.denoiser.prediction

    def predict(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        with self.engine.autocast():
            return self.denoiser.predict(x_t, t, context).float()


def map_context(context: Context, change) -> Context:
    """The same context with `change` applied to each of its tensors."""
    if isinstance(context, list):
        return [map_context(row, change) for row in context]
    if isinstance(context, dict):
        return {name: map_context(value, change) for name, value in context.items()}
    return change(context) if isinstance(context, Tensor) else context


def cat_contexts(contexts: list[Context]) -> Context:
    """One batch of several contexts of the same kind, in their order; constants are the first one's."""
    first = contexts[0]
    if isinstance(first, list):
        return [row for context in contexts for row in context]
    if isinstance(first, dict):
        return {name: cat_contexts([context[name] for context in contexts]) for name in first}
    return torch.cat(contexts) if isinstance(first, Tensor) else first
