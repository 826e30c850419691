"""What a step of ViCo's training costs: python -m vico_spin.benchmarks.vico_training [--sizes 256] [--device cuda] [--json]

Three ways to take the same step (loss, gradients, AdamW) on one model, in turn, in the same run: a plain two-stream step
written as the authors' code does it (both streams to the end, attention matrices kept, Otsu in a loop, all keys under a mask);
ours; ours with the reference detached. Beside them ComfyUI's own TrainLoraNode on the same model. U-Net of SD1.x's full shape,
random weights (speed does not depend on them; the share of keys that the mask keeps does, and is printed). CPU seconds of the
process stand beside the wall's, because they do not grow with what else runs on the machine.
"""

import argparse
import ctypes
import itertools
import json
import statistics
import time
from contextlib import contextmanager
from pathlib import Path

from ..scripts.host import Host
from .machine import machine_name, resident

CASES = ["original", "ours", "ours, reference detached"]
PROMPT = "a photo of a *"


class Bench:
    """One model with image attention, one batch; each case is one optimiser step on it."""

    def __init__(self, host: Host, size: int, width: int):
        import torch

        from ..nodes.host.copies import load_for_training, training_copy, training_mode
        from ..nodes.vico.places import places_of
        from ..nodes.vico.streams import HostStreams, training_clip
        from ..scripts import models
        from ..train_core import LocalEngine
        from ..vico_core.training import Batch, TrainedConcept, ViCoObjective

        self.torch, self.host, self.objective = torch, host, ViCoObjective
        self.make = lambda disable_dynamic=False: models.sd1(width=width, context_dim=768)
        self.stack = training_mode()
        self.stack.__enter__()
        self.patcher = training_copy(self.make())
        clip = training_clip(models.clip(width=768, heads=12, intermediate=3072, layers=12))
        load_for_training([self.patcher, clip.patcher])
        self.unet = self.patcher.model.diffusion_model
        self.device = self.patcher.load_device
        shapes = places_of(self.patcher.model)[1]
        self.trained = TrainedConcept(shapes, {"l": torch.randn(1, 768)}).to(self.device)
        engine = LocalEngine(self.device)
        self.ours = HostStreams(self.patcher, clip, self.trained, "*", engine)
        self.detached = HostStreams(self.patcher, clip, self.trained, "*", engine, detach_reference=True)
        self.original = OriginalStreams(self.ours)
        generator = torch.Generator().manual_seed(0)
        latents = [torch.randn(1, 4, size // 8, size // 8, generator=generator).to(self.device) for _ in range(3)]
        self.batch = Batch(*latents, torch.tensor([500], device=self.device), [PROMPT])
        self.plain_optimizer = torch.optim.AdamW(self.trained.groups(word_lr=0.0, attention_lr=0.0), weight_decay=0.01)
        # Rates of 0: every step sees the same weights.
        self.optimizer = self.trained.optimizer(word_lr=0.0, attention_lr=0.0)

    def step(self, case: str) -> dict:
        """One step: wall and CPU seconds, bytes that it adds at its peak, loss, and the word's gradient."""
        streams = {"original": self.original, "ours": self.ours}.get(case, self.detached)
        optimizer = self.plain_optimizer if case == "original" else self.optimizer
        before = self.reset_peak()
        start, cpu = time.perf_counter(), time.process_time()
        loss = self.objective(streams)(self.batch, lambda loss: loss.backward())["loss"].item()
        gradient = self.trained.words["l"].grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"wall": wall, "cpu": cpu, "peak": self.peak() - before, "loss": loss, "gradient": gradient}

    def check(self) -> float:
        """Largest relative difference of loss and word gradient between the authors' way and ours."""
        a, b = self.step("original"), self.step("ours")
        gradients = (a["gradient"] - b["gradient"]).abs().max() / a["gradient"].abs().max()
        return max(abs(a["loss"] - b["loss"]) / abs(a["loss"]), gradients.item())

    def kept_keys(self) -> float:
        """Share of the reference's tokens that the automatic mask keeps, over all places."""
        from ..nodes.vico.streams import GradedCapture

        context, columns, end = self.ours.encode(self.batch.captions, self.batch.x0)
        capture = GradedCapture(self.ours.places, columns, end, None)
        with self.torch.no_grad(), self.ours.image_attention():
            timestep = self.batch.t.float()
            self.ours.run_reference(self.batch.reference, timestep, context, capture, {})
        kept = [capture.masks[place.name][0] for place in self.ours.places]
        return (sum(m.sum() for m in kept) / sum(m.numel() for m in kept)).item()

    def reset_peak(self) -> int:
        """What is resident now; from here the peak is counted."""
        if self.device.type == "cuda":
            self.torch.cuda.reset_peak_memory_stats()
            return self.torch.cuda.memory_allocated()
        return reset_resident_peak()

    def peak(self) -> int:
        return self.torch.cuda.max_memory_allocated() if self.device.type == "cuda" else resident("VmHWM")

    def train_lora(self, size: int, checkpointing: bool) -> tuple[float, float, int]:
        """ComfyUI's TrainLoraNode, float32, rank 8: (wall, CPU) seconds of a further step, and the peak that a step adds."""
        torch = self.torch
        model = self.make()
        model.cached_patcher_init = (self.make, ())
        node = self.host.node_classes["TrainLoraNode"].PREPARE_CLASS_CLONE({"hidden_inputs": {}})
        latents = {"samples": torch.randn(1, 4, size // 8, size // 8)}
        settings = {
            "batch_size": 1, "grad_accumulation_steps": 1, "learning_rate": 1e-5, "rank": 8, "optimizer": "AdamW",
            "loss_function": "MSE", "seed": 0, "training_dtype": "fp32", "lora_dtype": "fp32", "quantized_backward": False,
            "algorithm": "LoRA", "gradient_checkpointing": checkpointing, "checkpoint_depth": 1, "offloading": False,
            "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False,
        }  # fmt: skip
        marks = []

        class Marked(torch.optim.AdamW):
            """Notes when each step ends: the node itself only gives back the losses."""

            def step(self, *args, **kwargs):
                result = super().step(*args, **kwargs)
                self.zero_grad()  # as ours is measured: between two steps there are no gradients
                marks.append((time.perf_counter(), time.process_time(), resident("VmHWM"), reset_resident_peak()))
                return result

        plain, torch.optim.AdamW = torch.optim.AdamW, Marked
        try:
            with torch.inference_mode():
                inputs = {name: [value] for name, value in settings.items()}
                node.execute(
                    model=[model], latents=[latents], positive=[[[torch.randn(1, 77, 768), {}]]], steps=[4], **inputs
                )
        finally:
            torch.optim.AdamW = plain
        steps = list(itertools.pairwise(marks))
        wall, cpu = (statistics.median(b[i] - a[i] for a, b in steps) for i in (0, 1))
        return wall, cpu, max(b[2] - a[3] for a, b in steps)


def reset_resident_peak() -> int:
    """Gives freed memory back to the system, starts VmHWM again, and returns what is resident."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def host_name(place) -> tuple[str, int, int]:
    """A place as the host's patches_replace names it."""
    numbers = [int(part) for part in place.block.split(".") if part.isdigit()]
    return "output", numbers[0], numbers[-1]


class OriginalStreams:
    """The step as haoosz/ViCo writes it, in the same U-Net with the same modules: a yardstick, not for use."""

    def __init__(self, ours):
        import torch

        from ..vico_core.training import Predicted

        self.torch, self.ours, self.predicted = torch, ours, Predicted
        self.schedule, self.prediction = ours.schedule, ours.prediction

    def predict(self, x_t, batch):
        from ..train_core import cat_contexts

        captions = [self.ours.encode(caption, x_t) for caption in batch.captions]
        context = cat_contexts([caption.conditions for caption in captions])
        timestep = batch.t.float()
        self.tokens, self.masks, self.maps = {}, {}, {}
        self.columns, self.end_of_text = captions[0].columns, captions[0].end_of_text
        options = {"optimized_attention_override": lambda plain, *a, **k: self.attention(*a, **k)}
        with self.at_places(self.reference_block):
            places = {host_name(place): self.text_attention(place) for place in self.ours.places}
            self.ours.forward(batch.reference, timestep, context, {**options, "patches_replace": {"attn2": places}})
        with self.at_places(self.noisy_block):
            prediction = self.ours.forward(x_t, timestep, context, options)
        return self.predicted(prediction, [self.maps[place.name] for place in self.ours.places])

    @contextmanager
    def at_places(self, make):
        import comfy.utils

        blocks = [comfy.utils.get_attr(self.ours.unet, place.block) for place in self.ours.places]
        for block, place in zip(blocks, self.ours.places, strict=True):
            block.forward = make(block.forward, place)
        try:
            yield
        finally:
            for block in blocks:
                del block.forward

    def reference_block(self, plain, place):
        def forward(x, context=None, transformer_options=None):
            self.tokens[place.name] = plain(x, context=context, transformer_options=transformer_options)
            return self.tokens[place.name]

        return forward

    def noisy_block(self, plain, place):
        module = self.ours.modules[place.name.replace(".", "_")]

        def forward(x, context=None, transformer_options=None):
            x = plain(x, context=context, transformer_options=transformer_options)
            normed = module.norm1(x)
            x = x + self.attend(module.attn1, normed, normed)
            x = x + self.attend(module.attn2, module.norm2(x), self.tokens[place.name], self.masks[place.name])
            return x + module.ff(module.norm3(x))

        return forward

    def text_attention(self, place):
        def attention(q, k, v, extra_options):
            out, probabilities = self.explicit(q, k, v, extra_options["n_heads"])
            mean = probabilities.mean(1)  # [B, M, T]
            self.maps[place.name] = (mean[:, :, self.columns[0]], mean[:, :, self.end_of_text[0]])
            self.masks[place.name] = self.otsu(self.maps[place.name][0].detach())
            return out

        return attention

    def otsu(self, maps):
        """Threshold by threshold and map by map, in Python, as the original does."""
        masks = []
        for a in maps:
            a = (a - a.min()) / (a.max() - a.min())
            best, threshold = 0.0, 0.0
            for t in (i * 0.1 for i in range(10)):
                low, high = a[a < t], a[a >= t]
                if low.numel() and high.numel():
                    variance = low.numel() * high.numel() / a.numel() ** 2 * (low.mean() - high.mean()) ** 2
                    if variance > best:
                        best, threshold = variance, t
            masks.append(a >= threshold)
        return self.torch.stack(masks)

    def attend(self, attn, x, context, mask=None):
        out, _ = self.explicit(attn.to_q(x), attn.to_k(context), attn.to_v(context), attn.heads, mask)
        return attn.to_out[0](out)

    def attention(self, q, k, v, heads, **_):
        return self.explicit(q, k, v, heads)[0]

    def explicit(self, q, k, v, heads, mask=None):
        """softmax(q kᵀ / √d) v with the matrix written out: (out [B, N, inner], probabilities [B, heads, N, M])."""
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        similarity = self.torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
        if mask is not None:
            similarity = similarity.masked_fill(~mask[:, None, None], -self.torch.finfo(similarity.dtype).max)
        probabilities = similarity.softmax(dim=-1)
        out = self.torch.einsum("bhij,bhjd->bhid", probabilities, v)
        return out.transpose(1, 2).flatten(2), probabilities


def measure(bench: Bench, repetitions: int) -> dict:
    difference = bench.check()
    bench.step(CASES[2])
    runs = [{case: bench.step(case) for case in CASES} for _ in range(repetitions)]
    wall, cpu, peak = (
        {case: statistics.median(run[case][what] for run in runs) for case in CASES} for what in ("wall", "cpu", "peak")
    )
    weights = sum(p.nbytes for module in (bench.unet, bench.trained) for p in module.parameters())
    return {
        "seconds": wall,
        "cpu_seconds": cpu,
        "peak_bytes": peak,
        "weight_bytes": weights,
        "difference": difference,
        "kept_keys": bench.kept_keys(),
        "time_over_original": wall["ours"] / wall["original"],
        "cpu_time_over_original": cpu["ours"] / cpu["original"],
        "memory_over_original": peak["ours"] / peak["original"],
        "detached_time_over_ours": wall[CASES[2]] / wall["ours"],
        "detached_memory_over_ours": peak[CASES[2]] / peak["ours"],
    }


def lora(bench: Bench, size: int) -> dict:
    """TrainLoraNode as it comes (gradient checkpointing on) and without."""
    found = {}
    for name, checkpointing in {"checkpointed": True, "plain": False}.items():
        wall, cpu, peak = bench.train_lora(size, checkpointing)
        found[name] = {"seconds": wall, "cpu_seconds": cpu, "peak_bytes": peak}
        row(f"TrainLoraNode, {name}", wall, cpu, peak)
    return found


def row(name: str, seconds: float, cpu: float, peak: float) -> None:
    print(f"  {name:34} {seconds:8.2f} {cpu:8.2f} {peak / 2**20:8.0f} MB", flush=True)


def show(size: int, result: dict) -> None:
    print(f"\n{size}², batch 1: seconds a step, CPU seconds, memory that a step adds at its peak")
    for case in CASES:
        row(case, *(result[key][case] for key in ("seconds", "cpu_seconds", "peak_bytes")))
    print(
        f"  ours over original: time {result['time_over_original']:.3f} (CPU time {result['cpu_time_over_original']:.3f}), "
        f"memory {result['memory_over_original']:.3f}; same loss and gradient to {result['difference']:.1e}; keys kept {result['kept_keys']:.0%}"
    )
    print(
        f"  the fast mode (reference detached) over ours: time {result['detached_time_over_ours']:.3f}, "
        f"memory {result['detached_memory_over_ours']:.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256], help="picture sides in pixels")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--width", type=int, default=320, help="the U-Net's width; 320 is SD1.x")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on the last line; its top keys are of the largest size"
    )
    options = parser.parse_args()
    host = Host(device=options.device)
    import torch

    machine = machine_name(options.device)
    print(f"{machine}, torch {torch.__version__}, median of {options.repetitions}, U-Net width {options.width}")
    results = {}
    for size in options.sizes:
        bench = Bench(host, size, options.width)
        results[size] = measure(bench, options.repetitions)
        show(size, results[size])
        results[size]["train_lora"] = lora(bench, size)
    if options.json:
        print(json.dumps({"machine": machine, "torch": torch.__version__, **results[max(results)], "sizes": results}))


if __name__ == "__main__":
    main()
