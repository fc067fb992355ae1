"""Write files atomically and identify their content by hash. A file is written under a partial name with an attempt id,
fsynced, and moved to its final name; or linked, where the first writer should win, even against a worker presumed
dead."""

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from loop.errors import UserError
from loop.store.tables import damaged, digest

PARTIAL = ".partial-" + "[0-9a-f]" * 8
"""How the names of files and folders end, as a pattern, until they are complete; they begin with a dot."""
CHECKSUM = "checksum"
"""Key of a record's own checksum, which is left out when it is read."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Identity of a finished file; mtime_ns makes a cheap check at start-up possible."""

    sha256: str
    size: int
    mtime_ns: int


def write_file(path: Path, content: bytes, *, replace: bool = True) -> FileRecord:
    """Write `content` to `path` atomically. With replace=False the first writer wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _place(partial, path, replace=replace)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return FileRecord(hashlib.sha256(content).hexdigest(), len(content), path.stat().st_mtime_ns)


def _place(partial: Path, path: Path, *, replace: bool) -> None:
    if replace:
        partial.replace(path)
        return
    try:
        os.link(partial, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            partial.replace(path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def share(source: Path, target: Path) -> bool:
    """Hard-link a finished file, or copy it with its time where links are not possible; whether it was linked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        return False
    return True


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` at the end of the `with` block; after an error nothing is left of it. It
    is locked, so that the folders of killed processes beside `target` can be told from those of others, and removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".*{PARTIAL}"):
        if leftover.is_dir():
            _remove_unlocked(leftover)
    partial = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    handle = os.open(partial, os.O_RDONLY)
    try:
        take_lock(handle)
        yield partial
        partial.rename(target)
    finally:
        os.close(handle)
        shutil.rmtree(partial, ignore_errors=True)


def _remove_unlocked(leftover: Path) -> None:
    handle = os.open(leftover, os.O_RDONLY)
    try:
        if take_lock(handle):
            shutil.rmtree(leftover, ignore_errors=True)
    finally:
        os.close(handle)


def take_lock(file: int | IO[Any], *, wait: bool = False) -> bool:
    """Lock an open file or folder for this process; whether it got the lock. With `wait`, it waits until it is free."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line; a line cut off by a kill is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END) is None or file.read(1) != b"\n"):
            file.write(b"\n")
        file.write(json.dumps(row, sort_keys=True, default=str).encode("utf-8") + b"\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines. UserError if it is damaged."""
    try:
        return _objects(path, [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a file of JSON lines that may still be written to; empty if there is no file. UserError if a
    row is no object."""
    if not path.exists():
        return []
    rows = [read_line(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return _objects(path, [row for row in rows if row is not None])


def _objects(path: Path, rows: list[Any]) -> list[dict[str, Any]]:
    if not all(isinstance(row, dict) for row in rows):
        raise damaged(path, "a line is no JSON object")
    return rows


def last_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The complete rows of a file of JSON lines, the last one first; nothing if there is no file."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    yield from (row for line in reversed(lines) if isinstance(row := read_line(line), dict))


def read_line(line: bytes) -> Any:
    """The value of a line of JSON; None if it is none."""
    with suppress(ValueError, RecursionError):
        return json.loads(line)
    return None


def to_json(value: object) -> bytes:
    """Readable JSON with a final newline."""
    return (json.dumps(value, indent=1, sort_keys=True, default=str) + "\n").encode("utf-8")


def sealed_json(value: dict[str, Any]) -> bytes:
    """As `to_json`, with a checksum that `has_its_checksum` compares with the rest."""
    return to_json({**value, CHECKSUM: digest(json.loads(to_json(value)))})


def read_json(path: Path) -> Any:
    """The JSON at `path`, without its checksum. UserError if it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise damaged(path, "it is missing") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error
    if isinstance(found, dict):
        found.pop(CHECKSUM, None)
    return found


def has_its_checksum(path: Path) -> bool:
    """Whether a readable record is as it was written; true of one without a checksum."""
    found = json.loads(path.read_text(encoding="utf-8"))
    noted = found.pop(CHECKSUM, None) if isinstance(found, dict) else None
    return noted in (None, digest(found))


def is_readable(read: Callable[[], object]) -> bool:
    """Whether reading a file, or several, gives no UserError."""
    try:
        read()
    except UserError:
        return False
    return True


def sha256_of(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_of(path: Path) -> FileRecord:
    """The record of a file that is finished."""
    stat = path.stat()
    return FileRecord(sha256_of(path), stat.st_size, stat.st_mtime_ns)


def is_intact(path: Path, record: FileRecord) -> bool:
    """Whether a file exists and has the recorded content."""
    return path.exists() and path.stat().st_size == record.size and sha256_of(path) == record.sha256
