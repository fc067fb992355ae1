"""Folder that passes weights from trainer to engine within an iteration, in shared memory if there is room. The driver
locks it, so a leftover folder is recognised by its free lock."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loop.store.files import take_lock

SHARED = Path("/dev/shm")
COPIES = 3
"""Shared memory must have room for this many copies of the weights: the old ones, the new ones, and a spare."""


@contextmanager
def handover_folder(weights: Path, spare: Path) -> Iterator[Path]:
    """An empty folder, removed at the end: in shared memory if that has room for models like the one in `weights`, else
    `spare`. Removes leftovers of the user's killed drivers first."""
    prefix = f"prefloop-{os.getuid()}-"
    for leftover in SHARED.glob(f"{prefix}*"):
        if (lock := _locked(leftover)) is not None:
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(lock)
    shutil.rmtree(spare, ignore_errors=True)
    size = sum(path.stat().st_size for path in weights.iterdir() if path.is_file())
    room = SHARED.is_dir() and shutil.disk_usage(SHARED).free >= COPIES * size
    folder, lock = _new_folder(prefix) if room else (None, None)
    if folder is None:
        spare.mkdir(parents=True)
    try:
        yield folder or spare
    finally:
        shutil.rmtree(folder or spare, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _new_folder(prefix: str) -> tuple[Path | None, int | None]:
    """A new folder in shared memory and its lock; None if it cannot be written or locked, or if another driver removed
    it as a leftover before it was locked."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=SHARED))
    except OSError:
        return None, None
    lock = _locked(folder)
    if lock is not None and folder.is_dir():
        return folder, lock
    if lock is not None:
        os.close(lock)
    shutil.rmtree(folder, ignore_errors=True)
    return None, None


def _locked(folder: Path) -> int | None:
    """A handle that locks the folder until it is closed; None if the folder is locked or gone."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    with suppress(OSError):
        if take_lock(handle):
            return handle
    os.close(handle)
    return None
