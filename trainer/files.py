"""Write files and folders that survive a kill: under a partial name first, renamed once they are on the disk."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

PARTIAL = ".partial"


def default_cache() -> Path:
    """Folder of what is made once for all runs: $PREFLOOP_CACHE, else prefloop's folder in the user's cache."""
    if chosen := os.environ.get("PREFLOOP_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prefloop"


def fresh_partial(target: Path) -> Path:
    """An empty folder next to `target` to write into; what a killed attempt left there is removed."""
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish_folder(partial: Path, target: Path) -> None:
    """Flush everything under `partial` and rename it."""
    for path in sorted(partial.rglob("*")):
        sync(path)
    sync(partial)
    partial.rename(target)
    sync(target.parent)


def publish_file(partial: Path, target: Path) -> None:
    """Flush `partial` and rename it, replacing an older `target`."""
    sync(partial)
    partial.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Flush one file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Human-readable JSON, keys as given."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value that `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
