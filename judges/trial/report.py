"""Computes the numbers of a trial report from its outcomes. Pure. Shares are over all cases unless the name says
otherwise; a number that cannot be computed (no pairs, scores outside [0, 1], a constant) is None."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from judges.trial.trial import Outcome

BINS = 10
"""Number of equal bins of [0, 1] for the calibration."""


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Forecasts between `low` and `high`."""

    low: float
    high: float
    n: int
    mean_score: float
    share_right: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The expected calibration error, and the bins that hold forecasts."""

    ece: float
    bins: list[CalibrationBin]


@dataclass(frozen=True, slots=True)
class ScoreAgreement:
    """How the judge's scores go with the labelled ones."""

    n: int
    pearson: float | None
    spearman: float | None
    mean_absolute_difference: float


@dataclass(frozen=True, slots=True)
class LengthBias:
    """Spearman's correlation of length (characters) with the scores, and how often the longer of a pair is preferred;
    a judge that prefers length more than the labels do is biased."""

    score: float | None
    label: float | None
    longer_preferred_by_judge: float | None
    longer_preferred_by_labels: float | None


@dataclass(frozen=True, slots=True)
class OrderBias:
    """Of `n` pairs decided in both orders: the share whose orders agree, and of those that the response read first wins
    (a tie counts half; 0.5 without position bias)."""

    n: int
    consistent: float
    first_preferred: float


@dataclass(frozen=True, slots=True)
class TrialReport:
    """All numbers about a trial; `confusion` counts decisions by expected decision."""

    examples: dict[str, int]
    agreed: int
    agreement: float | None
    agreement_among_decided: float | None
    abstain_rate: float | None
    error_rate: float | None
    tie_rate: float | None
    confusion: dict[str, dict[str, int]]
    kappa: float | None
    calibration: Calibration | None
    scores: ScoreAgreement | None
    length: LengthBias
    orders: OrderBias | None


def report(outcomes: Sequence[Outcome]) -> TrialReport:
    """All numbers about a trial."""
    pairs = [o for o in outcomes if o.case.kind == "pair"]
    decided = [o for o in outcomes if o.decision not in ("abstain", "error")]
    agreed = sum(o.agrees for o in outcomes)
    return TrialReport(
        examples=dict(Counter(o.case.kind for o in outcomes)),
        agreed=agreed,
        agreement=share(agreed, len(outcomes)),
        agreement_among_decided=share(sum(o.agrees for o in decided), len(decided)),
        abstain_rate=share(sum(o.decision == "abstain" for o in outcomes), len(outcomes)),
        error_rate=share(sum(o.decision == "error" for o in outcomes), len(outcomes)),
        tie_rate=share(sum(o.decision == "tie" for o in pairs), len(pairs)),
        confusion=confusion(outcomes),
        kappa=kappa(outcomes),
        calibration=calibration(forecasts(outcomes)),
        scores=score_correlation(outcomes),
        length=length(outcomes),
        orders=orders(outcomes),
    )


def share(part: int, whole: int) -> float | None:
    """part / whole; None if `whole` is 0."""
    return part / whole if whole else None


def confusion(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """Expected -> given -> count, for labels and pairs."""
    table: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        if isinstance(outcome.case.wanted, str):
            table.setdefault(outcome.case.wanted, Counter())[outcome.decision] += 1
    return {wanted: dict(given) for wanted, given in table.items()}


def kappa(outcomes: Sequence[Outcome]) -> float | None:
    """Cohen's kappa of right and wrong where the judge decided: 0 is chance, 1 is perfect (Cohen 1960, Eq. 1)."""
    labels = [(o.case.wanted, o.decision) for o in outcomes if {o.case.wanted, o.decision} <= {"right", "wrong"}]
    if not labels:
        return None
    observed = sum(wanted == given for wanted, given in labels) / len(labels)
    wanted_right, judged_right = (sum(label[side] == "right" for label in labels) / len(labels) for side in (0, 1))
    chance = wanted_right * judged_right + (1 - wanted_right) * (1 - judged_right)
    return None if chance == 1 else (observed - chance) / (1 - chance)


def forecasts(outcomes: Sequence[Outcome]) -> list[tuple[float, bool]]:
    """Scores that can be read as probabilities, and whether they came true: scores of labelled responses, and, for a
    judge that sees orders, the preference for the response that it reads first, in both orders."""
    found = [
        (o.verdicts[0].score, o.case.wanted == "right")
        for o in outcomes
        if o.case.wanted in ("right", "wrong") and o.verdicts[0].score is not None
    ]
    for outcome in outcomes:
        for word, chosen_is_first in zip(outcome.orders, (True, False), strict=False):
            if word.probability is not None:
                found.append((word.probability if chosen_is_first else 1 - word.probability, chosen_is_first))
    return found


def calibration(points: Sequence[tuple[float, bool]], bins: int = BINS) -> Calibration | None:
    """Expected calibration error, Σ n_b / n · |mean forecast − share that came true| (arXiv:1706.04599, Eq. 3)."""
    if not points or not all(0 <= p <= 1 for p, _ in points):
        return None
    members: dict[int, list[tuple[float, bool]]] = {}
    for p, came_true in points:
        members.setdefault(min(int(p * bins), bins - 1), []).append((p, came_true))
    rows = [
        CalibrationBin(
            number / bins,
            (number + 1) / bins,
            len(part),
            mean_score=statistics.fmean(p for p, _ in part),
            share_right=statistics.fmean(hit for _, hit in part),
        )
        for number, part in sorted(members.items())
    ]
    error = sum(row.n * abs(row.mean_score - row.share_right) for row in rows) / len(points)
    return Calibration(error, rows)


def score_correlation(outcomes: Sequence[Outcome]) -> ScoreAgreement | None:
    """Pearson's and Spearman's correlation of scores with the expected ones, and their mean difference."""
    both = [
        (o.verdicts[0].score, o.case.wanted)
        for o in outcomes
        if isinstance(o.case.wanted, float) and o.verdicts[0].score is not None
    ]
    if not both:
        return None
    given, wanted = [s for s, _ in both], [w for _, w in both]
    difference = statistics.fmean(abs(s - w) for s, w in both)
    return ScoreAgreement(len(both), correlation(given, wanted), correlation(ranks(given), ranks(wanted)), difference)


def length(outcomes: Sequence[Outcome]) -> LengthBias:
    """How judge and labels depend on length."""
    singles = [o for o in outcomes if o.case.kind != "pair" and o.verdicts[0].score is not None]
    sizes = [float(len(o.case.responses[0].text)) for o in singles]
    given = [float(o.verdicts[0].score or 0.0) for o in singles]
    known = [(size, wanted) for size, o in zip(sizes, singles, strict=True) if (wanted := _as_number(o)) is not None]
    pairs = [o for o in outcomes if o.decision in ("chosen", "rejected") and _longer(o) is not None]
    longer_won = sum(o.decision == _longer(o) for o in pairs)
    longer_wanted = sum(_longer(o) == "chosen" for o in pairs)
    return LengthBias(
        score=correlation(ranks(sizes), ranks(given)),
        label=correlation(ranks([s for s, _ in known]), ranks([w for _, w in known])),
        longer_preferred_by_judge=share(longer_won, len(pairs)),
        longer_preferred_by_labels=share(longer_wanted, len(pairs)),
    )


def orders(outcomes: Sequence[Outcome]) -> OrderBias | None:
    """How the two orders of a pair compare; None if no pair was decided in both."""
    seen = [(a.probability, b.probability) for o in outcomes if o.orders for a, b in [o.orders]]
    known = [(a, b) for a, b in seen if a is not None and b is not None]
    if not known:
        return None
    sides = [(_side(a), _side(b)) for a, b in known]
    first = sum((1 + a) / 2 + (1 - b) / 2 for a, b in sides)
    return OrderBias(len(known), sum(a == b for a, b in sides) / len(sides), first / (2 * len(sides)))


def correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's correlation; None for fewer than two points or a constant."""
    try:
        value = statistics.correlation(x, y)
    except statistics.StatisticsError:
        return None
    return value if math.isfinite(value) else None


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share their mean rank."""
    first: dict[float, int] = {}
    for place, value in enumerate(sorted(values)):
        first.setdefault(value, place)
    count = Counter(values)
    return [first[value] + (count[value] + 1) / 2 for value in values]


def _side(probability: float) -> int:
    return (probability > 0.5) - (probability < 0.5)


def _longer(outcome: Outcome) -> str | None:
    chosen, rejected = (len(response.text) for response in outcome.case.responses)
    return None if chosen == rejected else "chosen" if chosen > rejected else "rejected"


def _as_number(outcome: Outcome) -> float | None:
    wanted = outcome.case.wanted
    return {"right": 1.0, "wrong": 0.0}.get(wanted) if isinstance(wanted, str) else wanted
