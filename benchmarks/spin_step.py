"""What a step of SPIN costs: python -m vico_spin.benchmarks.spin_step [--device cuda] [--json]

Beside it the plain Diffusion-DPO step and ComfyUI's own LoRA trainer. Same model, same batch, same run: every way takes a step in turn, and the table holds medians. Memory is each way's
own peak: of the GPU's allocator, or of a process of its own over the process without a model. --json prints one JSON object as the last line.
"""

import argparse
import copy
import functools
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch

from ..scripts.host import Host, enter
from ..spin_core.batches import PairBatch
from ..spin_core.players import AdapterOff
from ..spin_core.steps import PairStep, SftStep
from ..train_core import LoRA, NoiseSchedule, find_layers, scaled_linear_alphas_cumprod
from .machine import machine_name, resident

WAYS = {
    "plain": "plain Diffusion-DPO: two models, two forwards each",
    "full": "SPIN, full",
    "lora": "SPIN, LoRA",
    "low_memory": "SPIN, LoRA, low memory",
    "sft": "SFT, LoRA (one sample a pair)",
}
LAYERS = r"\.(to_q|to_k|to_v|to_out\.0)$"
RANK, BETA = 16, 2000.0


class UNet:
    """The host's U-Net as a Denoiser."""

    prediction = "epsilon"

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.schedule = NoiseSchedule.from_alphas_cumprod(scaled_linear_alphas_cumprod())

    def predict(self, x_t, t, context):
        return self.module(x_t, t.float(), context=context)


@functools.cache
def base(width: int) -> torch.nn.Module:
    """SD1.x's layout at that width (320 is SD1.x itself)."""
    from ..scripts import models

    return models.sd1(width=width, context_dim=width * 12 // 5).model.diffusion_model.requires_grad_(False)


def fresh(width: int, device: torch.device) -> torch.nn.Module:
    """A copy of its own, on the device."""
    return copy.deepcopy(base(width)).to(device)


def some_pairs(size: int, latent: int, context_dim: int, device: torch.device) -> PairBatch:
    generator = torch.Generator().manual_seed(0)
    real, other, noise = torch.randn(3, size, 4, latent, latent, generator=generator).to(device)
    context = torch.randn(size, 77, context_dim, generator=generator).to(device)
    t = torch.randint(1000, (size,), generator=generator).to(device)
    return PairBatch(real, other, context, t, noise, noise)


def plain_dpo(policy: UNet, reference: UNet, optimizer, batch: PairBatch) -> None:
    """The step of Diffusion-DPO's train.py, written out: nothing shared, nothing left out."""
    losses = {}
    for side, x0 in (("win", batch.real), ("lose", batch.other)):
        x_t = policy.schedule.q_sample(x0, batch.noise_real, batch.t)
        prediction = policy.predict(x_t, batch.t, batch.context)
        losses[side] = (prediction - batch.noise_real).pow(2).mean(dim=(1, 2, 3))
        with torch.no_grad():
            prediction = reference.predict(x_t, batch.t, batch.context)
            losses["ref_" + side] = (prediction - batch.noise_real).pow(2).mean(dim=(1, 2, 3))
    model_difference = losses["win"] - losses["lose"]
    reference_difference = losses["ref_win"] - losses["ref_lose"]
    inside = -0.5 * BETA * (model_difference - reference_difference)
    loss = -1 * torch.nn.functional.logsigmoid(inside).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def ready(way: str, width: int, batch: PairBatch, stack: ExitStack) -> Callable[[], None]:
    """A function that takes one step of that way, with its model built and its optimiser at hand."""
    device = batch.real.device
    network = fresh(width, device)
    if way in ("plain", "full"):
        frozen = fresh(width, device)
        network.requires_grad_(True)
        if way == "plain":
            optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
            return lambda: plain_dpo(UNet(network), UNet(frozen), optimizer, batch)
        return stepper(PairStep(UNet(network), UNet(frozen), BETA), network, batch)
    adapter = LoRA(network, find_layers(network, LAYERS), RANK)
    stack.enter_context(adapter.attached())
    policy = UNet(network)
    if way == "sft":
        return stepper(SftStep(policy), adapter, batch)
    return stepper(PairStep(policy, AdapterOff(policy, adapter), BETA, low_memory=way == "low_memory"), adapter, batch)


def stepper(objective, trained: torch.nn.Module, batch: PairBatch) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        objective(batch, lambda loss: loss.backward())
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds_of(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def times(options, batch: PairBatch) -> dict[str, float]:
    """Median seconds of a step of every way; the ways take turns, so that what else the machine does hits all alike."""
    with ExitStack() as stack:
        steps = {way: ready(way, options.width, batch, stack) for way in WAYS}
        for step in steps.values():
            step()  # the first step allocates
        taken = {way: [] for way in WAYS}
        for _ in range(options.repeats):
            for way, step in steps.items():
                taken[way].append(seconds_of(step, batch.real.device))
    return {way: statistics.median(seconds) for way, seconds in taken.items()}


def measure_memory(way: str, options, batch: PairBatch) -> int:
    """Bytes that two steps of that way add to this process at their peak."""
    cuda = batch.real.is_cuda
    if cuda:
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5")  # what importing took at its peak does not count
    before = torch.cuda.memory_allocated() if cuda else resident("VmRSS")
    with ExitStack() as stack:
        step = ready(way, options.width, batch, stack)
        step()
        step()
    return (torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")) - before


def memories(options, batch: PairBatch) -> Iterator[tuple[str, int]]:
    """The GPU's allocator counts exactly; on the CPU each way has a process of its own."""
    for way in WAYS:
        if batch.real.is_cuda:
            yield way, measure_memory(way, options, batch)
            continue
        same = ["--width", str(options.width), "--batch", str(options.batch), "--latent", str(options.latent)]
        command = [
            sys.executable,
            "-m",
            "vico_spin.benchmarks.spin_step",
            *same,
            "--device",
            options.device,
            "--memory-of",
            way,
        ]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        yield way, int(found.stdout.splitlines()[-1])


def host_trainer_seconds(host: Host, options) -> float:
    """Seconds a sample in ComfyUI's TrainLoraNode: the difference between a long and a short run of it."""
    from ..scripts import models

    context_dim = options.width * 12 // 5

    @functools.cache
    def model(*_, disable_dynamic=True):
        made = models.sd1(width=options.width, context_dim=context_dim)
        made.cached_patcher_init = (model, ())
        return made

    node = host.node_classes["TrainLoraNode"]
    latents = [{"samples": torch.randn(options.batch, 4, options.latent, options.latent)}]
    positive = [[[torch.randn(1, 77, context_dim), {}]] * options.batch]
    fixed = dict(batch_size=options.batch, grad_accumulation_steps=1, learning_rate=1e-6, rank=RANK, optimizer="AdamW")
    fixed |= dict(loss_function="MSE", seed=0, training_dtype="fp32", lora_dtype="fp32", quantized_backward=False)
    fixed |= dict(algorithm="LoRA", gradient_checkpointing=False, checkpoint_depth=1, offloading=False)
    fixed |= dict(existing_lora="[None]", bucket_mode=False, bypass_mode=False)

    def run(steps: int) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            lists = {name: [value] for name, value in fixed.items()}
            node.execute(model=[model()], latents=latents, positive=positive, steps=[steps], **lists)
        return time.perf_counter() - start

    run(1)
    long, short = 1 + options.repeats, 1
    return statistics.median((run(long) - run(short)) / options.repeats for _ in range(3)) / options.batch


def table(seconds: dict, memory: dict, host_sample: float, options) -> str:
    lines = [f"{'':52}{'ms/step':>9}{'pairs/s':>9}{'x plain':>9}{'MiB':>8}{'x plain':>9}"]
    for way, name in WAYS.items():
        cells = f"{1e3 * seconds[way]:9.0f}{options.batch / seconds[way]:9.2f}{seconds[way] / seconds['plain']:9.2f}"
        lines.append(f"{name:52}{cells}{memory[way] / 2**20:8.0f}{memory[way] / memory['plain']:9.2f}")
    ours = seconds["sft"] / options.batch
    lines.append(f"ComfyUI's TrainLoraNode: {1e3 * host_sample:.0f} ms a sample; SFT by LoRA here: {1e3 * ours:.0f} ms")
    return "\n".join(lines)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32, help="model channels; 320 is SD1.x itself")
    parser.add_argument("--batch", type=int, default=2, help="pairs a step")
    parser.add_argument("--latent", type=int, default=16, help="side of the latent; 64 is 512 pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--memory-of", choices=list(WAYS), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    enter(device=options.device)
    device = torch.device(options.device)
    batch = some_pairs(options.batch, options.latent, options.width * 12 // 5, device)
    if options.memory_of:
        print(measure_memory(options.memory_of, options, batch))
        return
    seconds, memory = times(options, batch), dict(memories(options, batch))
    host_sample = host_trainer_seconds(Host(device=options.device), options)
    machine = f"{machine_name(device.type)}, torch {torch.__version__}"
    print(
        f"SD1.x's layout at width {options.width}, latents {options.latent}², {options.batch} pairs, float32; {machine}"
    )
    print(table(seconds, memory, host_sample, options))
    if options.json:
        found = {"machine": machine, "width": options.width, "latent": options.latent, "batch": options.batch}
        print(json.dumps({**found, "seconds": seconds, "bytes": memory, "host_seconds_per_sample": host_sample}))


if __name__ == "__main__":
    main()
