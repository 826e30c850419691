"""How fast the opponent's pictures come: python -m vico_spin.benchmarks.spin_generation [--device cuda] [--json]

The same pictures through the host's sampler, one by one with guidance as a loop over KSampler would make them, and in batches
as Train SPIN makes them, with guidance and without (cfg 1, which the theory has). U-Net of SD1.x's shape, random weights (speed
does not depend on them), DDIM. Every way takes a turn; medians. Beside the seconds: forwards of the U-Net for all pictures.
"""

from collections import Counter

import torch

from ..scripts.host import Host
from .harness import device_flag, finish, flags, in_turn, machine, timed

ONE_BY_ONE = "one by one, guided"
WAYS = {ONE_BY_ONE: (1, 7.5), "batched, guided": (None, 7.5), "batched, cfg 1": (None, 1.0)}


class Texts:
    """Any prompt as one random conditioning: what CLIP costs is not part of this."""

    def __init__(self, width: int):
        self.row = [torch.randn(1, 77, width), {}]

    def conditioning(self, prompt: str) -> list:
        return [self.row]

    def together(self, prompts: list[str]) -> list:
        return [(list(range(len(prompts))), [[self.row[0].repeat(len(prompts), 1, 1), {}]])]


def main() -> None:
    parser = flags(
        __doc__,
        width=(320, "the U-Net's width; 320 is SD1.x"),
        size=(512, "picture side in pixels"),
        batch=(16, "pictures drawn at once"),
        steps=(20, "sampling steps of a picture"),
        repetitions=(3, "medians of so many"),
    )
    device_flag(parser)
    options = parser.parse_args()
    Host(device=options.device)
    from ..nodes.spin.captions import OpponentSampling, host_sampler
    from ..scripts import models

    dtype = torch.float16 if options.device == "cuda" else torch.float32
    model, texts, forwards = models.sd1(width=options.width, context_dim=768, dtype=dtype), Texts(768), Counter()
    side, way = options.size // 8, ""
    model.model.diffusion_model.register_forward_hook(lambda *_: forwards.update([way]))

    def draw(name: str) -> dict[str, float]:
        nonlocal way
        way, (at_once, cfg) = name, WAYS[name]
        sample = host_sampler(model, texts, OpponentSampling(steps=options.steps, cfg=cfg))
        each = [
            list(range(i, min(i + (at_once or options.batch), options.batch)))
            for i in range(0, options.batch, at_once or options.batch)
        ]
        taken = timed(
            lambda: [sample(["a photo"] * len(seeds), seeds, (4, side, side)) for seeds in each], options.device
        )
        return {what: value / options.batch for what, value in taken.items()}

    taken = in_turn({name: lambda name=name: draw(name) for name in WAYS}, options.repetitions)
    found = {
        **machine(options.device),
        "seconds_a_picture": {name: of["seconds"] for name, of in taken.items()},
        "times_as_fast": {name: taken[ONE_BY_ONE]["seconds"] / of["seconds"] for name, of in taken.items()},
        "times_as_fast_cpu": {name: taken[ONE_BY_ONE]["cpu_seconds"] / of["cpu_seconds"] for name, of in taken.items()},
        "forwards": {name: count // (options.repetitions + 1) for name, count in forwards.items()},
    }
    lines = [
        f"{found['machine']}, torch {found['torch']}; {options.size}², {options.steps} steps, {options.batch} pictures"
    ]
    for name in WAYS:
        rate, times = 1 / taken[name]["seconds"], found["times_as_fast"][name]
        lines.append(f"  {name:20} {rate:8.2f} pictures/s   {times:5.2f}×   {found['forwards'][name]} forwards")
    finish(found, options, "\n".join(lines))


if __name__ == "__main__":
    main()
