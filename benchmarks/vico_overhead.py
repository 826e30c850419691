"""What ViCo costs beside the plain model: python -m vico_spin.benchmarks.vico_overhead [--sizes 256 512] [--device cuda] [--json]

A sampling step with guidance, through the host's own sampler, on a U-Net of SD1.x's full shape (random weights: speed does
not depend on them, the share of keys that the mask keeps does, and is printed). Each repetition runs every case once, in
turn; the ratios are of medians. On the CPU seconds are the processor's, which do not grow with what else runs there.
"""

from pathlib import Path

from ..scripts.host import Host
from .harness import device_flag, finish, flags, flop_counter, machine, medians, resident, timed
from .waits import counted_steps

ROWS = 2  # of one picture with guidance
CASES = ["plain", "first", "first, empty prompt known", "every further", "plain ×4", "first ×4"]


class Bench:
    """The model, a concept, one size; each case is one sampling step."""

    kept: int  # bytes of the features that the mask kept, of one picture's step
    all_keys: int  # and of all of them

    def __init__(self, host: Host, size: int, device: str, width: int, steps: int, dense: bool):
        import torch

        from ..nodes.vico.photos import Photo
        from ..nodes.vico.places import places_of
        from ..scripts import models
        from ..vico_core import ImageAttention, ViCoConcept

        self.torch, self.host, self.size, self.device, self.steps = torch, host, size, device, steps
        dtype = torch.float16 if device == "cuda" else torch.float32
        self.model = models.sd1(width=width, context_dim=768, dtype=dtype)
        self.clip = models.clip(width=768, heads=12)
        shapes = places_of(self.model.model, dense)[1]
        modules = {s.name: ImageAttention(s.dim, s.heads, s.dim_head).state_dict() for s in shapes}
        self.concept = ViCoConcept(modules, {"l": torch.randn(1, 768)})
        latent = torch.randn(1, 4, size // 8, size // 8)
        self.photo = Photo(latent, torch.zeros(size, size, 3))

    def reference(self):
        from ..nodes.vico.photos import Reference

        return Reference([self.photo])

    def apply(self, reference, mask="automatic"):
        settings = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "mask": mask, "cache_mb": 4096}
        return self.host.call(
            "ViCoApply", model=self.model, clip=self.clip, concept=self.concept, reference=reference, **settings
        )

    def step(self, model, clip, prompt="a photo of a * on the beach", seed=0, batch=1):
        """A picture by the host's sampler with guidance. Returns seconds a step."""
        positive, negative = (self.host.call("CLIPTextEncode", clip=clip, text=text)[0] for text in (prompt, ""))
        latent = {"samples": self.torch.zeros(batch, 4, self.size // 8, self.size // 8)}
        how = {"steps": self.steps, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        sides = {"positive": positive, "negative": negative, "latent_image": latent}
        taken = timed(lambda: self.host.call("KSampler", model=model, seed=seed, **how, **sides), self.device)
        return taken["cpu_seconds" if self.device == "cpu" else "seconds"] / self.steps

    def repetition(self) -> dict[str, float]:
        fresh, four = self.reference(), self.reference()
        first, first_four = self.apply(fresh), self.apply(four)
        found = {"plain": self.step(self.model, self.clip), "first": self.step(*first)}
        self.kept = fresh.bank.nbytes
        return found | {
            "first, empty prompt known": self.step(*first, prompt="a painting of a * in the snow"),
            "every further": self.step(*first, seed=1),
            "plain ×4": self.step(self.model, self.clip, batch=4),
            "first ×4": self.step(*first_four, batch=4),
        }

    def count(self) -> dict[str, dict[str, float]]:
        """{case: GFLOP of one row's step and peak bytes}, all keys kept: the plain model, the first picture, a further one."""
        reference = self.reference()
        with_vico = self.apply(reference, mask="none")
        cases = {"plain": (self.model, self.clip), "first": with_vico, "further": with_vico}
        counted = {case: self.counted(*pair) for case, pair in cases.items()}
        self.all_keys = reference.bank.nbytes
        return counted

    def counted(self, model, clip) -> dict[str, float]:
        self.reset_peak()
        with flop_counter() as counter:
            self.step(model, clip)
        return {"gflop": counter.get_total_flops() / ROWS / self.steps / 1e9, "peak": self.peak()}

    def added_waits(self) -> dict[str, int]:
        """Reads and copies that the host waits for in a step, more than in the plain one: first picture or further, the most."""
        applied = self.apply(self.reference())
        plain, first, further = (self.waits(*pair) for pair in ((self.model, self.clip), applied, applied))
        return {f"added_{kind}": max(first[kind], further[kind]) - plain[kind] for kind in ("reads", "copies")}

    def waits(self, model, clip) -> dict[str, int]:
        model = model.clone()
        steps = counted_steps(model)
        self.step(model, clip)
        return {kind: max(step[kind] for step in steps) for kind in ("reads", "copies")}

    def reset_peak(self) -> None:
        if self.torch.cuda.is_available():
            self.torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident size starts anew

    def peak(self) -> int:
        """Peak bytes of the GPU's allocator, or of the process, since `reset_peak`."""
        if self.torch.cuda.is_available():
            return self.torch.cuda.max_memory_allocated()
        return resident("VmHWM")


def measure(host: Host, size: int, device: str, repetitions: int, width: int, steps: int, dense: bool) -> dict:
    bench = Bench(host, size, device, width, steps, dense)
    counted = bench.count()  # also the warm-up
    seconds = medians([bench.repetition() for _ in range(repetitions)])
    gflop = {case: of["gflop"] for case, of in counted.items()}
    gflop["modules"] = gflop["further"] - gflop["plain"]
    return {
        "seconds": seconds,
        "gflop": gflop,
        "kept_keys": bench.kept / bench.all_keys,
        "cached_over_plain": seconds["every further"] / seconds["plain"],
        "first_over_plain": seconds["first"] / seconds["plain"],
        "first_empty_known_over_plain": seconds["first, empty prompt known"] / seconds["plain"],
        "batch4_first_over_plain": seconds["first ×4"] / seconds["plain ×4"],
        "flop_limit": 1 + gflop["modules"] / gflop["plain"],
        "first_flop_limit": gflop["first"] / gflop["plain"],
        "peak_memory_ratio": counted["first"]["peak"] / counted["plain"]["peak"],
        **bench.added_waits(),
    }


def text(size: int, result: dict) -> str:
    lines = [f"\n{size}², a step with guidance: seconds (over plain)"]
    for case in CASES:
        seconds, plain = (result["seconds"][name] for name in (case, "plain ×4" if case.endswith("×4") else "plain"))
        lines.append(f"  {case:28} {seconds:8.3f}   {seconds / plain:5.2f}×")
    gflop, limits = result["gflop"], (result["flop_limit"], result["first_flop_limit"])
    counted = "GFLOP a row, all keys: plain {plain:.0f}, the modules {modules:.0f}, first {first:.0f}".format(**gflop)
    by_flops = "limit by FLOPs: further {:.2f}×, first {:.2f}×".format(*limits)
    kept = f"keys kept by the mask {result['kept_keys']:.0%}"
    lines += [f"  {counted}", f"  {by_flops}; {kept}", f"  peak memory over plain {result['peak_memory_ratio']:.2f}×"]
    lines.append(
        f"  a step adds {result['added_reads']} reads and {result['added_copies']} copies that the host waits for"
    )
    return "\n".join(lines)


def main() -> None:
    parser = flags(__doc__, repetitions=(3, "medians of so many"), width=(320, "the U-Net's width; 320 is SD1.x"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="picture sides in pixels")
    parser.add_argument("--steps", type=int, help="sampling steps of a picture; default 1 on the CPU, 20 on a GPU")
    parser.add_argument("--dense", action="store_true", help="image attention as ViCo Options' dense has it")
    device_flag(parser)
    options = parser.parse_args()
    host = Host(device=options.device)
    steps = options.steps or (1 if options.device == "cpu" else 20)
    given = (options.device, options.repetitions, options.width, steps, options.dense)
    results = {size: measure(host, size, *given) for size in options.sizes}
    found = {**machine(options.device), **results[max(results)], "sizes": results}
    head = f"{found['machine']}, torch {found['torch']}, median of {options.repetitions}"
    finish(found, options, "\n".join([head, *(text(size, result) for size, result in results.items())]))


if __name__ == "__main__":
    main()
