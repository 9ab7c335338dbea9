"""The process that a run executes in: its device, and the globals that an earlier run may have left changed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from foretune.errors import InputError


def reset_process(seed: int) -> None:
    """Give the globals below the values that the proxies are trained with; workers are reused between runs.

    They are: default dtype and device, gradient mode, anomaly detection, autocast, float32 precision, deterministic
    algorithms, denormals, threads and the random state. On a GPU algorithms are deterministic; on a CPU those that the
    proxies use are so anyhow.
    """
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)  # "cpu" would put a function mode around every call
    torch.set_grad_enabled(True)
    torch.autograd.set_detect_anomaly(False)
    for device_type in ("cpu", "cuda"):
        torch.set_autocast_enabled(device_type, False)  # the backward pass runs outside of our own autocast
    _make_deterministic()
    torch.set_float32_matmul_precision("highest")  # float32 means float32, TF32 is not used
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_flush_denormal(False)
    torch.set_num_threads(count_threads())
    torch.manual_seed(seed)


def _make_deterministic() -> None:
    """Equal bits from equal runs; cuBLAS needs its workspace fixed before the first call (cuBLAS, Reproducibility)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(torch.cuda.is_available())
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def count_threads() -> int:
    """Threads on the CPU: `FORETUNE_THREADS`, by default 1, since runs in parallel use the cores better."""
    text = os.environ.get("FORETUNE_THREADS", "1")
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"FORETUNE_THREADS must be a whole number of at least 1, got {text!r}")
    return int(text)


def choose_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe_device(device: torch.device) -> str:
    """Device and torch build: what a result may depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x {torch.get_num_threads()}"
    return f"{name}, torch {torch.__version__}"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The precision of the forward pass; off for float32, also where a caller had switched it on."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def send(values: Sequence[float], device: torch.device) -> Tensor:
    """Numbers to the device, without waiting for it: only pinned memory is copied beside work."""
    tensor = torch.tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
