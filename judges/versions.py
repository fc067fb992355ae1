"""Fingerprints of judges, which decide whether two verdicts are comparable."""

import hashlib
import inspect
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from judges.contract import BatchJudge, Judge, PointwiseJudge
from judges.registry import installed_plugins
from judges.types import JudgeError


def fingerprint(judge: Judge, name: str) -> dict[str, Any]:
    """What makes two verdicts comparable: name, all arguments that can change a verdict, and version: the class's own
    for a built-in, else a hash of its file or package, and that of templates and members."""
    version = "+".join(filter(None, (version_of(type(judge)), judge.content_version)))
    return {"name": name, "version": version, "args": judge.model_dump(mode="json", exclude=set(judge.incidental))}


def identity_of(judge: Judge) -> str:
    """sha256 of the judge's fingerprint under its class name, whatever name or path it was built from."""
    if not judge._identity:  # computed once: templates or weights may have to be hashed
        known = fingerprint(judge, type(judge).__qualname__)
        judge._identity = hashlib.sha256(json.dumps(known, sort_keys=True).encode("utf-8")).hexdigest()
    return judge._identity


@cache
def version_of(kind: type[Judge]) -> str:
    """The versions of the classes a judge is made of: a hash for code outside this package, else a number."""
    versions = []
    for part in kind.__mro__:
        if issubclass(part, Judge) and part not in (Judge, PointwiseJudge, BatchJudge):
            inside = part.__module__.partition(".")[0] == __name__.partition(".")[0]
            versions.append(part.version if inside else _source_hash(part))
    return "+".join(dict.fromkeys(versions))


def source_of(kind: type[Judge]) -> tuple[str, bytes] | None:
    """Path and content of the judge file that a class was loaded from; None if it is importable by name."""
    module = sys.modules.get(kind.__module__)
    source = getattr(module, "__source__", None)
    return None if source is None else (str(getattr(module, "__file__", "")), source)


def _source_hash(kind: type[Judge]) -> str:
    """sha256 of the file that the class was loaded from, or of its whole package if that is an installed plug-in."""
    loaded, package = source_of(kind), _plugin_folder(kind)
    if package is not None:
        return _package_hash(package)
    try:
        source = loaded[1] if loaded is not None else Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError):
        raise JudgeError(
            f"Judge {kind.__name__}: its source file cannot be found, so its verdicts cannot be distinguished from "
            f"those of another version. Keep the class in a file."
        ) from None
    return hashlib.sha256(source).hexdigest()


def _plugin_folder(kind: type[Judge]) -> Path | None:
    """The folder of the package that the class is from, if that package offers judges by entry points."""
    top = kind.__module__.partition(".")[0]
    file = Path(getattr(sys.modules.get(top), "__file__", None) or "")
    offers = any(point.module.partition(".")[0] == top for point in installed_plugins().values())
    return file.parent if offers and file.name == "__init__.py" else None


def _package_hash(folder: Path) -> str:
    """sha256 over the relative paths and contents of all Python files of a package."""
    sources = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.py")}
    lines = [f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in sorted(sources.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
