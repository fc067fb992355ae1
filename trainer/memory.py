"""Memory: 2 MB pages on Linux CPUs (rows allocate gigabytes; 4 kB pages take half of a short step), and the peak."""

import os
import resource
import sys

import torch


def use_huge_pages() -> None:
    """Must be called before torch allocates memory in this process; no effect except on Linux."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process so far, in 10⁹ bytes: allocated by torch on a CUDA device, else the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
