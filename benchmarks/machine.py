"""What the numbers were measured on, and the memory that the process takes there."""

import platform
from pathlib import Path

import torch


def machine_name(device: str) -> str:
    """The GPU's name for "cuda"; for "cpu" the processor's, with the threads that torch computes on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def resident(field: str) -> int:
    """VmRSS (resident now) or VmHWM (its peak) of this process in bytes, as Linux counts them."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024
