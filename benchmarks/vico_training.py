"""What a step of ViCo's training costs: python -m vico_spin.benchmarks.vico_training [--sizes 256] [--device cuda] [--json]

Three ways to take the same step (loss, gradients, AdamW) on one model, in turn, in the same run: plain two streams as the
authors' code writes them; ours, as Train ViCo runs it; ours with the reference detached. U-Net of SD1.x's shape, random
weights (speed does not depend on them; the share of keys that the mask keeps does, and is printed). Memory is what a step
allocates at its peak beside the model, counted. Beside them ComfyUI's own TrainLoraNode, as it comes, on a model of --host-width.
"""

from contextlib import nullcontext

from ..scripts.host import Host
from .harness import device_flag, finish, flags, in_turn, machine, timed

CASES = ["original", "ours", "ours, reference detached"]
PROMPT = "a photo of a *"


class Bench:
    """One model with image attention, one batch; each case is one optimiser step on it."""

    def __init__(self, size: int, width: int):
        import torch

        from ..nodes.host.copies import training_mode
        from ..nodes.vico.session import LEARNT, TrainingRun, TrainSettings, start_session
        from ..nodes.vico.streams import HostStreams
        from ..scripts import models
        from ..vico_core.training import Batch, ViCoObjective
        from .authors_streams import AuthorsStreams

        self.objective, self.mode = ViCoObjective, training_mode
        with self.mode():
            model = models.sd1(width=width, context_dim=768)
            model.model.requires_grad_(False)
            clip = models.clip(width=768, heads=12, intermediate=3072, layers=12)
            self.session = start_session(model, clip, TrainingRun(TrainSettings("toy", size=size, word=LEARNT)))
            ours, self.trained = self.session.streams, self.session.trained
            self.device = self.session.engine.device
            detached = HostStreams(
                self.session.patcher, self.session.text, self.trained, "*", self.session.engine, True
            )
            self.streams = dict(zip(CASES, (AuthorsStreams(ours), ours, detached), strict=True))
            generator = torch.Generator().manual_seed(0)
            latents = [torch.randn(1, 4, size // 8, size // 8, generator=generator).to(self.device) for _ in range(3)]
            self.batch = Batch(*latents, torch.tensor([500], device=self.device), [PROMPT])
            rates = {"word_lr": 0.0, "attention_lr": 0.0}  # every step sees the same weights
            self.optimizers = {case: self.trained.optimizer(**rates) for case in CASES}
            self.optimizers["original"] = torch.optim.AdamW(self.trained.groups(**rates), weight_decay=0.01)
            with self.session.frozen:  # the first loads; the authors' way then runs without it
                pass

    def step(self, case: str) -> None:
        with self.mode():
            loss = self.objective(self.streams[case])(self.batch, lambda loss: loss.backward())["loss"]
            self.loss, self.gradient = loss.item(), self.trained.words["l"].grad.clone()
            self.optimizers[case].step()
            self.optimizers[case].zero_grad()

    def ready(self, case: str):
        return nullcontext() if case == "original" else self.session.frozen

    def timed(self, case: str) -> dict[str, float]:
        with self.mode(), self.ready(case):
            return timed(lambda: self.step(case), self.device.type)

    def peak(self, case: str) -> int:
        """Bytes that a step allocates at its peak."""
        from ..train_core import Allocated

        with self.mode(), self.ready(case), Allocated() as held:
            self.step(case)
        return held.peak

    def difference(self) -> float:
        """Largest relative difference of loss and word gradient between the authors' way and ours."""
        self.timed("original")
        loss, gradient = self.loss, self.gradient
        self.timed("ours")
        differ = (gradient - self.gradient).abs().max() / gradient.abs().max()
        return max(abs(loss - self.loss) / abs(loss), differ.item())

    def kept_keys(self) -> float:
        """Share of the reference's tokens that the automatic mask keeps, over all places."""
        self.timed("original")
        masks = self.streams["original"].masks.values()
        return (sum(mask.sum() for mask in masks) / sum(mask.numel() for mask in masks)).item()


def measure(size: int, width: int, repetitions: int) -> dict:
    bench = Bench(size, width)
    difference = bench.difference()
    peak = {case: bench.peak(case) for case in CASES}
    taken = in_turn({case: lambda case=case: bench.timed(case) for case in CASES}, repetitions)
    wall, cpu = ({case: of[what] for case, of in taken.items()} for what in ("seconds", "cpu_seconds"))
    return {
        "seconds": wall,
        "cpu_seconds": cpu,
        "peak_bytes": peak,
        "difference": difference,
        "kept_keys": bench.kept_keys(),
        "time_over_original": wall["ours"] / wall["original"],
        "cpu_time_over_original": cpu["ours"] / cpu["original"],
        "memory_over_original": peak["ours"] / peak["original"],
        "detached_time_over_ours": wall[CASES[2]] / wall["ours"],
        "detached_memory_over_ours": peak[CASES[2]] / peak["ours"],
    }


def beside_the_hosts(host: Host, size: int, width: int, repetitions: int) -> dict:
    """Ours against TrainLoraNode's step, at a width at which both fit."""
    from ..scripts import models
    from .host_trainer import lora_step

    bench = Bench(size, width)
    ours = in_turn({"ours": lambda: bench.timed("ours")}, repetitions)["ours"]
    weights = sum(p.nbytes for p in bench.session.patcher.model.diffusion_model.parameters())
    theirs = lora_step(host, lambda: models.sd1(width=width, context_dim=768), 1, size // 8, 8, True, repetitions)
    return {
        "width": width,
        "cpu_time_over_hosts": ours["cpu_seconds"] / theirs["cpu_seconds"],
        "memory_over_hosts": (bench.peak("ours") + weights) / theirs["bytes"],
    }


def text(size: int, found: dict) -> str:
    lines = [f"{size}², batch 1: seconds a step, CPU seconds, MB that a step allocates at its peak"]
    for case in CASES:
        wall, cpu, peak = (found[key][case] for key in ("seconds", "cpu_seconds", "peak_bytes"))
        lines.append(f"  {case:28} {wall:8.2f} {cpu:8.2f} {peak / 2**20:8.0f}")
    lines += [f"  {name}: {value:.3g}" for name, value in found.items() if isinstance(value, float)]
    return "\n".join(lines)


def main() -> None:
    parser = flags(__doc__, repetitions=(3, "medians of so many"), width=(320, "of the U-Net; 320 is SD1.x"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[256], help="picture sides in pixels")
    parser.add_argument("--host-width", type=int, default=96, help="of the model beside TrainLoraNode; 0: not at all")
    device_flag(parser)
    options = parser.parse_args()
    host = Host(device=options.device)
    found = {size: measure(size, options.width, options.repetitions) for size in options.sizes}
    told = [text(size, of) for size, of in found.items()]
    result = {**machine(options.device), "width": options.width, **found[max(found)], "sizes": found}
    if options.host_width:
        result["host"] = beside_the_hosts(host, min(options.sizes), options.host_width, options.repetitions)
        told.append("beside ComfyUI's TrainLoraNode: " + ", ".join(f"{k} {v:.3g}" for k, v in result["host"].items()))
    finish(result, options, "\n".join([f"{result['machine']}, torch {result['torch']}, width {options.width}", *told]))


if __name__ == "__main__":
    main()
