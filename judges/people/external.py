"""Judge "external": groups become a sheet of items, people's labels (JSON lines) become verdicts."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt, PrivateAttr, model_validator

from judges.contract import Judge
from judges.types import NOT_ASKED, Group, JudgeError, Prompt, Response, Verdict

Label = str | float
"""One of `WORDS`, or a score."""

WORDS = {
    "right-wrong": ("right", "wrong", "unsure"),
    "score": ("unsure",),
    "pair": ("first", "second", "tie", "unsure"),
}
"""Accepted labels for each kind of question; "unsure" becomes an abstain."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item to label: a prompt with one response, or with two to choose from."""

    id: str
    prompt: Prompt
    responses: tuple[Response, ...]

    @property
    def row(self) -> dict[str, Any]:
        """The item as a line of the sheet, with an empty `label`."""
        names = ("response",) if len(self.responses) == 1 else ("first", "second")
        texts = {name: response.text for name, response in zip(names, self.responses, strict=True)}
        cut = [name for name, response in zip(names, self.responses, strict=True) if response.finish_reason == "length"]
        shown = {"prompt": list(self.prompt.messages), "target": self.prompt.target, **texts, "cut_off": cut}
        check = _hash(json.dumps([self.id, shown], sort_keys=True))[:16]  # so that no label is applied to another text
        return {"id": self.id, "check": check, **shown, "label": None}


class External(Judge):
    """People judge: the run writes the items to label, stops, and continues once the labels are there."""

    incidental: ClassVar[frozenset[str]] = frozenset({"missing"})

    ask: Literal["right-wrong", "score", "pair"] = "right-wrong"
    """Right or wrong for each response, a score for each, or the better of two."""

    lowest: float = 1.0
    """With ask "score": the worst score."""

    highest: float = 5.0
    """With ask "score": the best score."""

    pairs_per_prompt: PositiveInt = 1
    """With ask "pair": pairs to label per prompt; more pairs rank more responses."""

    question: str = ""
    """The question to the labellers, shown at the top of the page."""

    missing: Literal["wait", "abstain"] = "wait"
    """Items without a label: wait for them, or continue without (they abstain, which keeps them out of every pair)."""

    _labels: Mapping[str, Label] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _a_scale(self) -> "External":
        if not self.lowest < self.highest or not math.isfinite(self.highest - self.lowest):
            raise ValueError(f"lowest ({self.lowest:g}) must be below highest ({self.highest:g})")
        return self

    def sheet(self, groups: Sequence[Group]) -> list[Item]:
        """The items to label, prompt by prompt. The same groups always give the same sheet."""
        return [item for group in groups for item in self._items(group)]

    def _items(self, group: Group) -> Iterator[Item]:
        if self.ask != "pair":
            yield from (Item(response.id, group.prompt, (response,)) for response in group.responses)
            return
        for first, second in _pairs(group.responses)[: self.pairs_per_prompt]:
            yield Item(f"{first.id} {second.id}", group.prompt, (first, second))

    def labelled(self, labels: Mapping[str, Label]) -> "External":
        """A copy of this judge with labels, by item id."""
        judge = self.model_copy()
        judge._labels = labels
        return judge

    def __call__(self, groups: Sequence[Group]) -> list[list[Verdict]]:
        """The labels as verdicts; JudgeError without labels."""
        if self._labels is None:
            raise JudgeError(
                "Judge external relies on people, who can be asked only in a campaign: `prefloop run` writes what they "
                "have to label. To test a judge on labelled examples, name another one."
            )
        if self.ask == "pair":
            return [_win_rates(group, self.sheet([group]), self._labels) for group in groups]
        return [[_verdict(self._labels.get(response.id)) for response in group.responses] for group in groups]


def read_labels(judge: External, sheet: Sequence[Item], lines: str, where: str) -> dict[str, Label]:
    """The labels in JSON lines by item id. JudgeError for an unknown item, an edited text, a bad or second label."""
    return read_labels_of_rows(judge, [item.row for item in sheet], lines, where)


def read_labels_of_rows(judge: External, rows: Sequence[dict[str, Any]], lines: str, where: str) -> dict[str, Label]:
    """As `read_labels`, for the items as the sheet's file holds them."""
    items = {str(row["id"]): row for row in rows}
    labels: dict[str, Label] = {}
    seen_at: dict[str, int] = {}
    for number, line in enumerate(lines.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = _read_line(judge, items, line)
        except (ValueError, RecursionError) as error:
            raise JudgeError(
                f"{where}, line {number}: {error}. No label was used; fix the file and run again."
            ) from None
        if found is None:
            continue
        name, label = found
        if labels.setdefault(name, label) != label:
            raise JudgeError(
                f"{where}: lines {seen_at[name]} and {number} contradict each other about {name!r}, {labels[name]} and "
                f"{label}. No label was used; keep one of the two lines and run again."
            )
        seen_at.setdefault(name, number)
    return labels


def _read_line(judge: External, items: Mapping[str, dict[str, Any]], line: str) -> tuple[str, Label] | None:
    """Item id and label; None if it is not labelled yet. ValueError says what is wrong."""
    row = json.loads(line.removeprefix("\ufeff"))
    if not isinstance(row, dict) or "id" not in row:
        raise ValueError(f"expected an object with id, check and label, got {line[:80]}")
    item = items.get(str(row["id"]))
    if item is None:
        raise ValueError(f"no item to label has the id {row['id']!r}; this may be the file of another iteration")
    edited = [name for name in item if name in row and name != "label" and row[name] != item[name]]
    if edited:
        were = "were" if len(edited) > 1 else "was"
        raise ValueError(f"{' and '.join(edited)} of {row['id']!r} {were} edited; restore the original")
    if "check" not in row:
        raise ValueError(f"{row['id']!r} has no `check`; copy it from the file to label: it proves what was shown")
    if row.get("label") is None or row["label"] == "":
        return None
    return str(row["id"]), _label(judge, row["label"])


def _label(judge: External, given: Any) -> Label:
    words = WORDS[judge.ask]
    if isinstance(given, str) and given.strip().lower() in words:
        return given.strip().lower()
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if judge.ask == "score" and is_number and judge.lowest <= given <= judge.highest:
        return float(given)
    number = f"a number from {judge.lowest:g} to {judge.highest:g}, or " if judge.ask == "score" else ""
    raise ValueError(f"the label {given!r} is invalid; expected {number}{', '.join(words)}")


def _verdict(label: Label | None) -> Verdict:
    if label is None:
        return _not_asked("not labelled")
    if isinstance(label, float):
        return Verdict.of(label, why="labelled by a person")
    why = f"labelled {label}"
    return Verdict.abstain(why) if label == "unsure" else Verdict.of(label == "right", why=why)


def _not_asked(why: str) -> Verdict:
    """An abstention that says nothing about the response: nobody has looked at it."""
    return Verdict("abstain", None, why=why, parts={NOT_ASKED: 1.0})


def _win_rates(group: Group, sheet: Sequence[Item], labels: Mapping[str, Label]) -> list[Verdict]:
    """A response's score is the share of its labelled pairs that it won; ties count half."""
    places = {response.id: place for place, response in enumerate(group.responses)}
    beats: dict[str, dict[int, float]] = {response.id: {} for response in group.responses}
    seen = {response.id for item in sheet if item.id in labels for response in item.responses}
    for item in sheet:
        won = {"first": 1.0, "tie": 0.5, "second": 0.0}.get(str(labels.get(item.id)))
        if won is not None:
            first, second = item.responses
            beats[first.id][places[second.id]] = won
            beats[second.id][places[first.id]] = 1.0 - won
    return [_win_rate(games) if id in seen else _not_asked("in no labelled pair") for id, games in beats.items()]


def _win_rate(games: dict[int, float]) -> Verdict:
    if not games:
        return Verdict.abstain("all its pairs are labelled unsure")
    won = sum(games.values())
    parts = {"games": float(len(games))} | {f"beats {rival}": share for rival, share in sorted(games.items())}
    return Verdict.of(won / len(games), f"{won:g}/{len(games)}", f"won {won:g} of {len(games)} pairs", parts=parts)


def _pairs(responses: Sequence[Response]) -> list[tuple[Response, Response]]:
    """Pairs of different texts, ordered by their ids alone: first pairs that share no response, then the rest."""
    distinct = list({response.text: response for response in reversed(responses)}.values())
    drawn = sorted(distinct, key=lambda response: _hash(response.id))
    apart = list(zip(drawn[::2], drawn[1::2], strict=False))
    rest = sorted(
        (pair for pair in combinations(drawn, 2) if pair not in apart), key=lambda pair: _hash(pair[0].id + pair[1].id)
    )
    return [pair if _hash(pair[1].id + pair[0].id) < "8" else pair[::-1] for pair in [*apart, *rest]]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
