"""A LoRA step beside the user's own weights, against the same step on a deep copy in float32: python -m vico_spin.benchmarks.frozen_step

Paired: each repetition runs both in turn, the first one changing. Prints, a model and stored type a line, the ratio of the
medians of their seconds, of the bytes that they hold (base, copy and step; counted) and how far their gradients differ. --json
"""

import gc

from ..scripts.host import Host
from .harness import finish, flags, in_turn, timed

MODELS = ("U-Net", "Flux")
TYPES = ("float32", "bfloat16", "float8_e4m3fn")
BASE_WIDTH = {"U-Net": 64, "Flux": 256}


def make(name: str, dtype, width: int):
    """A MODEL of that kind and width, and a prompt for it."""
    import torch

    from ..scripts import models, transformers

    with torch.inference_mode():  # as the host's loaders do
        if name == "U-Net":
            text = [[torch.randn(1, 77, models.TEXT_WIDTH), {}]]
            return models.sd1(width=width, dtype=dtype), text
        sizes = {"hidden_size": width, "num_heads": width // 32, "depth_single_blocks": 8}
        return transformers.transformer("Flux.1", dtype=dtype, **sizes), transformers.prompt("Flux.1", tokens=77)


class Way:
    """One way to hold the base: in place, or as a deep copy in float32."""

    def __init__(self, model, text, in_place: bool, side: int, rows: int):
        import torch

        from ..nodes.host import copies, denoiser, frozen
        from ..nodes.host.families import trained_layers
        from ..nodes.host.families.gradients import differentiable
        from ..train_core import LoRA

        self.torch, self.training_mode = torch, copies.training_mode
        with self.training_mode():
            patcher = frozen.borrowed(model) if in_place else copies.training_copy(model)
            if not in_place:
                patcher.model.diffusion_model.float()
            self.ready = (lambda: frozen.Frozen([patcher])) if in_place else (lambda: differentiable(patcher.model))
            self.lora = LoRA(
                patcher.model.diffusion_model, trained_layers(patcher.model.diffusion_model, "attention"), 16
            )
            for number, layer in enumerate(self.lora.layers().values()):
                torch.nn.init.normal_(layer.up, std=0.02, generator=torch.Generator().manual_seed(number))
            self.denoiser = denoiser.ModelDenoiser(patcher)
            shape = (patcher.model.latent_format.latent_channels, side, side)
            self.contexts = [denoiser.context_of(patcher.model, text, shape)] * rows
        self.x, self.noise = torch.randn(2, rows, *shape, generator=torch.Generator().manual_seed(0))
        self.t = torch.full((rows,), 500)
        self.base = sum(p.nbytes for p in patcher.model.diffusion_model.parameters())

    def step(self) -> dict[str, float]:
        """Seconds of a forward and backward, and bytes held at its peak beside the base."""
        from ..train_core import Allocated

        with self.training_mode(), self.ready(), self.lora.attached():
            self.lora.zero_grad()
            gc.collect()
            taken = timed(self.run)
            self.gradient = self.torch.cat([p.grad.flatten() for p in self.lora.parameters()])
            self.lora.zero_grad()
            with Allocated() as held:
                self.run()
        return {**taken, "peak": held.peak}

    def run(self) -> None:
        answer = self.denoiser.predict(self.x, self.t, self.contexts)
        (answer * self.noise).mean().backward()


def compare(name: str, dtype_name: str, options) -> dict[str, float]:
    import torch

    model, text = make(name, getattr(torch, dtype_name), options.width or BASE_WIDTH[name])
    stored = sum(p.nbytes for p in model.model.diffusion_model.parameters())
    copied, own = (Way(model, text, in_place, options.side, options.rows) for in_place in (False, True))
    found = in_turn({"copied": copied.step, "own": own.step}, options.repetitions)
    difference = (own.gradient - copied.gradient).norm() / copied.gradient.norm()
    return {
        "time": found["own"]["seconds"] / found["copied"]["seconds"],
        "cpu_time": found["own"]["cpu_seconds"] / found["copied"]["cpu_seconds"],
        "memory": (stored + found["own"]["peak"]) / (stored + copied.base + found["copied"]["peak"]),
        "gradient": float(difference),
    }


def main() -> None:
    parser = flags(__doc__, side=(16, "of the latents"), rows=(2, "of a batch"), repetitions=(5, "medians of so many"))
    parser.add_argument("--width", type=int, help="of the models; by default small enough for two CPU cores")
    options = parser.parse_args()
    Host()
    found = {f"{name}, {dtype}": compare(name, dtype, options) for name in MODELS for dtype in TYPES}
    lines = [f"{'beside a deep copy in float32':30}{'time':>8}{'memory':>8}  gradient differs by"]
    for case, ratios in found.items():
        lines.append(f"{case:30}{ratios['time']:8.2f}{ratios['memory']:8.2f}  {ratios['gradient']:.1e}")
    finish(found, options, "\n".join(lines))


if __name__ == "__main__":
    main()
