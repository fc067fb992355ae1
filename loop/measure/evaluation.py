"""Evaluation metrics with intervals, computed from the responses and verdicts of one prompt set. A trial is a response
on which the judge has not failed: an abstention is a trial without success, so that no model gains by answers that the
judge cannot decide, and errors are no trials. Both are counted and shown. Counts per prompt are kept, so that two
models can be compared prompt by prompt later."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loop.config.checks import PREFERENCE
from loop.measure.stats import Array, majority_at_k, paired_difference, paired_ratio, pass_at_k, ratio_interval
from loop.store import tables
from loop.store.run_records import Counts, Difference, Evaluation, Interval, Ratio, SetMetrics, read_record
from loop.store.thoughts import answer_lengths

METRICS = ("sampled_accuracy", "greedy_accuracy", "well_formed_share", "accuracy_among_well_formed")
SAMPLED = tuple(name for name in METRICS if name != "greedy_accuracy")
"""Those of sampled responses."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the metrics need of one response and its verdict."""

    prompt_id: str
    greedy: bool
    tokens: int
    """Of its answer, without the thought."""
    truncated: bool
    kind: str
    correct: bool
    extracted: str | None
    well_formed: bool | None


def read_answers(responses: Sequence[Path], verdicts: Sequence[Path], correct_at: float) -> list[Answer]:
    """The answers of the shards, in order; a score of at least `correct_at` is correct."""
    answers: list[Answer] = []
    for response_path, verdict_path in zip(responses, verdicts, strict=True):
        names = ("response_id", "prompt_id", "temperature", "finish_reason")
        sampled = tables.read(response_path, [*names, "token_ids", "text"])
        judged = {row["response_id"]: row for row in tables.read(verdict_path).to_pylist()}
        lengths = answer_lengths(sampled, verdict_path)
        for row, length in zip(sampled.select(names).to_pylist(), lengths, strict=True):
            verdict = judged[row["response_id"]]
            answers.append(
                Answer(
                    row["prompt_id"],
                    row["temperature"] == 0,
                    length,
                    row["finish_reason"] == "length",
                    verdict["kind"],
                    verdict["kind"] == "score" and verdict["score"] >= correct_at,
                    verdict["extracted"],
                    verdict["well_formed"],
                )
            )
    return answers


def measure(answers: Sequence[Answer], confidence: float) -> SetMetrics:
    """All metrics of one prompt set; `counts` holds successes and trials per prompt for paired comparisons."""
    counts = count(answers)
    sampled = [a for a in answers if not a.greedy]
    k, passed, voted = _at_k(sampled)
    sampled_accuracy, greedy, well_formed, among_well_formed = (_interval(counts[m], confidence) for m in METRICS)
    return SetMetrics(
        sampled_accuracy=sampled_accuracy,
        greedy_accuracy=greedy,
        well_formed_share=well_formed,
        accuracy_among_well_formed=among_well_formed,
        k=k,
        pass_at_k=passed,
        maj_at_k=voted,
        mean_length=_mean(a.tokens for a in sampled),
        truncated_share=_mean(a.truncated for a in sampled),
        abstained_share=_mean(a.kind == "abstain" for a in sampled),
        error_share=_mean(a.kind == "error" for a in sampled),
        unparsable_share=_mean(a.kind == "score" and a.extracted is None for a in sampled),
        prompts=len({a.prompt_id for a in answers}),
        counts=counts,
    )


def read_evaluation(path: Path) -> Evaluation:
    """The metrics.json of an eval stage. UserError if it is missing or damaged."""
    return read_record(path, Evaluation)


def metrics_of(*evaluations: SetMetrics) -> list[str]:
    """The metrics that all of these results have counts for, in their order."""
    return [name for name in (*METRICS, PREFERENCE) if all(name in one.counts for one in evaluations)]


def count(answers: Iterable[Answer]) -> Counts:
    """Successes and trials per prompt for each metric."""
    counts: Counts = {name: {} for name in METRICS}
    for a in answers:
        cells = {"greedy_accuracy" if a.greedy else "sampled_accuracy": (a.correct, a.kind != "error")}
        if not a.greedy:
            judged = a.kind != "error" and a.well_formed is not None
            cells["well_formed_share"] = (judged and bool(a.well_formed), judged)
            cells["accuracy_among_well_formed"] = (a.correct and bool(a.well_formed), judged and bool(a.well_formed))
        for name, (success, trial) in cells.items():
            cell = counts[name].setdefault(a.prompt_id, [0, 0])
            cell[0] += success
            cell[1] += trial
    return counts


def together(first: SetMetrics, further: SetMetrics, confidence: float) -> SetMetrics:
    """An evaluation with further sampled responses to its prompts: the counts and the intervals of both, everything
    else of the first."""
    counts: Counts = dict(first.counts)
    for name in SAMPLED:
        more = further.counts[name]
        cells = {
            id: [a + b for a, b in zip(cell, more.get(id, (0, 0)), strict=True)] for id, cell in counts[name].items()
        }
        counts[name] = {id: list(cell) for id, cell in more.items()} | cells
    intervals: dict[str, Any] = {name: _interval(counts[name], confidence) for name in SAMPLED}
    return replace(first, counts=counts, **intervals)


def compare(first: SetMetrics, second: SetMetrics, metric: str, confidence: float) -> Difference:
    """`second` minus `first`, two results of `measure` on the same prompts, paired by prompt."""
    return paired_difference(*_paired(first, second, metric), confidence=confidence)


def ratio(first: SetMetrics, second: SetMetrics, metric: str, confidence: float) -> Ratio:
    """`second` over `first`, paired by prompt."""
    return paired_ratio(*_paired(first, second, metric), confidence=confidence)


def shadow_change(before: Sequence[tuple[Path, Path]], after: Sequence[tuple[Path, Path]], part: str) -> float | None:
    """Mean change of a score over the prompts that both evaluations have one for; None without any. `part` is `score`,
    or the name of a part that a combining judge has recorded. An abstention counts as the lowest score of both
    evaluations, so that a policy gains nothing by responses that cannot be judged."""
    both = [sampled_scores(shards, part) for shards in (before, after)]
    known = [score for scores in both for own in scores.values() for score in own if score is not None]
    if not known:
        return None
    least = min(known)
    first, second = (
        {id: sum(least if score is None else score for score in own) / len(own) for id, own in scores.items()}
        for scores in both
    )
    return _mean(second[id] - first[id] for id in sorted(first.keys() & second.keys()))


def sampled_scores(shards: Sequence[tuple[Path, Path]], part: str) -> dict[str, list[float | None]]:
    """Scores of each prompt's sampled responses, by prompt; None for an abstention. A judge's errors are left out."""
    found: dict[str, list[float | None]] = {}
    for responses, verdicts in shards:
        sampled = tables.read(responses, ["response_id", "temperature"]).to_pylist()
        greedy = {row["response_id"] for row in sampled if row["temperature"] == 0}
        for row in tables.read(verdicts, ["prompt_id", "response_id", "kind", "score", "parts"]).to_pylist():
            score = row["score"] if part == "score" else json.loads(row["parts"]).get(part)
            if row["response_id"] not in greedy and (score is not None or row["kind"] == "abstain"):
                found.setdefault(row["prompt_id"], []).append(score)
    return found


def _paired(first: SetMetrics, second: SetMetrics, metric: str) -> tuple[Array, Array, Array, Array]:
    a, b = first.counts[metric], second.counts[metric]
    ids = sorted(a.keys() & b.keys())
    columns = [[side[i][j] for i in ids] for side in (a, b) for j in (0, 1)]
    s1, m1, s2, m2 = (np.array(column, dtype=float) for column in columns)
    return s1, m1, s2, m2


def _interval(cells: Mapping[str, Sequence[float]], confidence: float) -> Interval:
    ids = sorted(cells)
    return ratio_interval([cells[i][0] for i in ids], [cells[i][1] for i in ids], confidence)


def _at_k(sampled: Sequence[Answer]) -> tuple[int, float | None, float | None]:
    """The number of samples k, and pass@k and maj@k as means over prompts."""
    groups: dict[str, list[Answer]] = {}
    for a in sampled:
        groups.setdefault(a.prompt_id, []).append(a)
    k = min(map(len, groups.values()), default=0)
    if not k:
        return 0, None, None
    passed = _mean(pass_at_k(len(g), sum(a.correct for a in g), k) for g in groups.values())
    voted = _mean(majority_at_k([a.extracted for a in g], [a.correct for a in g], k) for g in groups.values())
    return k, passed, voted


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return float(sum(known) / len(known)) if known else None


Names = tuple[str, str, str]
"""Ids of prompt, chosen and rejected response."""


def measure_preferences(
    pairs: Sequence[Names], policy: Mapping[str, float], base: Mapping[str, float], confidence: float
) -> SetMetrics:
    """All metrics of one prompt set; pairs without the log-probs are counted and left out. `log_ratio` is what sDPO
    calls the gamma of a reference (arXiv:2403.19270, section 3.2)."""
    known = [(p, c, r) for p, c, r in pairs if all(id in side for id in (c, r) for side in (policy, base))]
    own = [policy[c] - policy[r] for _, c, r in known]
    margins = [ratio - (base[c] - base[r]) for ratio, (_, c, r) in zip(own, known, strict=True)]
    cells: dict[str, list[int | float]] = {}
    for (prompt_id, _, _), margin in zip(known, margins, strict=True):
        cell = cells.setdefault(prompt_id, [0.0, 0])
        cell[0] += half(margin)
        cell[1] += 1
    return replace(
        measure([], confidence),
        preference_accuracy=_interval(cells, confidence),
        mean_margin=_mean(margins),
        log_ratio=_mean(own),
        likelihood_accuracy=_mean(half(ratio) for ratio in own),
        prompts=len(cells),
        pairs=len(known),
        pairs_too_long=len(pairs) - len(known),
        counts={PREFERENCE: cells},
    )


def half(difference: float) -> float:
    """1 above 0, 0 below it, and a half at 0."""
    return 0.5 if difference == 0 else float(difference > 0)
