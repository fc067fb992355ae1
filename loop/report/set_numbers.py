"""Reduce the responses and verdicts of one prompt set in one iteration to a few numbers, shard by shard."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from loop.measure.estimators import best_of_curve, majority_curve, mean_interval, pass_curve, quantiles, within_sums
from loop.store import tables
from loop.store.thoughts import answer_lengths


class ScoredResponse(NamedTuple):
    """Verdict and length of one sampled (not greedy) response."""

    tokens: int
    """Of its answer, without the thought."""
    score: float | None
    correct: bool
    extracted: str | None
    failed: bool
    """Whether the judge failed on it; an abstention is a response that is not right."""


@dataclass(slots=True)
class Collected:
    """Responses of a set by prompt, with counts over all shards."""

    groups: dict[str, list[ScoredResponse]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    unparsable: int = 0
    consistent: list[float] = field(default_factory=list)
    """Pairwise judges only: per response, the share of games in which both orders agree."""
    used: Counter[str] = field(default_factory=Counter)
    """Calls, tokens and cost of a paid judge."""


@dataclass(frozen=True, slots=True)
class SetNumbers:
    """Statistics of one set of sampled responses; shares in 0..1, lengths in tokens."""

    responses: int
    lengths: list[float]
    mean_length: float | None
    truncated: float | None
    score: tuple[float, float, float] | None
    """Mean score with its interval over prompts."""
    solved: dict[float, int]
    """Number of prompts by share of correct responses among the scored ones."""
    passed: dict[int, float]
    voted: dict[int, float]
    best: dict[int, float]
    within: tuple[float, float]
    """Sums for the within-prompt slope of score over length: Σ(l - l̄)(s - s̄), Σ(l - l̄)²."""
    kinds: dict[str, int]
    unparsable: int
    order_consistent: float | None
    used: dict[str, float]


def set_numbers(shards: Sequence[tuple[Path, Path]], correct_at: float, confidence: float) -> SetNumbers | None:
    """Statistics of a set's shards; None until something is sampled and judged."""
    judged = tuple((r, v, v.stat().st_mtime_ns) for r, v in shards if v.exists())
    return _numbers(judged, correct_at, confidence)


@lru_cache(maxsize=4096)
def _numbers(shards: tuple[tuple[Path, Path, int], ...], correct_at: float, confidence: float) -> SetNumbers | None:
    """Cached: a campaign asks for all its finished sets after each iteration."""
    collected = Collected()
    for responses, verdicts, _ in shards:
        _take(collected, responses, verdicts, correct_at)
    return _summary(collected, confidence) if collected.groups else None


def _take(into: Collected, responses: Path, verdicts: Path, correct_at: float) -> None:
    """Add one shard."""
    names = ["response_id", "kind", "score", "extracted", "parts"]
    ids, *rest = (column.to_pylist() for column in tables.read(verdicts, names).select(names).columns)
    judged = dict(zip(ids, zip(*rest, strict=True), strict=True))
    names = ["prompt_id", "response_id", "temperature", "finish_reason"]
    table = tables.read(responses, [*names, "token_ids", "text"])
    lengths = answer_lengths(table, verdicts)
    rows = zip(*(table[name].to_pylist() for name in names), lengths, strict=True)
    for prompt_id, response_id, temperature, finish, length in rows:
        if temperature == 0:
            continue
        kind, score, extracted, parts = judged[response_id]
        into.kinds[kind] += 1
        into.truncated += finish == "length"
        into.unparsable += kind == "score" and extracted is None
        if "order_consistent" in (parts or ""):
            into.consistent.append(json.loads(parts)["order_consistent"])
        response = ScoredResponse(length, score, score is not None and score >= correct_at, extracted, kind == "error")
        into.groups.setdefault(prompt_id, []).append(response)
    notes = tables.notes_of(verdicts).get("used", {})
    into.used.update({name: value for name, value in notes.items() if isinstance(value, int | float)})


def _summary(found: Collected, confidence: float) -> SetNumbers:
    groups = list(found.groups.values())
    scored = [kept for group in groups if (kept := [one for one in group if one.score is not None])]
    scores = [[float(one.score or 0.0) for one in group] for group in scored]
    lengths = [one.tokens for group in groups for one in group]
    judged = [kept for group in groups if (kept := [one for one in group if not one.failed])]
    return SetNumbers(
        responses=len(lengths),
        lengths=quantiles(lengths),
        mean_length=_mean(lengths),
        truncated=found.truncated / len(lengths),
        score=mean_interval([sum(group) / len(group) for group in scores], confidence),
        solved=dict(sorted(Counter(sum(one.correct for one in group) / len(group) for group in scored).items())),
        passed=pass_curve([(len(group), sum(one.correct for one in group)) for group in judged]),
        voted=majority_curve([[(one.extracted, one.correct) for one in group] for group in judged]),
        best=best_of_curve(scores),
        within=within_sums([[(one.tokens, one.score or 0.0) for one in group] for group in scored]),
        kinds=dict(found.kinds),
        unparsable=found.unparsable,
        order_consistent=_mean(found.consistent),
        used=dict(found.used),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
