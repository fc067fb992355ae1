"""Room `trainer/`, memory that stays warm. In: a process about to train on a CPU; out: an allocator that keeps freed
memory. Each row frees and allocates the same gigabytes; by default Linux takes every large block back and hands it out
again as fresh zeroed pages, which costs a third of the time of a short step."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Ask glibc to reuse large blocks for the life of this process; False where there is no glibc."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
