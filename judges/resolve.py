"""Builds a judge from its name (built-in, entry point, `package.module:Class`, `path/to/file.py:Class`)."""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from judges.contract import Judge, PointwiseJudge
from judges.pairwise import PairwiseJudge
from judges.registry import BUILT_IN, installed_plugins
from judges.types import JudgeError, describe
from judges.versions import version_of


def build_judge(name: str, args: dict[str, Any], *, base_dir: Path | None = None) -> Judge:
    """The judge of that name (a file path counts from `base_dir`); JudgeError says what is wrong and what to do."""
    kind = judge_class(name, base_dir=base_dir)
    version_of(kind)  # hashed now, so that editing the file during a run does not change what was run
    try:
        return kind(**args)
    except ValidationError as error:
        raise JudgeError(_wrong_arguments(name, kind, error)) from None
    except (JudgeError, OSError):
        raise
    except (Exception, SystemExit) as error:  # the boundary to foreign code
        raise JudgeError(f"Judge {name!r}: building it failed: {describe(error)}.") from error


def judge_class(name: str, *, base_dir: Path | None = None) -> type[Judge]:
    """The class a name stands for."""
    where, _, attribute = BUILT_IN.get(name, name).rpartition(":")
    base_dir = base_dir or Path.cwd()
    if not where:
        return _checked(name, _entry_point(name))
    is_file = where.endswith(".py")
    module = _load_file(name, where, base_dir) if is_file else _import(name, where, base_dir)
    if not hasattr(module, attribute):
        known = sorted(
            a for a, value in vars(module).items() if _is_judge(value) and value.__module__ == module.__name__
        )
        raise JudgeError(
            f"Judge {name!r}: {module.__file__} has no {attribute!r}.{did_you_mean(attribute, known)} "
            f"Judges in it: {', '.join(known) or 'none'}."
        )
    return _checked(name, getattr(module, attribute))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def describe_arguments(kind: type[Judge]) -> str:
    """The judge's arguments in one line: `name (type, default …); …`."""
    shown = []
    for name, info in kind.model_fields.items():
        default = "required" if info.is_required() else f"default {info.default!r}"
        shown.append(f"{name} ({type_name(info.annotation)}, {default})")
    return "; ".join(shown) or "it takes none"


def type_name(annotation: Any) -> str:
    """A type as a person would write it: `str`, `a | b`, `float | null`, `list of str`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(parts[0])
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (Union, UnionType):
        return " | ".join(type_name(part) for part in parts)
    if origin in (list, tuple):
        return f"list of {' and '.join(dict.fromkeys(type_name(part) for part in parts if part is not Ellipsis))}"
    if annotation is NoneType:
        return "null"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "mapping"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).removeprefix("typing.")


def _entry_point(name: str) -> object:
    installed = installed_plugins()
    if name not in installed:
        known = sorted({*BUILT_IN, *installed})
        raise JudgeError(
            f"There is no judge {name!r}.{did_you_mean(name, known)} Available: {', '.join(known)}; or name your own "
            f"as 'package.module:Class' or 'path/to/file.py:Class'."
        )
    point = installed[name]
    try:
        return point.load()
    except (Exception, SystemExit) as error:  # the boundary to foreign code
        text = f"Judge {name!r}: loading its entry point {point.value!r} failed: {describe(error)}."
        raise JudgeError(text) from error


def _import(name: str, module: str, base_dir: Path) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # the boundary to foreign code
        path = module.replace(".", "/") + ".py"
        hint = f" To use the file {base_dir / path}, write '{path}:…' instead." if (base_dir / path).exists() else ""
        raise JudgeError(
            f"Judge {name!r}: importing the module {module!r} failed: {describe(error)}.{hint} Looked on Python's "
            f"module path: {', '.join(p for p in sys.path if p)}."
        ) from error


def _load_file(name: str, where: str, base_dir: Path) -> ModuleType:
    """The file as a module of its own; its name holds the content's hash, so that an edited file is another module."""
    path = base_dir / Path(where).expanduser()
    try:
        source = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = getattr(error, "strerror", error)
        raise JudgeError(
            f"Judge {name!r}: the file {path} cannot be read ({reason}). Give the path of an existing Python "
            f"file; a relative one starts at {base_dir}."
        ) from None
    key = hashlib.sha256(str(path.resolve()).encode() + b"\0" + source).hexdigest()[:16]
    module_name = f"prefloop_judge_{path.stem}_{key}"
    if module_name not in sys.modules:
        run_source(name, str(path), source, module_name)
    return sys.modules[module_name]


def run_source(name: str, path: str, source: bytes, module_name: str) -> None:
    """Run the source that was hashed (not a bytecode cache) as the module of that name."""
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__source__"] = source
    lines = source.decode("utf-8", "replace").splitlines(keepends=True)
    linecache.cache[path] = (len(source), None, lines, path)  # pydantic and tracebacks quote what was loaded
    sys.modules[module_name] = module
    try:
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:  # the boundary to foreign code; a module that failed must not stay imported
        del sys.modules[module_name]
        if not isinstance(error, (Exception, SystemExit)):
            raise
        alone = " A judge file is self-contained: it can import installed packages, but not files next to it."
        raise JudgeError(
            f"Judge {name!r}: running the file {path} failed: {describe(error, near=path)}."
            f"{alone if isinstance(error, ImportError) else ''}"
        ) from error


def _is_judge(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Judge)


def _checked(name: str, value: object) -> type[Judge]:
    """The value, if it is a complete judge class."""
    if not (isinstance(value, type) and issubclass(value, Judge)):
        raise JudgeError(
            f"Judge {name!r} is {repr(value)[:100]}, not a judge: it must be a class derived from "
            f"judges.PointwiseJudge (write one(self, prompt, response)), judges.PairwiseJudge (write compare(self, "
            f"prompt, first, second)) or judges.Judge (write __call__(self, groups))."
        )
    either = ("compare", "compare_all")
    if issubclass(value, PairwiseJudge) and all(getattr(value, m) is getattr(PairwiseJudge, m) for m in either):
        raise JudgeError(f"Judge {name!r}: the class {value.__name__} does not define compare (or compare_all).")
    if issubclass(value, PointwiseJudge) and value.isolated and value.costly:
        raise JudgeError(f"Judge {name!r}: the class {value.__name__} is both isolated and costly: choose one.")
    if inspect.isabstract(value):
        missing = ", ".join(sorted(getattr(value, "__abstractmethods__", ())))
        raise JudgeError(f"Judge {name!r}: the class {value.__name__} does not define {missing}.")
    return value


def _wrong_arguments(name: str, kind: type[Judge], error: ValidationError) -> str:
    """Every problem pydantic found, and what the judge takes, as one paragraph."""
    problems = []
    for item in error.errors(include_url=False):
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, JudgeError):
            return f"Judge {name!r}, made of others: {inner}"
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = did_you_mean(where, kind.model_fields if len(item["loc"]) == 1 else ()).strip().removeprefix("D")
            problems.append(f"there is no argument {where!r}{f' (d{near})' if near else ''}")
        elif item["type"] == "missing":
            problems.append(f"the argument {where!r} is required")
        else:
            message = item["msg"].removeprefix("Value error, ").rstrip(".")
            about = (f"{where}: ", f", got {repr(item['input'])[:80]}") if where else ("", "")
            problems.append(f"{about[0]}{message[:1].lower()}{message[1:]}{about[1]}")
    return f"Judge {name!r} cannot be built: {'; '.join(problems)}. Its arguments: {describe_arguments(kind)}."
