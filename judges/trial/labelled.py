"""Reads labelled examples from a JSONL, CSV or Parquet file; columns that are not in `OWN` reach the judge."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from judges.types import USUAL, JudgeError, Prompt, Response, Thinking

LABELS = {
    **dict.fromkeys(("right", "true", "1", "correct", "yes"), "right"),
    **dict.fromkeys(("wrong", "false", "0", "incorrect", "no"), "wrong"),
    "abstain": "abstain",
}
"""Accepted spellings of a label and their meaning."""

OWN = ("response", "chosen", "rejected", "label", "score", "finish_reason")
"""Columns about the response; a judge must not see them in the prompt."""

NEEDED = (
    "Every row needs `prompt` and either `response` with `label` (right, wrong or abstain) or `score`, or `chosen` and "
    "`rejected`; `target` is optional."
)

Cells = Mapping[str, Any]
"""A row of a file by column."""


@dataclass(frozen=True, slots=True)
class Case:
    """One response and its label or score, or two and "chosen": the chosen one is first."""

    where: str
    kind: Literal["label", "score", "pair"]
    prompt: Prompt
    responses: tuple[Response, ...]
    wanted: str | float


def read_cases(path: Path, thinking: Thinking | None = USUAL) -> list[Case]:
    """Read the cases of a file in order; JudgeError names the row and what is wrong with it. A response there stands
    for itself: no prompt has opened its thought."""
    thinking = thinking and replace(thinking, opened=False)
    try:
        cases = [_case(path, where, row, thinking) for where, row in _rows(path)]
    except UnicodeDecodeError as error:
        raise JudgeError(f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start}).") from None
    except OSError as error:
        raise JudgeError(f"The labelled examples {path} cannot be read: {error.strerror or error}.") from None
    if not cases:
        raise JudgeError(f"{path} holds no labelled example. {NEEDED}")
    return cases


def _rows(path: Path) -> Iterator[tuple[str, Cells]]:
    """Yield each row with its location, without empty cells."""
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise JudgeError(f"{path} has an unknown format; labelled examples must be {', '.join(readers)}.")
    for where, row in readers[path.suffix.lower()](path):
        yield where, {str(name): value for name, value in row.items() if value is not None and value != ""}


def _jsonl(path: Path) -> Iterator[tuple[str, Cells]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise JudgeError(f"{path}, line {number} is not JSON ({error}); expected one object per line.") from None
        if not isinstance(row, dict):
            raise JudgeError(f"{path}, line {number} holds {line[:80]}, expected an object. {NEEDED}")
        yield f"line {number}", row


def _csv(path: Path) -> Iterator[tuple[str, Cells]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise JudgeError(
                        f"{path}, line {reader.line_num} does not have as many cells as the header; put a cell with a "
                        f"comma or a line break in double quotes."
                    )
                yield f"line {reader.line_num}", row
        except csv.Error as error:
            raise JudgeError(f"{path}, line {reader.reader.line_num} cannot be read as CSV: {error}.") from None


def _parquet(path: Path) -> Iterator[tuple[str, Cells]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise JudgeError(f"{path} cannot be read as Parquet: {error}.") from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"row {number}", row


def _case(path: Path, where: str, row: Cells, thinking: Thinking | None) -> Case:
    try:
        kind = _kind(tuple(row))
        columns = {name: value for name, value in row.items() if name not in OWN}
        prompt = Prompt(where, _messages(row["prompt"]), _target(row.get("target")), columns)
        names = ("chosen", "rejected") if kind == "pair" else ("response",)
        finish = str(row.get("finish_reason", "stop"))
        if finish not in ("stop", "length"):
            raise ValueError(f"finish_reason is {finish!r}, expected stop or length")
        responses = tuple(Response(f"{where} {name}", _text(name, row[name]), finish, thinking) for name in names)
        wanted = "chosen" if kind == "pair" else _label(row["label"]) if kind == "label" else _score(row["score"])
    except ValueError as error:
        raise JudgeError(f"{path}, {where}: {error}. {NEEDED}") from None
    return Case(where, kind, prompt, responses, wanted)


def _kind(row: Sequence[str]) -> Literal["label", "score", "pair"]:
    """The kind of a row with these columns; ValueError unless it is exactly one of the three."""
    is_pair = "chosen" in row or "rejected" in row
    texts = ("chosen", "rejected") if is_pair else ("response",)
    if missing := [name for name in ("prompt", *texts) if name not in row]:
        raise ValueError(f"{' and '.join(missing)} missing (the row has: {', '.join(row) or 'nothing'})")
    if is_pair:
        if excluded := [name for name in ("response", "label", "score") if name in row]:
            raise ValueError(f"chosen and rejected exclude {', '.join(excluded)}")
        return "pair"
    if ("label" in row) == ("score" in row):
        raise ValueError("both label and score are given" if "label" in row else "neither label nor score is given")
    return "label" if "label" in row else "score"


def _messages(asked: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(asked, str) and not _is_chat(asked):
        raise ValueError(f"prompt is {str(asked)[:80]!r}, expected a text or chat messages with role and content")
    return ({"role": "user", "content": asked},) if isinstance(asked, str) else tuple(dict(turn) for turn in asked)


def _target(given: Any) -> str | None:
    return given if given is None or isinstance(given, str) else json.dumps(given, default=str, ensure_ascii=False)


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and isinstance(turn.get("content"), str) and "role" in turn for turn in value)
    )


def _text(name: str, value: Any) -> str:
    """The text of a response; if it is chat messages, as in preference data, that of the last one."""
    if isinstance(value, str):
        return value
    if _is_chat(value):
        return str(value[-1]["content"])
    raise ValueError(f"{name} is {str(value)[:80]!r}, expected a text")


def _label(given: Any) -> str:
    label = str(given).strip().lower().removesuffix(".0")
    if label not in LABELS:
        raise ValueError(f"the label {given!r} is not one of right, wrong, abstain, true, false, 1, 0")
    return LABELS[label]


def _score(given: Any) -> float:
    try:
        score = float(given)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"the score {given!r} is not a finite number")
    return score
