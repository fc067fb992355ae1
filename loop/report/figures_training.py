"""Figures on what training did to the log-probs, over all rounds, as in Iterative RPO (arXiv:2404.19733), and the DPO
gradient over both probability ratios, with the pairs of the last round in it."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from markupsafe import Markup

from loop.measure.estimators import dpo_field, thin
from loop.report.data import IterationData, RunData
from loop.report.figure import Figure, Missing, Table, heights, keys_of, table_of
from loop.report.marks import LEFT, PLOT_X, PLOT_Y, TOP, Point, Series, arrow, chart, element
from loop.report.scale import Axis, axis
from loop.store.run_records import Json
from trainer.losses.table import METHODS

POINTS = 72
"""Points drawn per curve; each is the mean of its neighbours, with their range as a band."""
LABELS = 12
"""Most iterations marked in a figure."""
MOST_STEPS = 200
MOST_PAIRS = 400
"""Most step means and single pairs in the figure of the gradient field; longer rounds are thinned evenly."""


class Curve(NamedTuple):
    """A column of the step log and its drawing style."""

    column: str
    name: str
    tone: int
    dashed: bool = False
    percent: bool = False


def training_figures(data: RunData) -> list[Figure | Missing]:
    """All training figures, in page order."""
    return [*(curves(data, *one) for one in CURVES), loss(data), watched(data), gradient_field(data)]


CURVES: tuple[tuple[str, str, str, str, tuple[Curve, ...]], ...] = (
    (
        "log-probs",
        "Log-probs of chosen and rejected",
        "The gap should open because the rejected line falls. If the chosen line falls too, training makes good "
        "responses less likely (an NLL term prevents it).",
        "nats per response",
        (Curve("chosen_logp", "chosen", 3), Curve("rejected_logp", "rejected", 4)),
    ),
    (
        "log-ratios",
        "Log-ratios to the reference",
        "Log-probs minus the reference's: every round starts at 0; below 0, responses are less likely than before.",
        "nats per response",
        (Curve("chosen_log_ratio", "chosen", 3), Curve("rejected_log_ratio", "rejected", 4)),
    ),
    (
        "margin",
        "Margin",
        "β times the difference of the log-ratios: it should rise, then flatten; a steep end means too many steps.",
        "β × nats",
        (Curve("margin", "margin", 1),),
    ),
    (
        "reward-accuracy",
        "Correctly ranked pairs",
        "Reward accuracy counts pairs whose chosen response gained more than the rejected one, ranking accuracy those "
        "whose chosen response is more likely; near 100 % there is nothing left to learn.",
        "%",
        (
            Curve("reward_accuracy", "reward accuracy", 1, percent=True),
            Curve("ranking_accuracy", "ranking accuracy", 2, dashed=True, percent=True),
        ),
    ),
    (
        "displacement",
        "Displaced chosen responses",
        "Pairs whose chosen response became less likely than under the reference: low is good; above 50 % is a sign "
        "of likelihood displacement.",
        "%",
        (
            Curve("displacement_rate", "chosen fell", 4, percent=True),
            Curve("both_displaced_rate", "both fell, margin rose", 6, dashed=True, percent=True),
        ),
    ),
    (
        "gradient-norm",
        "Gradient norm",
        "Before clipping: if spikes keep returning, lower the learning rate.",
        "norm",
        (Curve("gradient_norm", "gradient norm", 1),),
    ),
    (
        "gradient-ratio",
        "Gradient ratio",
        "log10 of the gradient on the chosen over that on the rejected probability: at −5, training does almost "
        "nothing but push down rejected responses.",
        "log10",
        (Curve("log10_gradient_ratio", "log10 gradient ratio", 2),),
    ),
    (
        "entropy",
        "Entropy",
        "Next-token entropy on the training responses: a fall without an accuracy gain is collapse.",
        "nats per token",
        (Curve("entropy", "entropy", 5),),
    ),
    (
        "pair-lengths",
        "Lengths of chosen and rejected",
        "If chosen responses are usually longer, the model learns to be verbose.",
        "tokens",
        (Curve("chosen_length", "chosen", 3), Curve("rejected_length", "rejected", 4)),
    ),
)
"""Every training curve: id, title, how to read it, unit, columns."""


def curves(data: RunData, id: str, title: str, read: str, unit: str, columns: Sequence[Curve]) -> Figure | Missing:
    """Plot columns of the step log over all rounds."""
    series = [one for one in (_curve(data, column) for column in columns) if one.points]
    if not series:
        names = ", ".join(column.column for column in columns)
        return Missing(title, f"no round has logged {names}")
    return _over_steps(data, id, title, read, series, unit)


def loss(data: RunData) -> Figure | Missing:
    """The loss and its parts."""
    logged = {name for it in data.rounds for row in it.steps[:1] for name in row}
    parts = sorted(logged & METHODS.keys())
    named = [Curve(name, name, tone, dashed=True) for name, tone in zip(parts, (2, 3, 5, 6), strict=False)]
    read = "The loss is the value that the optimizer minimizes, the sum of its parts; every round starts over."
    columns = (Curve("loss", "loss", 1), *(named if len(named) > 1 else ()))
    return curves(data, "loss", "Loss and its parts", read, "per pair", columns)


def _curve(data: RunData, curve: Curve) -> Series:
    points, spread = thin_column(data, curve.column, 100 if curve.percent else 1)
    return Series(curve.name, points, curve.tone, spread, dots=False, dashed=curve.dashed)


def thin_column(data: RunData, column: str, scale: float = 1) -> tuple[list[Point], list[tuple[float, float] | None]]:
    """A column over all rounds, with a range per point; rounds are thinned separately and not joined."""
    budget = max(2, POINTS // max(1, len(data.rounds)))
    points: list[Point] = []
    spread: list[tuple[float, float] | None] = []
    start = 0
    for it in data.rounds:
        for x, y, low, high in _thinned(it, column, budget):
            points.append((round(start + x, 1), scale * y))
            spread.append((scale * low, scale * high))
        if points and points[-1][1] is not None:
            points.append((points[-1][0], None))
            spread.append(None)
        start += len(it.steps)
    return points, spread


@lru_cache(maxsize=100_000)
def _thinned(it: IterationData, column: str, budget: int) -> list[tuple[float, float, float, float]]:
    """A column of one round; a campaign draws those of finished rounds again after each iteration."""
    known = [(i, _known(row, column)) for i, row in enumerate(it.steps)]
    return thin([(float(x), y) for x, y in known if y is not None], budget)


def _known(row: Json, column: str) -> float | None:
    value = row.get(column)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _starts(data: RunData) -> list[tuple[float, str]]:
    """Start step and label of each iteration; thinned if there are many."""
    trained = [it for it in data.rounds if it.steps]
    every, start = math.ceil(len(trained) / LABELS), 0
    found: list[tuple[float, str]] = []
    for place, it in enumerate(trained):
        word = f"iteration {it.number}" if len(trained) <= 4 else str(it.number)
        found += [(float(start), word)] if place % every == 0 else []
        start += len(it.steps)
    return found


def _steps_axis(data: RunData) -> Axis:
    total = sum(len(it.steps) for it in data.rounds)
    low, high = PLOT_X
    found = axis([0.0, float(max(total - 1, 1))], low, high)
    return Axis(0.0, float(max(total - 1, 1)), low, high, tuple(tick for tick in found.ticks if tick <= total))


def watched(data: RunData) -> Figure | Missing:
    """Log-probs of the probe pairs, which are held out of training."""
    title = "Log-probs of held-out probe pairs"
    points: dict[str, list[Point]] = {"chosen_logp": [], "rejected_logp": []}
    start = 0
    for it in data.rounds:
        for place, row in enumerate(it.steps):
            probe = row.get("probe") or {}
            for column, found in points.items():
                if (value := _known(probe, column)) is not None:
                    found.append((float(start + place), value))
        start += len(it.steps)
        for found in points.values():
            found += [(found[-1][0], None)] if found else []
    if not points["chosen_logp"]:
        return Missing(title, "needs train.probe_pairs")
    series = [Series("chosen", points["chosen_logp"], 3), Series("rejected", points["rejected_logp"], 4)]
    read = (
        "How training changes pairs that it does not see; if they behave unlike the trained pairs, the model memorises."
    )
    return _over_steps(data, "watched", title, read, series, "nats per response")


def _over_steps(data: RunData, id: str, title: str, read: str, series: Sequence[Series], unit: str) -> Figure:
    y = axis(heights(series), *PLOT_Y, zero=unit == "%")
    x, label = _steps_axis(data), "optimizer steps of all rounds"
    drawn = chart(title, series, x, y, x_label=label, y_label=unit, boundaries=_starts(data))
    return Figure(id, title, read, drawn, keys_of(series), table_of("step", series))


def gradient_field(data: RunData) -> Figure | Missing:
    """The DPO gradient over both probability ratios, with the last round's pairs (arXiv:2404.04626)."""
    title = "The DPO gradient field and the last round"
    trained = [it for it in data.rounds if any("chosen_log_ratio" in row for row in it.steps)]
    if not trained:
        return Missing(title, "no round has logged log-ratios to a reference")
    last = trained[-1]
    settings = data.settings(last.number).train
    if not isinstance(settings.loss, str) or not settings.loss.startswith("dpo") or not settings.beta:
        return Missing(title, f"only defined for DPO; train.loss of iteration {last.number} is {settings.loss}")
    steps, pairs = _mean_ratios(last.steps), _pair_ratios(last.steps)
    x, y = (
        axis([*(one.log10[side] for one in (*steps, *pairs)), -1.0, 1.0], *ends)  # the reference at 0 is well inside
        for side, ends in enumerate((PLOT_X, PLOT_Y))
    )
    series = [_ratio_series(f"pairs, iteration {last.number}", "a pair of step", pairs, 4)] if pairs else []
    series.append(_ratio_series(f"mean pair of each step, iteration {last.number}", "step", steps, 2))
    field = _field(x, y, float(settings.beta))
    drawn = chart(title, series, x, y, x_label="log10 x1 (chosen)", y_label="log10 x2 (rejected)", under=field)
    read = (
        "x = π / π_ref of a response. Arrows show where DPO moves x1 and x2, most strongly in dark cells: below the "
        "diagonal almost all point down, so the rejected side falls faster than the chosen side rises."
    )
    rows = [[one.step, "mean", *one.log10] for one in steps] + [[one.step, "one pair", *one.log10] for one in pairs]
    table = Table(["step", "what", "log10 x1", "log10 x2"], rows)
    return Figure("gradient-field", title, read, drawn, keys_of(series), table)


class Ratios(NamedTuple):
    """The probability ratios to the reference, x1 of the chosen and x2 of the rejected response, at a step."""

    step: int
    log10: tuple[float, float]


def _mean_ratios(rows: Sequence[Json]) -> list[Ratios]:
    """The mean pair of each step, of MOST_STEPS steps at most."""
    known = [row for row in rows if "chosen_log_ratio" in row and "rejected_log_ratio" in row]
    some = known[:: math.ceil(len(known) / MOST_STEPS)]
    return [Ratios(row["step"], _in_log10(row["chosen_log_ratio"], row["rejected_log_ratio"])) for row in some]


def _pair_ratios(rows: Sequence[Json]) -> list[Ratios]:
    """Single pairs, MOST_PAIRS at most."""
    known = [(row["step"], pair) for row in rows for pair in row.get("log_ratios", ())]
    some = known[:: max(1, math.ceil(len(known) / MOST_PAIRS))]
    return [Ratios(step, _in_log10(*pair)) for step, pair in some]


def _in_log10(chosen: float, rejected: float) -> tuple[float, float]:
    return chosen / math.log(10), rejected / math.log(10)


def _ratio_series(name: str, what: str, ratios: Sequence[Ratios], tone: int) -> Series:
    titles = [f"{what} {step}: x1 = {10**chosen:.3g}, x2 = {10**rejected:.3g}" for step, (chosen, rejected) in ratios]
    return Series(name, [one.log10 for one in ratios], tone, line=False, titles=titles)


def _field(x: Axis, y: Axis, beta: float, columns: int = 14, rows: int = 9) -> list[Markup]:
    """Cells shaded by log10 of the gradient norm, with arrows in the descent direction."""
    wide, tall = abs(x.end - x.start) / columns, abs(y.end - y.start) / rows
    cells = []
    for i in range(columns):
        for j in range(rows):
            at = (x.low + (i + 0.5) / columns * (x.high - x.low), y.high - (j + 0.5) / rows * (y.high - y.low))
            d1, d2 = dpo_field(10 ** at[0], 10 ** at[1], beta)
            cells.append((LEFT + 4 + wide * i, TOP + tall * j, math.log10(math.hypot(d1, d2)), math.atan2(-d2, -d1)))
    low, high = min(c[2] for c in cells), max(c[2] for c in cells)
    drawn = []
    for left, top, size, angle in cells:
        shade = 0.04 + 0.5 * (size - low) / ((high - low) or 1)
        box = {"x": f"{left:.1f}", "y": f"{top:.1f}", "width": f"{wide:.1f}", "height": f"{tall:.1f}"}
        drawn.append(element("rect", class_="bar t1", fill_opacity=f"{shade:.2f}", **box))
        dx, dy = 8 * math.cos(angle), -8 * math.sin(angle)
        drawn.append(arrow(left + wide / 2 - dx / 2, top + tall / 2 - dy / 2, dx, dy))
    return drawn
