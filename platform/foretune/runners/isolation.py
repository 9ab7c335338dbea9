"""A run must not see what the run before it left behind in the process: workers are used again and again.

What is put back after each run: environment, working folder, file mask, built-ins, random states, and of torch (where
a run has imported it) default dtype and device, gradient mode, threads, deterministic flags and float32 matmul
precision.
Seen to leak in Ray workers that are reused: all of these.
"""

from __future__ import annotations

import builtins
import gc
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

THREADS_VARIABLE = "FORETUNE_THREADS"
"""Environment variable that tells a trainer how many CPU threads it may compute with."""


@contextmanager
def isolate(threads: int) -> Iterator[None]:
    """Run the body with `threads` compute threads (at least one), and put the process back as it was afterwards."""
    environment, folder, mask = dict(os.environ), os.getcwd(), _read_mask()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    built_in = dict(vars(builtins))
    torch_state = _read_torch()
    threads = max(1, threads)
    os.environ[THREADS_VARIABLE] = str(threads)
    _write_torch(torch_state | {"threads": threads})
    gc.freeze()  # the collection below then looks at what the run made only: 20 ms a trivial run, not 230
    try:
        yield
    finally:
        _restore_environment(environment)
        os.chdir(folder)
        os.umask(mask)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        _restore_builtins(built_in)
        gc.collect()  # before the GPU cache is emptied: tensors in cycles hold their memory
        gc.unfreeze()
        _write_torch(torch_state)


def _read_mask() -> int:
    mask = os.umask(0o077)  # the only way to read it is to set it
    os.umask(mask)
    return mask


def _restore_environment(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def _restore_builtins(built_in: dict[str, Any]) -> None:
    current = vars(builtins)
    for name in current.keys() - built_in.keys():
        del current[name]
    current.update(built_in)


def _read_torch() -> dict[str, Any]:
    """Torch's process-wide settings; the documented defaults where it is not imported yet."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        unset = {"dtype": "float32", "device": None, "grad": True, "precision": "highest"}
        return unset | {"deterministic": False, "warn_only": False}
    device = torch.get_default_device()
    return {
        "device": None if device.type == "cpu" else device,  # setting "cpu" would slow every call; None means it
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
    }


def _write_torch(state: dict[str, Any]) -> None:
    """Apply such settings where torch is imported; this module never imports it."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    torch.set_default_dtype(getattr(torch, state["dtype"]))
    torch.set_default_device(state["device"])
    torch.set_grad_enabled(state["grad"])
    torch.use_deterministic_algorithms(state["deterministic"], warn_only=state["warn_only"])
    torch.set_float32_matmul_precision(state["precision"])
    if "threads" in state:
        torch.set_num_threads(state["threads"])
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # another run may share this GPU
