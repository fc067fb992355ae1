"""Describes the installed judges and their arguments."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic_core import to_jsonable_python

from judges.contract import Judge, PointwiseJudge
from judges.pairwise import PairwiseJudge
from judges.registry import BUILT_IN, installed_plugins
from judges.resolve import judge_class, type_name
from judges.types import JudgeError

Kind = Literal["pointwise", "pairwise", "group"]
"""What a judge sees at a time: one response, two, or all responses to a prompt."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a judge; `default` is None if it is required."""

    name: str
    type: str
    required: bool
    default: Any
    meaning: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A judge in the catalog. If an installed judge cannot be used, `problem` says why and the rest is empty."""

    name: str
    origin: str
    kind: Kind | None = None
    summary: str = ""
    description: str = ""
    arguments: tuple[Argument, ...] = ()
    problem: str = ""


def catalog() -> Iterator[Entry]:
    """Every judge named without a colon: built-in ones, then installed plug-ins, broken ones included."""
    for name in sorted(BUILT_IN):
        yield describe_judge(name)
    for name in sorted(installed_plugins()):
        try:
            yield describe_judge(name)
        except JudgeError as error:
            yield Entry(name, _origin(name), problem=str(error))


def describe_judge(name: str, *, base_dir: Path | None = None) -> Entry:
    """Describe the judge of any name that a config accepts; JudgeError if there is none."""
    judge = judge_class(name, base_dir=base_dir)
    text = inspect.cleandoc(judge.__doc__ or "") if judge.__doc__ != Judge.__doc__ else ""
    arguments = tuple(
        Argument(
            field,
            type_name(info.annotation),
            info.is_required(),
            None
            if info.is_required()
            else to_jsonable_python(info.get_default(call_default_factory=True, validated_data={}), fallback=str),
            " ".join((info.description or "").split()),
        )
        for field, info in judge.model_fields.items()
    )
    return Entry(name, _origin(name), _kind(judge), text.partition("\n")[0], text, arguments)


def _kind(judge: type[Judge]) -> Kind:
    if issubclass(judge, PointwiseJudge):
        return "pointwise"
    return "pairwise" if issubclass(judge, PairwiseJudge) else "group"


def _origin(name: str) -> str:
    if name in BUILT_IN:
        return "built-in"
    if ":" in name:
        return "file" if name.rpartition(":")[0].endswith(".py") else "module"
    dist = installed_plugins()[name].dist
    return "plug-in" if dist is None else f"{dist.name} {dist.version}"
