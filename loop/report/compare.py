"""Comparison report: draws what `loop/view/comparison.py` computes of several runs on one page, on shared axes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.measure.evaluation import METRICS
from loop.report.changes import MarkedAnswers, marked_answers
from loop.report.data import IterationData, RunData, read_run
from loop.report.figure import Figure, Missing, Table, heights, keys_of, section, table_of
from loop.report.figures_quality import describe_change, hundred
from loop.report.figures_training import thin_column
from loop.report.headline import Tile
from loop.report.marks import PLOT_X, PLOT_Y, Series, chart
from loop.report.page import fill
from loop.report.scale import axis, number, percent, share_axis, whole_axis
from loop.report.warnings import alarms
from loop.store.files import write_file
from loop.store.run_folder import RunFolder
from loop.store.run_records import Difference
from loop.view.comparison import Comparison, EntrantSummary, ModelDifference, compare_runs
from loop.view.comparison_tables import setting_texts

TONES = 8
"""Number of colours. Further runs repeat them with dashed lines."""


@dataclass(frozen=True, slots=True)
class DifferenceSection:
    """What the page shows of one model against the first."""

    title: str
    first: str
    second: str
    table: Table
    disagreements: list[MarkedAnswers]
    only_right: str
    """Number of greedy answers that are right in one model only; empty if the test sets differ."""


def write_comparison(names: Sequence[str], runs: Path, out: Path, limit: int) -> Path:
    """Write the comparison of these runs and iterations to `out`. Returns its path. Raises UserError."""
    write_file(out, render_comparison(compare_runs(names, runs, limit)).encode("utf-8"))
    return out


def render_comparison(comparison: Comparison) -> str:
    """The page as HTML."""
    data = [read_run(RunFolder(Path(run))) for run in dict.fromkeys(entrant.run for entrant in comparison.entrants)]
    names = short_names([entrant.name for entrant in comparison.entrants])
    others = list(zip(comparison.comparisons, names[1:], strict=True))
    return fill(
        "compare.html",
        title=" · ".join(names),
        tiles=[_tile(entrant, name) for entrant, name in zip(comparison.entrants, names, strict=True)],
        sentences=[_sentence(one, names[0], name) for one, name in others],
        sections=[section("figures", "On shared axes", figures(data))],
        alarms=[(one.name, alarm) for one in data for alarm in alarms(one)],
        differences=[_difference_section(one, names[0], name, comparison.confidence) for one, name in others],
        settings=Table(["key", *names], [[row.key, *setting_texts(row)] for row in comparison.settings]),
    )


def short_names(labels: Sequence[str]) -> list[str]:
    """The names without folders, unless two would be equal."""
    short = [Path(label).name for label in labels]
    return short if len(set(short)) == len(short) else list(labels)


def figures(data: Sequence[RunData]) -> list[Figure | Missing]:
    """Figures with all runs on the same axes."""
    return [
        _metric_figure(data, "test", "sampled_accuracy", "Test accuracy, sampled"),
        _metric_figure(data, "test", "greedy_accuracy", "Test accuracy, greedy"),
        _metric_figure(data, "gate", "sampled_accuracy", "Gate accuracy, sampled"),
        _metric_figure(data, "test", "well_formed_share", "Well formed"),
        over_time(data),
        _plain_figure(
            data, "lengths", "Mean length", "tokens, test", lambda it: it.test.mean_length if it.test else None
        ),
        _plain_figure(data, "pairs", "Pairs", "count", lambda it: it.state.paired.pairs if it.state.paired else None),
        _step_figure(data, "margin", "Margin", "β × nats"),
        _step_figure(data, "chosen_logp", "Log-prob of chosen responses", "nats per response"),
        _step_figure(data, "rejected_logp", "Log-prob of rejected responses", "nats per response"),
    ]


def _line(place: int, name: str, points: Sequence[tuple[float, float | None]], **more: Any) -> Series:
    return Series(name, points, 1 + place % TONES, dashed=place >= TONES, **more)


def _metric_figure(data: Sequence[RunData], which: str, metric: str, title: str) -> Figure | Missing:
    """A metric with its intervals, by iteration."""
    series = []
    for place, one in enumerate(data):
        found = [
            (it.number, interval)
            for it in one.evaluated
            if (metrics := getattr(it, which)) and (interval := metrics.metric(metric)) and interval.value is not None
        ]
        spread = [(100 * m.low, 100 * m.high) for _, m in found]
        series.append(_line(place, one.name, [(float(k), hundred(m.value)) for k, m in found], spread=spread))
    read = "Bands that do not overlap at the same iteration show a clear difference; the paired tests are below."
    return _drawn(f"{which}-{metric}", title, read, series, "iteration (0: base model)", "%", share=True)


def _plain_figure(
    data: Sequence[RunData], id: str, title: str, unit: str, value: Callable[[IterationData], float | None]
) -> Figure | Missing:
    """A number of each iteration."""
    series = [
        _line(place, one.name, [(float(it.number), float(v)) for it in one.iterations if (v := value(it)) is not None])
        for place, one in enumerate(data)
    ]
    return _drawn(id, title, "The same quantity of each run, iteration by iteration.", series, "iteration", unit)


def over_time(data: Sequence[RunData]) -> Figure | Missing:
    """Accuracy against cumulated wall time."""
    series = []
    for place, one in enumerate(data):
        spent, points = 0.0, []
        for it in one.evaluated:
            spent += it.state.time.wall / 60
            points.append((round(spent, 2), hundred(it.test.sampled_accuracy.value) if it.test else None))
        series.append(_line(place, one.name, points))
    read = "On equal machines, the run further up and to the left is cheaper: it reaches its accuracy in less time."
    return _drawn("time", "Test accuracy against wall time", read, series, "minutes", "%", share=True, whole=False)


def _step_figure(data: Sequence[RunData], column: str, title: str, unit: str) -> Figure | Missing:
    """A column of the step logs."""
    series = [_line(place, one.name, thin_column(one, column)[0], dots=False) for place, one in enumerate(data)]
    read = "Over the optimizer steps of all rounds; lines are interrupted where an iteration begins."
    return _drawn(column, title, read, series, "optimizer steps", unit, whole=False)


def _drawn(
    id: str,
    title: str,
    read: str,
    series: Sequence[Series],
    x_name: str,
    unit: str,
    *,
    share: bool = False,
    whole: bool = True,
) -> Figure | Missing:
    series = [one for one in series if any(y is not None for _, y in one.points)]
    if not series:
        return Missing(title, "no run has logged it")
    xs = [x for one in series for x, _ in one.points]
    x = whole_axis([int(v) for v in xs], *PLOT_X) if whole else axis(xs, *PLOT_X, zero=True)
    y = share_axis(heights(series), *PLOT_Y) if share else axis(heights(series), *PLOT_Y)
    drawn = chart(title, series, x, y, x_label=x_name, y_label=unit)
    return Figure(id, title, read, drawn, keys_of(series), table_of(x_name, series))


def _tile(entrant: EntrantSummary, name: str) -> Tile:
    metric = entrant.test.sampled_accuracy
    what = f"iteration {entrant.iteration}" if entrant.iteration else "base model"
    interval = "" if metric.value is None else f"[{percent(metric.low)}, {percent(metric.high)}], "
    return Tile(name, f"{percent(metric.value)} %", f"{interval}{what}")


def _sentence(one: ModelDifference, first: str, second: str) -> str:
    found = one.metrics["sampled_accuracy"]
    who = f"{second} against {first}"
    if found.value is None or found.low is None or found.high is None:
        return f"{who}: sampled accuracy cannot be compared."
    change = describe_change(found.value, found.low, found.high)
    sure = "significant" if found.low > 0 or found.high < 0 else "not significant on these prompts"
    return f"{who}: {change} of sampled test accuracy, p = {number(found.p_value)}: {sure}."


def _difference_section(one: ModelDifference, first: str, second: str, confidence: float) -> DifferenceSection:
    prompts, only = one.test_prompts, one.only_right
    how = f"paired on the same {prompts.first} test prompts"
    if not one.paired:
        how = f"unpaired, as the test sets differ ({prompts.first} and {prompts.second} prompts)"
    rows = [[metric.replace("_", " "), *_points(one.metrics[metric])] for metric in METRICS]
    return DifferenceSection(
        title=f"{second} against {first}: {how}, {100 * confidence:g} % intervals",
        first=first,
        second=second,
        table=Table(["metric", "points", "from", "to", "p"], rows),
        disagreements=[marked_answers(each.first, each.second) for each in one.disagreements],
        only_right=f"{only.first} of {first}, {only.second} of {second}" if one.paired else "",
    )


def _points(one: Difference) -> list[float | None]:
    return [hundred(one.value), hundred(one.low), hundred(one.high), one.p_value]
