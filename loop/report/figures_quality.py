"""Figures on whether the campaign works: accuracy, gate, reward, KL."""

from collections.abc import Sequence

from loop.config.checks import PREFERENCE
from loop.format import percent, points_with_interval, typeset
from loop.measure.estimators import best_of_kl, length_controlled
from loop.measure.promotion import bound_of
from loop.report.data import IterationData, RunData
from loop.report.figure import Figure, Missing, Table, by_iteration, heights, keys_of, table_of
from loop.report.marks import PLOT_X, PLOT_Y, Series, chart
from loop.report.scale import axis, share_axis, whole_axis
from loop.store.run_records import Interval, SetMetrics

Spread = tuple[float, float] | None
PER_CENT = "%"


def quality_figures(data: RunData) -> list[Figure | Missing]:
    """All quality figures, in page order."""
    made = (accuracy, gate, pass_and_majority, form, reward, moved, kl, frontier)
    return [figure(data) for figure in made]


def metric_series(
    data: RunData, name: str, which: str, metric: str, tone: int, *, dashed: bool = False, band: bool = True
) -> Series:
    """A metric of a prompt set in per cent over the evaluated iterations; rejected candidates are drawn as rings."""
    points: list[tuple[float, float | None]] = []
    spread: list[Spread] = []
    for it in data.evaluated:
        metrics = getattr(it, which)
        found = None if metrics is None else getattr(metrics, metric)
        interval = found if isinstance(found, Interval) else Interval(found, None, None, 0)
        points.append((it.number, hundred(interval.value)))
        low, high = hundred(interval.low), hundred(interval.high)
        spread.append(None if low is None or high is None else (low, high))
    rejected = frozenset(place for place, it in enumerate(data.evaluated) if it.state.promoted is False)
    shown = spread if band and any(spread) else ()
    return Series(name, points, tone, shown, dashed=dashed, hollow=rejected)


def hundred(share: float | None) -> float | None:
    """Convert a share to per cent."""
    return None if share is None else 100 * share


def shares(id: str, title: str, read: str, series: Sequence[Series], y_label: str = PER_CENT) -> Figure | Missing:
    """A figure of series in per cent over iterations."""
    series = [one for one in series if any(y is not None for _, y in one.points)]
    if not series:
        return Missing(title, "no evaluated iteration has this metric yet")
    y = share_axis(heights(series), *PLOT_Y)
    return by_iteration(id, title, read, series, y_label, y=y, x_label="iteration (0: base model)")


def accuracy(data: RunData) -> Figure | Missing:
    """Test and gate accuracy."""
    if data.unjudged:
        return preferences(data)
    read = (
        "Higher is better; bands that do not overlap differ clearly; a ring is a candidate that the gate rejected. "
        f"Bands are {100 * data.confidence:g} % intervals over prompts.{_abstained(data)}"
    )
    series = [
        metric_series(data, "test, sampled", "test", "sampled_accuracy", 1),
        metric_series(data, "test, greedy", "test", "greedy_accuracy", 2, band=False),
        metric_series(data, "gate, sampled", "gate", "sampled_accuracy", 3, dashed=True, band=False),
    ]
    return shares("accuracy", "Accuracy", read, series, "correct responses, %")


def preferences(data: RunData) -> Figure | Missing:
    """Preference accuracy on held-out pairs, for campaigns without a judge."""
    read = (
        "Share of held-out pairs whose chosen answer gains more over the base model than the rejected one. Higher is "
        "better; the base model itself has 50 %; a ring is a candidate that the gate rejected. Bands are "
        f"{100 * data.confidence:g} % intervals over prompts."
    )
    series = [
        metric_series(data, "test", "test", PREFERENCE, 1),
        metric_series(data, "gate", "gate", PREFERENCE, 3, dashed=True, band=False),
        metric_series(data, "test, chosen more likely", "test", "likelihood_accuracy", 5),
    ]
    return shares("accuracy", "Preference accuracy", read, series, "held-out pairs, %")


def _abstained(data: RunData) -> str:
    """What became of the responses on which the judge abstained."""
    shares = [it.test.abstained_share for it in data.evaluated if it.test and it.test.abstained_share]
    if not shares:
        return ""
    return f" The judge abstained on up to {percent(max(shares))} % of the test responses, which count as not right."


def gate(data: RunData) -> Figure | Missing:
    """The paired gain of each candidate over its incumbent, with the threshold of the rule."""
    title = "Gain over the incumbent on the gate prompts"
    decided = [(it, it.promotion) for it in data.rounds if it.promotion and it.promotion.gain.value is not None]
    if not decided:
        return Missing(title, "no candidate has been compared with its incumbent yet")
    gains = [decision.gain for _, decision in decided]
    points = [(float(it.number), hundred(gain.value)) for (it, _), gain in zip(decided, gains, strict=True)]
    spread = [(100 * (gain.low or 0.0), 100 * (gain.high or 0.0)) for gain in gains]
    rejected = frozenset(i for i, (_, decision) in enumerate(decided) if not decision.promoted)
    titles = [f"iteration {it.number} {decision.reason}" for it, decision in decided]
    one = Series("candidate minus incumbent", points, 1, spread, False, True, False, True, rejected, titles)
    settings = data.settings(decided[-1][0].number).promote
    bound = hundred(bound_of(settings))
    levels = [(0.0, "")] if bound is None else [(0.0, ""), (bound, f"must be above ({settings.rule})")]
    y = axis([*heights([one]), 0.0, bound or 0.0], *PLOT_Y)
    x = whole_axis([it.number for it, _ in decided], *PLOT_X)
    drawn = chart(title, [one], x, y, x_label="iteration", y_label="percentage points", levels=levels)
    read = (
        f"Each bar is the interval of the change in {settings.metric.replace('_', ' ')} on the same gate prompts. A "
        "candidate whose whole bar is above the line is promoted, if it also keeps the limits and, with not_worse, if "
        "the best promoted model so far does not beat it by more than the margin; a ring was rejected."
    )
    rows = [[it.number, *points[i][1:], *spread[i], decision.reason] for i, (it, decision) in enumerate(decided)]
    return Figure("gate", title, read, drawn, (), Table(["iteration", "points", "from", "to", "decision"], rows))


def pass_and_majority(data: RunData) -> Figure | Missing:
    """pass@k and maj@k on the test prompts."""
    title = "pass@k and maj@k on the test prompts"
    ks = {it.test.k for it in data.evaluated if it.test}
    if not ks or max(ks) < 2:
        return Missing(title, "needs eval.samples of at least 2")
    k = max(ks)
    series = [
        metric_series(data, f"pass@{k}", "test", "pass_at_k", 3),
        metric_series(data, "pass@1", "test", "sampled_accuracy", 1, band=False),
        metric_series(data, f"maj@{k}", "test", "maj_at_k", 2, dashed=True),
    ]
    read = (
        f"Probability that one of {k} samples is correct, and that the majority is (unbiased estimates): if pass@k "
        "is close to pass@1, the samples are no longer diverse."
    )
    return shares("pass-at-k", title, read, series)


def form(data: RunData) -> Figure | Missing:
    """How much of the gain is format."""
    read = (
        "A gain only in the first line is format; a gain in the second, correct answers among well-formed responses, "
        "is skill."
    )
    series = [
        metric_series(data, "well formed", "test", "well_formed_share", 5),
        metric_series(data, "correct among well formed", "test", "accuracy_among_well_formed", 1),
        metric_series(data, "truncated", "test", "truncated_share", 4, dashed=True),
    ]
    return shares("form", "Format and skill", read, series, "test, sampled, %")


def reward(data: RunData) -> Figure | Missing:
    """Mean test score, raw and at equal length."""
    title = "Reward, and reward at equal length"
    iterations = [it for it in _scored(data.evaluated) if it.sets["test"].mean_length]
    if not iterations:
        return Missing(title, "the run folder has no scored test responses")
    means = {it.number: (it.sets["test"].mean_length or 0.0, _score(it)[0]) for it in iterations}
    cross, square = (sum(it.sets["test"].within[i] for it in iterations) for i in (0, 1))
    level = length_controlled(means, cross / square if square else 0.0)
    plain = [(float(it.number), _score(it)[0]) for it in iterations]
    series = [
        Series("mean score", plain, 1, [_score(it)[1:] for it in iterations]),
        Series("at equal length", [(float(k), value) for k, value in level.items()], 2, dashed=True),
    ]
    read = (
        "If the dashed line stays flat while the other rises, the judge rewards length. The dashed line removes the"
        " effect of length (a line fitted within prompts)."
    )
    return by_iteration("reward", title, read, series, "score, test")


def _scored(iterations: Sequence[IterationData]) -> list[IterationData]:
    return [it for it in iterations if "test" in it.sets and it.sets["test"].score]


def _score(it: IterationData) -> tuple[float, float, float]:
    found = it.sets["test"].score
    assert found is not None, it.number
    return found


def moved(data: RunData) -> Figure | Missing:
    """Prompts that only the candidate or only its incumbent answers correctly."""
    title = "Prompts won and lost"
    rounds = [] if data.unjudged else [(it, data.incumbent_of(it)) for it in data.rounds]
    pairs = [(it.number, before.test, it.test) for it, before in rounds if before and before.test and it.test]
    if not pairs:
        return Missing(title, "needs two models with judged answers")
    found = [(k, *won_and_lost(before, after)) for k, before, after in pairs]
    series = [
        Series("won", [(float(k), float(won)) for k, won, _ in found], 3),
        Series("lost", [(float(k), -float(lost)) for k, _, lost in found], 4),
    ]
    read = (
        "Test prompts whose greedy answer became right (up) or wrong (down) against the incumbent: a small "
        "net gain can hide many changes both ways."
    )
    rows = [[k, won, lost, won - lost] for k, won, lost in found]
    table = Table(["iteration", "won", "lost", "net"], rows)
    return by_iteration("moved", title, read, series, "test prompts", zero=True, table=table)


def won_and_lost(before: SetMetrics, after: SetMetrics) -> tuple[int, int]:
    """Number of prompts whose greedy answer is right only after, and only before."""
    first, second = (side.counts["greedy_accuracy"] for side in (before, after))
    changes = [second[id][0] - first[id][0] for id in first.keys() & second.keys() if first[id][1] and second[id][1]]
    return sum(change > 0 for change in changes), sum(change < 0 for change in changes)


def kl(data: RunData) -> Figure | Missing:
    """KL divergence from the base model, where promote.limits.kl measures it."""
    title = "KL divergence from the base model"
    iterations = [(it, value) for it in data.rounds if (value := it.measured.get("kl")) is not None]
    if not iterations:
        return Missing(title, "needs promote.limits.kl, which measures it")
    errors = [it.measured.get("kl_error") or 0.0 for it, _ in iterations]
    spread = [(value - 2 * e, value + 2 * e) for (_, value), e in zip(iterations, errors, strict=True)]
    points = [(float(it.number), value) for it, value in iterations]
    one = Series("KL to the base model", points, 1, spread)
    read = "How far the candidate has moved, on its own samples (± 2 standard errors): growth without a gain is drift."
    return by_iteration("kl", title, read, [one], "nats per response", zero=True)


def frontier(data: RunData) -> Figure | Missing:
    """Reward against KL, compared with best-of-N from the base model."""
    title = "Reward against KL"
    iterations = [it for it in _scored(data.rounds) if it.measured.get("kl") is not None]
    if not iterations:
        return Missing(title, "needs the KL divergence, which promote.limits.kl measures")
    own = Series(
        "candidates",
        [(_kl(it), _score(it)[0]) for it in iterations],
        1,
        [_score(it)[1:] for it in iterations],
        line=False,
        whiskers=True,
        hollow=frozenset(i for i, it in enumerate(iterations) if it.state.promoted is False),
        titles=[f"iteration {it.number}: KL {_kl(it):.3g}, score {_score(it)[0]:.3g}" for it in iterations],
    )
    line = best_of_line(data)
    series = [own, Series("best of N from the base model", line, 2, dashed=True)] if line else [own]
    x = axis([x for one in series for x, _ in one.points], *PLOT_X, zero=True)
    drawn = chart(title, series, x, axis(heights(series), *PLOT_Y), x_label="KL to base, nats", y_label="score, test")
    read = "Up and to the left is better: a candidate above the line reaches its score with less drift than best-of-N."
    return Figure("frontier", title, read, drawn, keys_of(series), table_of("KL", series))


def _kl(it: IterationData) -> float:
    value = it.measured["kl"]
    assert value is not None, it.number
    return value


def best_of_line(data: RunData) -> list[tuple[float, float | None]]:
    """KL bound and expected best score for N = 1, 2, …, from the base model's training samples or else test samples."""
    base = data.iteration(0)
    if base is None or base.policy is None:
        return []
    hash = base.policy.hash
    sampled = [it.sets["train"].best for it in data.rounds if "train" in it.sets and it.sampler == hash]
    curve = sampled[0] if sampled else base.sets["test"].best if "test" in base.sets else {}
    return [(best_of_kl(n), value) for n, value in curve.items()]


def describe_change(points: float, low: float, high: float) -> str:
    """Format as +66.8 points [+60.6, +72.9]."""
    return typeset(points_with_interval(points, low, high))
