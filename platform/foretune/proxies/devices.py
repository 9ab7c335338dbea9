"""What this machine has to train on."""

from __future__ import annotations

import torch


def count_gpus() -> int:
    """GPUs that torch sees."""
    return torch.cuda.device_count()


def count_free_bytes(share: float) -> int:
    """Bytes that are free on the current GPU, of the share of its memory that is meant; 0 where there is no GPU."""
    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return int(min(free, total * min(share, 1.0)))
