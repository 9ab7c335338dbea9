"""What this machine has to train on."""

from __future__ import annotations

import torch


def count_gpus() -> int:
    """GPUs that torch sees."""
    return torch.cuda.device_count()
