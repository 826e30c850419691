"""What the benchmarks share: flags, cases that take turns, medians, the machine, and one JSON object on the last line.

Torch is imported where it is needed: the host wants to be set up before it.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path


def flags(doc: str, **numbers: tuple[int, str]) -> argparse.ArgumentParser:
    """A parser with --json and whole numbers: flags(__doc__, kills=(50, "how often")) has --kills, 50 by default."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, (default, words) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=words)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    return parser


def device_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")


def finish(found: dict, options, text: str = "") -> None:
    """Prints the text, or else every figure on a line, and with --json the JSON object."""
    print(text or "\n".join(f"{k}: {v:.3f}" if isinstance(v, float) else f"{k}: {v}" for k, v in found.items()))
    if options.json:
        print(json.dumps(found))


def machine(device: str = "cpu") -> dict[str, str]:
    """{"machine", "torch"}: the GPU for "cuda"; for "cpu" the processor, with the threads that torch computes on."""
    import torch

    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return {"machine": name, "torch": torch.__version__}


def resident(field: str) -> int:
    """VmRSS (resident now) or VmHWM (its peak) of this process in bytes, as Linux counts them."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def timed(step: Callable[[], object], device: str = "cpu") -> dict[str, float]:
    """{"seconds": of the wall, "cpu_seconds": of this process, which do not grow with what else runs on the machine}."""
    synchronize = wait_for_gpu if device == "cuda" else lambda: None
    synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    synchronize()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def wait_for_gpu() -> None:
    import torch

    torch.cuda.synchronize()


def in_turn(cases: dict[str, Callable[[], dict]], repetitions: int) -> dict[str, dict[str, float]]:
    """{case: medians of the numbers that it returns}: all cases once a repetition, the first one changing; one to warm up."""
    names, runs = list(cases), []
    for repetition in range(repetitions + 1):
        first = repetition % len(names)
        runs.append({name: cases[name]() for name in names[first:] + names[:first]})
    return {name: medians([run[name] for run in runs[1:]]) for name in names}


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of every number that the runs have."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def flop_counter():
    """Torch's counter of floating point operations, with the CPU's attention kernels, which it does not know."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    aten, name = torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"
    kernels = {
        getattr(aten, name): lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        getattr(aten, f"{name}_backward"): lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
    }
    counter = FlopCounterMode(display=False, custom_mapping=kernels)
    counter.mod_tracker = Whole()
    return counter


class Whole(nullcontext):
    """Instead of torch's tracker of modules, which keeps their tensors alive while bytes are counted."""

    parents = ("Global",)


@contextmanager
def on_paper() -> Iterator["Counted"]:
    """Inside, tensors have shapes and no numbers: what a step of any size takes is counted in seconds, on no memory.

    Build models in it too. Assumes: nothing asks for a value.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ..train_core import Allocated

    with FakeTensorMode(allow_non_fake_inputs=True), Allocated() as held, flop_counter() as flops:
        yield Counted(held, flops)


@dataclass(frozen=True)
class Counted:
    """bytes: held at their peak so far; flops: of all that ran so far."""

    held: object
    counter: object

    @property
    def bytes(self) -> int:
        return self.held.peak

    @property
    def flops(self) -> int:
        return self.counter.get_total_flops()
