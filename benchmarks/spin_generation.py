"""How fast the opponent's pictures come: python -m vico_spin.benchmarks.spin_generation [--device cuda] [--json]

The same pictures through the host's sampler, one by one with guidance as a loop over KSampler would make them, and in batches
as Train SPIN makes them, with guidance and without (cfg 1, which the theory has). U-Net of SD1.x's full shape, random weights
(speed does not depend on them), DDIM. Medians of several runs, in turn.
"""

import argparse
import json
import statistics
import time

import torch

from ..scripts.host import Host
from .machine import machine_name

WAYS = {"one by one, guided": (1, 7.5), "batched, guided": (None, 7.5), "batched, cfg 1": (None, 1.0)}


class Texts:
    """Any prompt as one random conditioning: what CLIP costs is not part of this."""

    def __init__(self, width: int):
        self.tokens = torch.randn(1, 77, width)

    def batch(self, prompts: list[str]) -> list:
        return [[self.tokens.repeat(len(prompts), 1, 1), {}]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--width", type=int, default=320, help="the U-Net's width; 320 is SD1.x")
    parser.add_argument("--size", type=int, default=512, help="picture side in pixels")
    parser.add_argument("--batch", type=int, default=16, help="pictures drawn at once")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps of a picture")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    Host(device=options.device)
    from ..nodes.spin.captions import OpponentSampling, host_sampler
    from ..scripts import models

    dtype = torch.float16 if options.device == "cuda" else torch.float32
    model = models.sd1(width=options.width, context_dim=768, dtype=dtype)
    texts, side = Texts(768), options.size // 8

    def seconds(batch: int, cfg: float) -> float:
        """Of one picture, `options.batch` pictures drawn."""
        sample = host_sampler(model, texts, OpponentSampling(steps=options.steps, cfg=cfg))
        start = time.perf_counter()
        for first in range(0, options.batch, batch):
            sample(["a photo"] * batch, list(range(first, first + batch)), (4, side, side)).cpu()
        return (time.perf_counter() - start) / options.batch

    ways = {name: (batch or options.batch, cfg) for name, (batch, cfg) in WAYS.items()}
    for batch, cfg in ways.values():
        seconds(batch, cfg)  # the first of a shape chooses its kernels
    runs = [{name: seconds(*way) for name, way in ways.items()} for _ in range(options.repetitions)]
    taken = {name: statistics.median(run[name] for run in runs) for name in ways}
    machine, slowest = machine_name(options.device), taken["one by one, guided"]
    print(f"{machine}, torch {torch.__version__}; {options.size}², {options.steps} steps, batches of {options.batch}")
    for name, one in taken.items():
        print(f"  {name:20} {1 / one:8.2f} pictures/s   {slowest / one:5.2f}×")
    if options.json:
        ratios = {name: slowest / one for name, one in taken.items()}
        print(json.dumps({"machine": machine, "seconds_a_picture": taken, "times_as_fast": ratios}))


if __name__ == "__main__":
    main()
