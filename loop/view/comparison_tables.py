"""Print a comparison of runs on the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loop.config.checks import PREFERENCE
from loop.format import one_line, points_with_interval, visible
from loop.measure.evaluation import METRICS
from loop.redact import setting_text
from loop.store.run_records import Difference
from loop.view.comparison import (
    ChangedSetting,
    Comparison,
    Disagreement,
    EntrantSummary,
    IterationMetrics,
    ModelDifference,
)
from loop.view.prompt_records import GreedyAnswer
from loop.view.status_tables import with_interval


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print differing settings, metrics side by side, tests and examples."""
    names = [entrant.name for entrant in comparison.entrants]
    for entrant in comparison.entrants:
        console.print(_who(entrant), markup=False, highlight=False)
    console.print(_settings_table(comparison.settings, names))
    console.print(_metrics_table(comparison.iterations, names))
    for difference in comparison.comparisons:
        console.print()
        for line in _test_lines(difference, comparison.confidence):
            console.print(line, markup=False, highlight=False)
        for example in difference.disagreements:
            _print_example(example, difference, console)


def _who(entrant: EntrantSummary) -> str:
    model = f"the model of iteration {entrant.iteration}" if entrant.iteration else "the base model"
    role = ", its incumbent" if entrant.incumbent else ""
    parent = entrant.parent
    origin = f"; forked from {parent}" if parent else ""
    return f"{entrant.name}: {model}{role}{origin}"


def _settings_table(settings: Sequence[ChangedSetting], names: Sequence[str]) -> Table | str:
    if not settings:
        return "\nAll settings are equal."
    table = Table(title="settings that differ", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("key", *names):
        table.add_column(column, overflow="fold")
    for row in settings:
        table.add_row(row.key, *map(Text, setting_texts(row)))
    return table


def setting_texts(row: ChangedSetting) -> list[str]:
    """The values as JSON, without secrets."""
    return [setting_text(value, row.key) for value in row.values]


def _metrics_table(iterations: Sequence[IterationMetrics], names: Sequence[str]) -> Table:
    table = Table(title="test prompts, in %, with intervals", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("iter", "metric", *names):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for row in iterations:
        for place, metric in enumerate((*METRICS, PREFERENCE)):
            cells = [with_interval(test.metric(metric) if test else None) for test in row.test]
            if set(cells) != {"–"}:
                table.add_row("" if place else str(row.iteration), metric.replace("_", " "), *cells)
    return table


def _test_lines(one: ModelDifference, confidence: float) -> list[str]:
    prompts = one.test_prompts
    how = f"paired on the same {prompts.first} test prompts"
    if not one.paired:
        how = (
            f"UNPAIRED, because the test sets differ ({prompts.first} and {prompts.second} prompts, {prompts.both} in "
            "both)"
        )
    differently = ((row.key, *setting_texts(row)) for row in one.evaluated_differently)
    return [
        f"{one.second} against {one.first}, {how}, {100 * confidence:g} % intervals:",
        *(f"  {metric.replace('_', ' ')}: {_in_points(found)}" for metric, found in one.metrics.items()),
        *(f"  evaluated differently: {key} {was} and {now}" for key, was, now in differently),
        f"  greedy responses correct in only one: {one.only_right.first} of {one.first}, {one.only_right.second} of "
        f"{one.second}",
    ]


def _in_points(difference: Difference) -> str:
    if difference.value is None:
        return "cannot be compared"
    interval = points_with_interval(difference.value, difference.low, difference.high)
    return f"{interval}, p = {difference.p_value:.3g}"


def _print_example(example: Disagreement, one: ModelDifference, console: Console) -> None:
    console.print(Text(visible(f"\n{example.prompt_id}  {example.first.prompt}"), style="bold"))
    console.print(Text(visible(f"  target: {example.first.target}")))
    console.print(_answer_line(one.first, example.first))
    console.print(_answer_line(one.second, example.second))


def _answer_line(name: str, answer: GreedyAnswer) -> Text:
    style, mark = ("green", "right") if answer.right else ("red", "wrong")
    why = f" ({answer.why})" if answer.why else ""
    return Text(f"  {name} ").append(mark, style=style).append(f"{visible(why)}: {one_line(answer.text)}")
