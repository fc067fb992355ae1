"""Room loop, the report's figures on training: what the rounds did to the log-probs. In: step logs; out: figures.

Curves run over all rounds, with a line where an iteration begins: the figures of Iterative RPO (arXiv:2404.19733).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from loop.report.data import RunData
from loop.report.estimators import dpo_field, thin
from loop.report.figure import Figure, Missing, Table, keys_of, table_of
from loop.report.marks import LEFT, TOP, Point, Series, arrow, chart, element, plot_x, plot_y
from loop.report.quality import heights
from loop.report.scale import Axis, axis
from trainer.losses.table import METHODS

POINTS = 72
"""So many points are drawn of each curve; each is the mean of its neighbours, the band their range."""

MOST_STEPS = 200
MOST_PAIRS = 400
"""Means and single pairs in the gradient field; of a longer round every second, third … is shown."""

LABELS = 12
"""At most so many iterations are marked in a figure."""


class Curve(NamedTuple):
    """A column of the step log, and how it is drawn."""

    column: str
    name: str
    tone: int
    dashed: bool = False
    percent: bool = False


def training_figures(data: RunData) -> list[Figure | Missing]:
    """In the order of the page."""
    return [*(curves(data, *one) for one in CURVES), loss(data), watched(data), gradient_field(data)]


CURVES: tuple[tuple[str, str, str, str, tuple[Curve, ...]], ...] = (
    (
        "log-probs",
        "Log-probs of chosen and rejected",
        "The gap should open because the rejected line falls; where the chosen line falls too, training pushes good "
        "responses away (an NLL term holds them).",
        "nats per response",
        (Curve("chosen_logp", "chosen", 3), Curve("rejected_logp", "rejected", 4)),
    ),
    (
        "log-ratios",
        "Log-ratios to the reference",
        "The same, less the reference: every round begins at 0; chosen below 0 is less likely than before the round.",
        "nats per response",
        (Curve("chosen_log_ratio", "chosen", 3), Curve("rejected_log_ratio", "rejected", 4)),
    ),
    (
        "margin",
        "Margin",
        "β times the difference of both log-ratios: it should rise and flatten; a steep end means too many steps.",
        "β × nats",
        (Curve("margin", "margin", 1),),
    ),
    (
        "reward-accuracy",
        "Pairs that are ranked right",
        "Reward accuracy counts pairs whose chosen side gained more than the other, ranking accuracy those whose "
        "chosen side is the likelier one; near 100 % there is nothing left to learn.",
        "%",
        (
            Curve("reward_accuracy", "reward accuracy", 1, percent=True),
            Curve("ranking_accuracy", "ranking accuracy", 2, dashed=True, percent=True),
        ),
    ),
    (
        "displacement",
        "Displaced chosen responses",
        "Pairs whose chosen response became less likely than under the reference: low is good, above one half is a "
        "sign of likelihood displacement.",
        "%",
        (
            Curve("displacement_rate", "chosen fell", 4, percent=True),
            Curve("both_displaced_rate", "both fell, margin rose", 6, dashed=True, percent=True),
        ),
    ),
    (
        "gradient-norm",
        "Gradient norm",
        "Before clipping: spikes that come back again and again ask for a lower learning rate.",
        "norm",
        (Curve("gradient_norm", "gradient norm", 1),),
    ),
    (
        "gradient-ratio",
        "Gradient ratio",
        "log10 of the pull on the chosen over the push on the rejected probability: −5 means that training almost only "
        "pushes down.",
        "log10",
        (Curve("log10_gradient_ratio", "log10 gradient ratio", 2),),
    ),
    (
        "entropy",
        "Entropy",
        "Of the next token, on the responses trained on: a fall without a gain in accuracy is collapse.",
        "nats per token",
        (Curve("entropy", "entropy", 5),),
    ),
    (
        "pair-lengths",
        "Lengths of chosen and rejected",
        "If chosen responses are longer as a rule, the model is taught to be long.",
        "tokens",
        (Curve("chosen_length", "chosen", 3), Curve("rejected_length", "rejected", 4)),
    ),
)
"""Every curve over training: id, title, how to read it, unit, columns."""


def curves(data: RunData, id: str, title: str, read: str, unit: str, columns: Sequence[Curve]) -> Figure | Missing:
    """Columns of the step log over all rounds."""
    series = [one for one in (_curve(data, column) for column in columns) if one.points]
    if not series:
        names = ", ".join(column.column for column in columns)
        return Missing(title, f"no round has logged {names}")
    x, starts = _steps_axis(data), _starts(data)
    y = axis(heights(series), *plot_y(), zero=unit == "%")
    drawn = chart(title, series, x, y, x_label="optimizer steps of all rounds", y_label=unit, boundaries=starts)
    return Figure(id, title, read, drawn, keys_of(series), table_of("step", series))


def loss(data: RunData) -> Figure | Missing:
    """What the optimizer saw, and the parts that it is the sum of."""
    logged = {name for turn in data.rounds for row in turn.steps[:1] for name in row}
    parts = sorted(logged & METHODS.keys())
    named = [Curve(name, name, tone, dashed=True) for name, tone in zip(parts, (2, 3, 5, 6), strict=False)]
    read = (
        "The loss is what the optimizer saw, its parts are beside it; every round begins at its starting value again."
    )
    columns = (Curve("loss", "loss", 1), *(named if len(named) > 1 else ()))
    return curves(data, "loss", "Loss and its parts", read, "per pair", columns)


def _curve(data: RunData, curve: Curve) -> Series:
    points, spread = thin_column(data, curve.column, 100 if curve.percent else 1)
    return Series(curve.name, points, curve.tone, spread, dots=False, dashed=curve.dashed)


def thin_column(data: RunData, column: str, scale: float = 1) -> tuple[list[Point], list[tuple[float, float] | None]]:
    """A column over all rounds, with the range behind each point; a round's points are thinned by themselves, and
    rounds are not joined."""
    budget = max(2, POINTS // max(1, len(data.rounds)))
    points: list[Point] = []
    spread: list[tuple[float, float] | None] = []
    start = 0
    for turn in data.rounds:
        known = [(start + i, _known(row, column)) for i, row in enumerate(turn.steps)]
        for x, y, low, high in thin([(x, scale * y) for x, y in known if y is not None], budget):
            points.append((round(x, 1), y))
            spread.append((low, high))
        if points and points[-1][1] is not None:
            points.append((points[-1][0], None))
            spread.append(None)
        start += len(turn.steps)
    return points, spread


def _known(row: dict[str, Any], column: str) -> float | None:
    value = row.get(column)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _starts(data: RunData) -> list[tuple[float, str]]:
    """Where iterations begin, each with its name; of many only some."""
    trained = [turn for turn in data.rounds if turn.steps]
    every, start = math.ceil(len(trained) / LABELS), 0
    found: list[tuple[float, str]] = []
    for place, turn in enumerate(trained):
        word = f"iteration {turn.number}" if len(trained) <= 4 else str(turn.number)
        found += [(float(start), word)] if place % every == 0 else []
        start += len(turn.steps)
    return found


def _steps_axis(data: RunData) -> Axis:
    total = sum(len(turn.steps) for turn in data.rounds)
    low, high = plot_x()
    found = axis([0.0, float(max(total - 1, 1))], low, high)
    return Axis(0.0, float(max(total - 1, 1)), low, high, tuple(t for t in found.ticks if t <= total))


def watched(data: RunData) -> Figure | Missing:
    """Pairs that are kept out of training and only looked at."""
    title = "Log-probs of pairs that are only watched"
    points: dict[str, list[Point]] = {"chosen_logp": [], "rejected_logp": []}
    start = 0
    for turn in data.rounds:
        for place, row in enumerate(turn.steps):
            probe = row.get("probe") or {}
            for column, found in points.items():
                if (value := _known(probe, column)) is not None:
                    found.append((float(start + place), value))
        start += len(turn.steps)
        for found in points.values():
            found += [(found[-1][0], None)] if found else []
    if not points["chosen_logp"]:
        return Missing(title, "it takes train.probe_pairs")
    series = [
        Series("chosen", points["chosen_logp"], 3),
        Series("rejected", points["rejected_logp"], 4),
    ]
    y = axis(heights(series), *plot_y())
    drawn = chart(
        title,
        series,
        _steps_axis(data),
        y,
        x_label="optimizer steps of all rounds",
        y_label="nats per response",
        boundaries=_starts(data),
    )
    read = "What the round does to pairs that it is not trained on; if it differs from the trained pairs, it memorises."
    return Figure("watched", title, read, drawn, keys_of(series), table_of("step", series))


def gradient_field(data: RunData) -> Figure | Missing:
    """Where DPO pulls, over both probability ratios, with the last round's pairs in it (arXiv:2404.04626)."""
    title = "The DPO gradient field and the last round"
    trained = [turn for turn in data.rounds if any("chosen_log_ratio" in row for row in turn.steps)]
    if not trained:
        return Missing(title, "no round has logged log-ratios to a reference")
    last = trained[-1]
    settings = data.settings(last.number).train
    if not isinstance(settings.loss, str) or not settings.loss.startswith("dpo") or not settings.beta:
        return Missing(title, f"it is defined for DPO, and train.loss of iteration {last.number} is {settings.loss}")
    rows = [row for row in last.steps if "chosen_log_ratio" in row and "rejected_log_ratio" in row]
    rows = rows[:: math.ceil(len(rows) / MOST_STEPS)]
    path = [(row["chosen_log_ratio"] / math.log(10), row["rejected_log_ratio"] / math.log(10)) for row in rows]
    every = [(row["step"], pair) for row in last.steps for pair in row.get("log_ratios", ())]
    every = every[:: max(1, math.ceil(len(every) / MOST_PAIRS))]
    pairs = [(a / math.log(10), b / math.log(10)) for _, (a, b) in every]
    x, y = _around([a for a, _ in path + pairs], *plot_x()), _around([b for _, b in path + pairs], *plot_y())
    drawn_pairs = Series(
        f"pairs, iteration {last.number}",
        pairs,
        4,
        line=False,
        told=[f"a pair of step {step}: {_ratios(pair)}" for (step, _), pair in zip(every, pairs, strict=True)],
    )
    steps = Series(
        f"mean pair of each step, iteration {last.number}",
        path,
        2,
        line=False,
        told=[f"step {row['step']}: {_ratios(pair)}" for row, pair in zip(rows, path, strict=True)],
    )
    shown = [drawn_pairs, steps] if pairs else [steps]
    field = _field(x, y, float(settings.beta))
    drawn = chart(title, shown, x, y, x_label="log10 x1 (chosen)", y_label="log10 x2 (rejected)", under=field)
    read = (
        "x = π / π_ref of a response. Arrows are the way that DPO pulls x1 and x2, hardest in the strong cells: below "
        "the diagonal nearly all arrows point down, so the rejected side falls faster than the chosen one rises."
    )
    told = [(row["step"], "mean", pair) for row, pair in zip(rows, path, strict=True)]
    told += [(step, "one pair", pair) for (step, _), pair in zip(every, pairs, strict=True)]
    table = Table(["step", "what", "log10 x1", "log10 x2"], [[step, what, a, b] for step, what, (a, b) in told])
    return Figure("gradient-field", title, read, drawn, keys_of(shown), table)


def _ratios(pair: tuple[float, float]) -> str:
    return f"x1 = {10 ** pair[0]:.3g}, x2 = {10 ** pair[1]:.3g}"


def _around(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis around the path that has the reference, 0, well inside."""
    return axis([*values, -1.0, 1.0], start, end)


def _field(x: Axis, y: Axis, beta: float, columns: int = 14, rows: int = 9) -> list[Markup]:
    """Cells shaded by log10 of the gradient's size, with an arrow of its direction (downhill)."""
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
