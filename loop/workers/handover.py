"""Folder that passes weights from trainer to engine within an iteration, in shared memory if there is room. Its driver
holds a lock on it, so a folder that a killed driver left behind is recognised by its free lock."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loop.store.files import take_lock

SHARED = Path("/dev/shm")
COPIES = 3
"""Room for so many copies of the weights is asked for: the old ones, the new ones, and a tail."""


@contextmanager
def handover_folder(weights: Path, spare: Path) -> Iterator[Path]:
    """An empty folder, removed in the end: in shared memory if that has room for models like the one in `weights`, else
    `spare`. First removes what the user's killed drivers left in shared memory."""
    prefix = f"prefloop-{os.getuid()}-"
    for left in SHARED.glob(f"{prefix}*"):
        if (lock := _locked(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    shutil.rmtree(spare, ignore_errors=True)
    size = sum(path.stat().st_size for path in weights.iterdir() if path.is_file())
    room = SHARED.is_dir() and shutil.disk_usage(SHARED).free >= COPIES * size
    folder, lock = _made(prefix) if room else (None, None)
    if folder is None:
        spare.mkdir(parents=True)
    try:
        yield folder or spare
    finally:
        shutil.rmtree(folder or spare, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _made(prefix: str) -> tuple[Path | None, int | None]:
    """A new folder of shared memory and the lock on it; None if this user may not write or lock, or if another driver
    took it for an abandoned one before it was locked."""
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
    """A handle that holds the folder for this process until it is closed; None if it is held or gone."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    with suppress(OSError):
        if take_lock(handle):
            return handle
    os.close(handle)
    return None
