"""Figure of the DPO gradient over both probability ratios, with the pairs of the last round in it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from loop.measure.estimators import dpo_field
from loop.report.data import RunData
from loop.report.figure import Figure, Missing, Table, keys_of
from loop.report.marks import LEFT, TOP, Series, arrow, chart, element, plot_x, plot_y
from loop.report.scale import Axis, axis

MOST_STEPS = 200
MOST_PAIRS = 400
"""Most step means and single pairs in the figure; longer rounds are thinned evenly."""

StepRow = Mapping[str, Any]
"""A row of the step log: numbers by column, and `log_ratios` of single pairs."""


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
        _around([one.log10[side] for one in (*steps, *pairs)], *plot()) for side, plot in enumerate((plot_x, plot_y))
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


def _mean_ratios(rows: Sequence[StepRow]) -> list[Ratios]:
    """The mean pair of each step, of MOST_STEPS steps at most."""
    known = [row for row in rows if "chosen_log_ratio" in row and "rejected_log_ratio" in row]
    some = known[:: math.ceil(len(known) / MOST_STEPS)]
    return [Ratios(row["step"], _in_log10(row["chosen_log_ratio"], row["rejected_log_ratio"])) for row in some]


def _pair_ratios(rows: Sequence[StepRow]) -> list[Ratios]:
    """Single pairs, MOST_PAIRS at most."""
    known = [(row["step"], pair) for row in rows for pair in row.get("log_ratios", ())]
    some = known[:: max(1, math.ceil(len(known) / MOST_PAIRS))]
    return [Ratios(step, _in_log10(*pair)) for step, pair in some]


def _in_log10(chosen: float, rejected: float) -> tuple[float, float]:
    return chosen / math.log(10), rejected / math.log(10)


def _ratio_series(name: str, what: str, ratios: Sequence[Ratios], tone: int) -> Series:
    titles = [f"{what} {step}: x1 = {10**chosen:.3g}, x2 = {10**rejected:.3g}" for step, (chosen, rejected) in ratios]
    return Series(name, [one.log10 for one in ratios], tone, line=False, titles=titles)


def _around(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis around the values that includes -1..1, so the reference at 0 is well inside."""
    return axis([*values, -1.0, 1.0], start, end)


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
