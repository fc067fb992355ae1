"""Room `trainer/`, memory in large pages. In: a process about to train on a CPU; out: a torch that asks Linux for
pages of 2 MB. Each row allocates and frees gigabytes; fetched in pages of 4 kB they cost up to half the time of a
short step."""

import os


def use_huge_pages() -> None:
    """Takes effect if torch has allocated nothing in this process yet; elsewhere than on Linux it does nothing."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
