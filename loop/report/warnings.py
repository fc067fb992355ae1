"""Warnings shown in the report, each linked to its figures: the campaign's own alarms (loop.measure.alarms), and rules
with fixed thresholds that need other iterations, the test set or single steps."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from loop.report.data import IterationData, RunData
from loop.report.scale import number, percent
from loop.store.run_records import Json

LONGER = 1.2
"""Ratio of mean test length to the incumbent's; growth above it raises a warning."""
COLLAPSED = 0.3
"""Ratio of final to initial entropy in a round; lower, without a gain, is collapse."""
CUT = 0.2
"""Largest normal share of truncated test responses."""
DRIED = 0.5
"""Share of paired prompts relative to the best earlier iteration; lower means the signal dries up."""
FEW = 0.1
"""Share of prompts that give a pair; lower is hardly any signal."""
UNSURE = 0.05
"""Largest normal share of error verdicts."""
INCONSISTENT = 0.7
"""Smallest normal share of games in which both orders agree."""
CAMPAIGN_ALARMS: dict[str, tuple[tuple[str, ...], str]] = {
    "mixed": (("solve-rates", "prompts"), "few prompts have both outcomes"),
    "solved": (("solve-rates",), "nearly all prompts are solved"),
    "unsolved": (("solve-rates",), "almost no prompts are solved"),
    "unique": (("entropy",), "responses are repetitive"),
    "entropy": (("entropy",), "entropy collapsed"),
    "length": (("lengths", "reward"), "training responses grow longer"),
    "truncated": (("lengths", "form"), "training responses are truncated"),
    "abstained": (("verdicts",), "the judge often abstains"),
    "displacement": (("log-probs", "log-ratios", "displacement"), "chosen responses become less likely"),
    "sampler_gap": (("sampler-gap",), "sampler and trainer drift apart"),
}
"""The campaign's alarms: figures and headline of each."""
SHOWN = 2
"""Number of findings of a rule that are shown in full."""
TAIL = 4
"""The start and end of a round are 1/TAIL of its steps each."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A warning and the figures that show it."""

    figures: tuple[str, ...]
    what: str
    text: str


def alarms(data: RunData) -> list[Alarm]:
    """All warnings: the page's own, then the campaign's, one per rule over all iterations."""
    rules: Sequence[tuple[tuple[str, ...], str, Callable[[RunData, IterationData], str | None]]] = (
        (("accuracy", "gate"), "accuracy collapsed", _collapse),
        (("entropy",), "entropy collapsed", _entropy),
        (("lengths", "reward"), "responses grow longer", _longer),
        (("lengths", "form"), "responses are truncated", _cut),
        (("funnel", "prompts", "solve-rates"), "the signal dries up", _dried),
        (("gradient-norm",), "the gradient is not finite", _gradient),
        (("verdicts",), "the judge often fails", _errors),
        (("orders",), "the judge depends on response order", _order),
        *((figures, what, partial(_raised, name)) for name, (figures, what) in CAMPAIGN_ALARMS.items()),
    )
    found = [(figures, what, list(_each(data, rule))) for figures, what, rule in rules]
    return [Alarm(figures, what, _summed(texts)) for figures, what, texts in found if texts]


def _raised(name: str, _: RunData, it: IterationData) -> str | None:
    return next((alarm.text for alarm in it.state.alarms if alarm.name == name), None)


def _summed(texts: Sequence[str]) -> str:
    """Join a few findings; of many, keep the latest."""
    if len(texts) <= SHOWN:
        return "; ".join(texts)
    return f"in {len(texts)} iterations, most recently {'; '.join(texts[-SHOWN:])}"


def _each(data: RunData, rule: Callable[[RunData, IterationData], str | None]) -> Iterator[str]:
    for it in data.rounds:
        if (text := rule(data, it)) is not None:
            yield f"iteration {it.number}: {text}"


def _collapse(data: RunData, it: IterationData) -> str | None:
    base = data.iteration(0)
    if not it.test or base is None or not base.test:
        return None
    now, then = it.test.metric(data.metric), base.test.metric(data.metric)
    if now is None or then is None or now.high is None or then.low is None or now.high >= then.low:
        return None
    return f"test accuracy {percent(now.value)} % is below the base model's {percent(then.value)} %"


def _entropy(data: RunData, it: IterationData) -> str | None:
    first, last = ends(it.steps, "entropy")
    gained = it.promotion.gain.low if it.promotion else None
    if first is None or last is None or last >= COLLAPSED * first or (gained is not None and gained > 0):
        return None
    return f"entropy fell from {number(first)} to {number(last)} nats per token without a gain on the gate"


def _longer(data: RunData, it: IterationData) -> str | None:
    before = data.incumbent_of(it)
    then = before.test.mean_length if before is not None and before.test else None
    now = it.test.mean_length if it.test else None
    if not now or not then or now <= LONGER * then:
        return None
    return f"{number(now)} tokens on average, {percent(now / then - 1)} % more than the incumbent"


def _cut(data: RunData, it: IterationData) -> str | None:
    share = (it.test and it.test.truncated_share) or 0.0
    return f"{percent(share)} % of the test responses hit the token limit" if share > CUT else None


def _paired_share(it: IterationData) -> float | None:
    counts = it.state.paired.prompts if it.state.paired else {}
    total = sum(counts.values())
    return counts.get("paired", 0) / total if total else None


def _dried(data: RunData, it: IterationData) -> str | None:
    share = _paired_share(it)
    earlier = [one for one in data.rounds if one.number < it.number]
    before = [known for one in earlier if (known := _paired_share(one)) is not None]
    if share is None or not (share < FEW or share < DRIED * max(before, default=0.0)):
        return None
    best = f", {percent(max(before))} % before" if before else ""
    return f"{percent(share)} % of the prompts give a pair{best}"


def _gradient(data: RunData, it: IterationData) -> str | None:
    bad = sum(not math.isfinite(row.get("gradient_norm") or 0.0) for row in it.steps)
    return f"in {bad} of {len(it.steps)} steps" if bad else None


def _errors(data: RunData, it: IterationData) -> str | None:
    numbers = it.sets.get("train")
    share = numbers.kinds.get("error", 0) / numbers.responses if numbers else 0.0
    return f"{percent(share)} % of the responses got an error instead of a verdict" if share > UNSURE else None


def _order(data: RunData, it: IterationData) -> str | None:
    share = it.sets["train"].order_consistent if "train" in it.sets else None
    return f"both orders agree in {percent(share)} %" if share is not None and share < INCONSISTENT else None


def ends(steps: Sequence[Json], column: str) -> tuple[float | None, float | None]:
    """Mean of a column over the first and last quarter of a round; None if it was not logged."""
    values = [row[column] for row in steps if isinstance(row.get(column), int | float)]
    part = max(1, len(values) // TAIL)
    return (sum(values[:part]) / part, sum(values[-part:]) / part) if values else (None, None)
