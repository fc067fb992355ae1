"""Keeps what was computed from an iteration that is decided, so that a long run is not read as a whole again and again.
A kept value counts as long as the files that it comes from have the same sizes and times."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from loop.store.files import write_file
from loop.store.run_folder import RunFolder
from loop.store.tables import digest

T = TypeVar("T")
FORMAT = 1
"""Raise it when kept values of another version would be misread or wrong."""
_REMEMBERED: dict[Path, tuple[str, object]] = {}
"""By file, in this process: the identity of its sources, and the value."""


def sources_of(run: RunFolder, k: int) -> str | None:
    """Identifies the records of an iteration by their sizes and times; None while it is not evaluated and decided."""
    paths = run.record_paths(k)
    decided, evaluated = _stat(paths.decision), [_stat(path) for path in paths.evaluations]
    if decided is None or not any(evaluated):
        return None
    manifests = [_stat(path) for path in paths.manifests]
    return digest([FORMAT, decided, evaluated, manifests])


def _stat(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def kept(path: Path, sources: str, kind: TypeAdapter[T]) -> T | None:
    """The value that was kept under these sources, from memory or from its file; None if there is none."""
    known = _REMEMBERED.get(path)
    if known is not None and known[0] == sources:
        return known[1]  # type: ignore[return-value]
    with suppress(OSError, ValueError, KeyError, TypeError, ValidationError):
        found = json.loads(path.read_bytes())
        if found["sources"] == sources:
            value = kind.validate_python(found["value"])
            _REMEMBERED[path] = (sources, value)
            return value
    return None


def keep(path: Path, sources: str, kind: TypeAdapter[T], value: T) -> None:
    """Keep a value; where the run cannot be written, for this process alone."""
    _REMEMBERED[path] = (sources, value)
    content = {"sources": sources, "value": kind.dump_python(value, mode="json")}
    with suppress(OSError):
        write_file(path, json.dumps(content).encode("utf-8"))


def computed_once(path: Path, sources: str, kind: TypeAdapter[T], compute: Callable[[], T]) -> T:
    """The kept value, or else what `compute` returns, which is kept from now on."""
    found = kept(path, sources, kind)
    if found is None:
        found = compute()
        keep(path, sources, kind, found)
    return found
