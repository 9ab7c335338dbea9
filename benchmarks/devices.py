"""What a figure of speed was measured on, and the peak that it is held against."""

from __future__ import annotations

import platform

import torch

PEAK_BFLOAT16_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
"""Dense bfloat16 matrix products with float32 accumulation, from NVIDIA's data sheets (SXM boards)."""


def choose_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe_device(precision: str) -> str:
    """Device, type and torch build in one line; the trainer computes with one thread of a CPU unless told otherwise."""
    on_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU, 1 thread"
    return f"{name}, {precision}, torch {torch.__version__}"


def find_peak_flops() -> float | None:
    """Peak FLOP/s of the GPU in bfloat16; None on a CPU or an unknown GPU, where no utilisation is printed."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAK_BFLOAT16_FLOPS.items() if key in name), None)
