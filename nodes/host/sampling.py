"""Pictures by the host's sampler, each seed's noise its own whatever stands beside it in the batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.sample
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn, in KSampler's words."""

    sampler: str = "ddim"
    scheduler: str = "ddim_uniform"
    steps: int = 50
    cfg: float = 7.5


def sample_latents(
    model,
    shape: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling,
    positive: list,
    negative: list,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Latents [len(seeds), *shape] from nothing; positive, negative: CONDITIONING; on_step is told the steps done."""
    empty = torch.zeros(1, *shape)
    noise = torch.cat([comfy.sample.prepare_noise(empty, seed) for seed in seeds])
    how = (sampling.steps, sampling.cfg, sampling.sampler, sampling.scheduler, positive, negative)
    told = None if on_step is None else lambda step, x0, x, total: on_step(step + 1)
    return comfy.sample.sample(
        model, noise, *how, torch.zeros_like(noise), callback=told, disable_pbar=True, seed=seeds[0]
    )
