"""Prints judge catalog entries and trial reports as tables and lines."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from judges.catalog import Argument, Entry
from loop.format import duration, one_line, percent, visible

if TYPE_CHECKING:  # listing judges must stay quick
    from judges.trial.report import Calibration, LengthBias, OrderBias, ScoreAgreement
    from loop.commands.judge_test import Disagreement, JudgeReport, PricedUsage

SAID = ("right", "wrong", "chosen", "tie", "rejected", "abstain", "error")
"""Columns of the confusion table, in this order, where they occur."""


def print_catalog(entries: Sequence[Entry]) -> None:
    """Print each judge with its summary and its arguments."""
    console = Console(highlight=False)
    for entry in entries:
        style = "dim" if entry.kind else "red"
        console.print(Text.assemble((entry.name, "bold"), (f"  {entry.kind or 'broken'}, {entry.origin}", style)))
        _print_indented(console, entry.problem or entry.summary)
        if entry.arguments:
            _print_indented(console, "; ".join(f"{a.name} ({a.type}, {_default(a)})" for a in entry.arguments), "dim")
    console.print("\nDetails of a judge: prefloop judge list NAME. Write your own: prefloop judge new NAME.")


def _print_indented(console: Console, text: str, style: str = "") -> None:
    console.print(Padding(Text(text, style=style), (0, 0, 0, 4)))


def _default(argument: Argument) -> str:
    return "required" if argument.required else f"default {json.dumps(argument.default, ensure_ascii=False)}"


def print_judge(entry: Entry) -> None:
    """Print the description and arguments of one judge."""
    console = Console(highlight=False)
    console.print(Text.assemble((entry.name, "bold"), (f"  {entry.kind}, {entry.origin}", "dim")))
    console.print(Text(f"\n{entry.description}\n"))
    if not entry.arguments:
        console.print("It takes no arguments.")
    for argument in entry.arguments:
        console.print(Text.assemble((argument.name, "bold"), f"  {argument.type}, {_default(argument)}"))
        _print_indented(console, argument.meaning)


def print_report(found: "JudgeReport") -> None:
    """Print the report on a judge's test."""
    console, trial = Console(highlight=False), found.trial
    console.print()
    grid = Table.grid(padding=(0, 2))
    for name, value in _lines(found):
        grid.add_row(name, Text(value))
    console.print(grid)
    if trial.confusion:
        console.print("\nexamples by label (rows) and verdict (columns)", style="italic")
        console.print(_confusion_table(trial.confusion))
    if trial.calibration and len(trial.calibration.bins) > 2:
        console.print(_calibration_table(trial.calibration))
    if found.hint:
        console.print(f"\n{found.hint}", style="yellow")
    for disagreement in found.disagreements:
        _print_disagreement(console, disagreement)
    left = sum(trial.examples.values()) - trial.agreed - len(found.disagreements)
    if left:
        console.print(f"\n{left} more disagreements; --show {left + len(found.disagreements)} shows all.")


def _lines(found: "JudgeReport") -> list[tuple[str, str]]:
    """The numbers, a line each; what the examples cannot give is left out."""
    trial = found.trial
    low, high = (100 * end for end in found.agreement_interval)
    counted = f"{trial.agreed} of {sum(trial.examples.values())}"
    words = {"label": "labelled responses", "score": "scored responses", "pair": "pairs"}
    lines = [
        ("judge", found.judge["name"]),
        ("examples", ", ".join(f"{count} {words[kind]}" for kind, count in trial.examples.items())),
        ("agreement", f"{_percent(trial.agreement)} [{low:.1f}, {high:.1f}], {counted}"),
        ("where it decided", _percent(trial.agreement_among_decided)),
        ("kappa", _number(trial.kappa)),
        ("abstained", _percent(trial.abstain_rate)),
        ("errors", _percent(trial.error_rate)),
        ("ties", _percent(trial.tie_rate)),
        ("calibration error", _number(None if trial.calibration is None else trial.calibration.ece)),
        *(_score_lines(trial.scores) if trial.scores else ()),
        *_length_lines(trial.length),
        *(_order_lines(trial.orders) if trial.orders else ()),
        ("speed", f"{found.speed.responses_per_second:.1f} responses/s, {duration(found.speed.seconds)}"),
        *(_used_lines(found.used) if found.used else ()),
    ]
    return [(name, value) for name, value in lines if value]


def _score_lines(scores: "ScoreAgreement") -> list[tuple[str, str]]:
    told = {"Pearson": scores.pearson, "Spearman": scores.spearman}
    known = ", ".join(f"{name} {value:.2f}" for name, value in told.items() if value is not None)
    return [("with labelled scores", known), ("mean difference", _number(scores.mean_absolute_difference))]


def _length_lines(length: "LengthBias") -> list[tuple[str, str]]:
    lines = []
    if length.score is not None:
        of_labels = "" if length.label is None else f"; of the labels with it {length.label:+.2f}"
        lines.append(("length", f"correlation of the score with it {length.score:+.2f}{of_labels}"))
    if length.longer_preferred_by_judge is not None:
        judge, labels = map(_percent, (length.longer_preferred_by_judge, length.longer_preferred_by_labels))
        lines.append(("longer one preferred", f"by the judge {judge}, by the labels {labels}"))
    return lines


def _order_lines(orders: "OrderBias") -> list[tuple[str, str]]:
    return [
        ("order consistency", f"{_percent(orders.consistent)} of {orders.n} pairs judged in both orders"),
        ("first one preferred", f"{_percent(orders.first_preferred)} (50 % is no position bias)"),
    ]


def _used_lines(used: "PricedUsage") -> list[tuple[str, str]]:
    money = "" if used.cost is None else f", {used.cost:,.4f} in money"
    tokens = f"{used.prompt_tokens:,} + {used.completion_tokens:,} tokens"
    return [("cost", f"{used.calls:,} calls, {tokens}{money}")]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{percent(value)} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _confusion_table(confusion: dict[str, dict[str, int]]) -> Table:
    said = [word for word in SAID if any(word in row for row in confusion.values())]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("")
    for word in said:
        table.add_column(word, justify="right")
    for wanted, row in confusion.items():
        table.add_row(wanted, *(str(row.get(word, 0)) for word in said))
    return table


def _calibration_table(calibration: "Calibration") -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title="calibration", title_justify="left")
    for name in ("score", "n", "mean score", "right"):
        table.add_column(name, justify="right")
    for row in calibration.bins:
        span = f"{row.low:.1f} to {row.high:.1f}"
        table.add_row(span, str(row.n), f"{row.mean_score:.2f}", f"{100 * row.share_right:.0f} %")
    return table


def _print_disagreement(console: Console, found: "Disagreement") -> None:
    said = ", ".join("–" if score is None else f"{score:g}" for score in found.scores)
    wanted = found.wanted if isinstance(found.wanted, str) else f"{found.wanted:g}"
    judged = said if found.said == "score" else f"{found.said} ({said})"
    head = f"\n{found.where}: labelled {wanted}, judged {judged}"
    console.print(Text(visible(f"{head}{': ' + found.why if found.why else ''}"), style="bold"))
    console.print(Text(f"  prompt    {_short(found.prompt)}"))
    if found.target is not None:
        console.print(Text(f"  target    {_short(found.target)}"))
    names = ("chosen", "rejected") if len(found.responses) == 2 else ("response",)
    for name, text in zip(names, found.responses, strict=True):
        console.print(Text(f"  {name:<10}{_short(text)}"))


def _short(text: str, most: int = 300) -> str:
    """The text on one line, its middle left out if it is long: answers stand at the end."""
    line = one_line(text)
    return line if len(line) <= most else f"{line[: most // 2]} […] {line[-most // 2 :]}"
