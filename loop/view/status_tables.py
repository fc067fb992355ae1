"""Print the state that `status.collect` returns."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loop.format import clock, duration, percent, percent_with_interval, points_with_interval, visible
from loop.store.run_records import NO_TRIALS, OUTCOMES, AttemptRecord, Gain, Interval, SetMetrics
from loop.store.run_state import IterationState, RunState
from loop.store.stage import STAGES
from loop.view.describe import describe_changes, describe_extra_pairs, describe_sources
from loop.view.progress import Writer

SIGNAL = {
    "solve_rate": ("solved", "%"),
    "mixed": ("mixed", "%"),
    "all_right": ("all\nright", "%"),
    "all_wrong": ("all\nwrong", "%"),
    "unique": ("uniq.", "%"),
    "entropy": ("nats/\ntoken", ".2f"),
    "length": ("mean\ntokens", ".0f"),
    "length_p95": ("p95", ".0f"),
    "truncated": ("cut\noff", "%"),
    "per_prompt": ("pairs/\nprompt", ".1f"),
    "trained_on": ("used", "%"),
    "kl": ("KL", ".1f"),
}
"""Columns of the training-signal table: head and format of each metric; docs/signal.md explains them."""
ACCURACIES = ("gate\nsampled", "test\nsampled", "test\ngreedy", "well-\nformed", "right of\nthose", "mean\ntokens")
PREFERENCES = ("gate\nprefers, %", "test\nprefers, %", "margin\nin nats", "likelier,\n%")
"""Columns of the table of results, with and without a judge."""


def with_interval(metric: Interval | None, between: str = " ") -> str:
    """Format as 52.1 [48, 56] in per cent, or a dash; `between` separates value and interval."""
    found = metric or NO_TRIALS
    return percent_with_interval(found.value, found.low, found.high, between=between)


def iteration_line(state: RunState, k: int) -> str:
    """One evaluated iteration as a summary line."""
    it = state.state_of(k)
    assert it.test is not None
    shown = _results(it.test)
    if it.paired is None:
        return f"base model | {shown}"
    took = f"{duration(it.time.wall)}, {percent(it.time.overhead_share, 0)} % overhead"
    made = f"{it.paired.pairs} {it.paired.kind}{describe_extra_pairs(it.paired)}"
    return f"iteration {k} | {made} | {shown} | {took}\n  {it.reason}"


def _results(test: SetMetrics) -> str:
    if test.preference_accuracy is not None:
        return f"test: agrees with the data {with_interval(test.preference_accuracy)} %"
    shown = f"test: sampled {with_interval(test.sampled_accuracy)} %, greedy {with_interval(test.greedy_accuracy)} %"
    if test.abstained_share:
        shown += f" (the judge abstained on {percent(test.abstained_share)} %, which count as not right)"
    if test.well_formed_share.value is None:
        return shown
    well_formed, right = with_interval(test.well_formed_share), with_interval(test.accuracy_among_well_formed)
    return f"{shown}, well-formed {well_formed} %, right among those {right} %"


def print_status(state: RunState, console: Console, writer: Writer | None = None) -> None:
    """Print the tables of iterations, times and signal, the gains, and how the run goes on: `writer` works on it if it
    is alive."""
    unjudged = any(it.test is not None and it.test.preference_accuracy is not None for it in state.iterations)
    console.print(_results_table(state, unjudged=unjudged))
    console.print(_work_table(state))
    if (signal := _signal_table(state)).row_count:
        console.print(signal)
    for line in [*_summary(state), *(line for it in state.iterations for line in _notes(it)), judge_line(state)]:
        if line:
            console.print(visible(line), markup=False)
    if not state.complete and writer is not None and writer.alive:
        console.print(f"Running: process {writer.pid}. Follow it with: prefloop watch {state.path}", markup=False)
    elif not state.complete:
        console.print(f"Not complete. Continue with: prefloop run {state.path}", markup=False)


def _summary(state: RunState) -> Iterator[str]:
    """Where the run comes from, and how far it has got."""
    if state.parent is not None:
        yield f"Forked from {state.parent}."
    best = state.incumbent
    against = ". Its test results against the base model's:" if best else "."
    yield f"Incumbent: {f'iteration {best}' if best else 'the base model'}{against}"
    for metric, gain in (state.gains or {}).items():
        yield gain_line(metric, gain)


def _notes(it: IterationState) -> Iterator[str]:
    """What is worth a sentence about an iteration: its sources, extra pairs, abstentions, decision and alarms."""
    k = it.iteration
    if it.sampled is not None and it.sampled.sources:
        yield f"Iteration {k} takes its prompts from: {describe_sources(it.sampled)}."
    if it.paired is not None and (extra := describe_extra_pairs(it.paired)):
        yield f"Iteration {k} trains on {it.paired.pairs} pairs{extra}."
    if it.test is not None and it.test.abstained_share:
        share = percent(it.test.abstained_share)
        yield f"Iteration {k}: the judge abstained on {share} % of the test responses, which count as not right."
    if it.reason:
        for n, one in enumerate(it.attempts[:-1], start=1):
            yield f"Iteration {k}, attempt {n}{_changed(one)} {one.reason}."
        again = f", attempt {len(it.attempts)}{_changed(it.attempts[-1])}" if len(it.attempts) > 1 else ""
        yield f"Iteration {k}{again} {it.reason}."
    for alarm in it.alarms:
        yield f"Iteration {k}, alarm: {alarm.text}."


def _changed(attempt: AttemptRecord) -> str:
    changes = describe_changes(attempt.changes)
    return f" ({changes})" if changes else ""


def judge_line(state: RunState) -> str:
    """Calls and tokens spent on a paid judge; empty if there are none."""
    spent = state.judge_spent
    return f"Judge: {spent.calls:,} paid calls and {spent.tokens:,} tokens so far." if spent.calls else ""


def gain_line(metric: str, gain: Gain) -> str:
    """One line: the gain in a metric on the test prompts."""
    difference, factor = gain.difference, gain.ratio
    name = metric.replace("_", " ")
    if difference.value is None or difference.low is None or difference.high is None:
        return f"  {name}: cannot be compared"
    line = f"  {name}: {points_with_interval(difference.value, difference.low, difference.high)}"
    if factor.value is None or factor.low is None:
        return line
    high = "" if factor.high is None else f"{factor.high:.2f}"
    return f"{line}, {factor.value:.2f} times [{factor.low:.2f}, {high}]"


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _results_table(state: RunState, *, unjudged: bool) -> Table:
    """Accuracies by iteration; for a campaign without a judge, how often held-out pairs are ranked right."""
    what, cells = ("held-out pairs", _preferences) if unjudged else ("accuracy in %", _accuracies)
    columns = PREFERENCES if unjudged else ACCURACIES
    title = f"{state.run}: {what}, {100 * state.confidence:g} % intervals over prompts"
    table = _table(title, ("iter", *columns, ""))
    for it in state.iterations:
        if it.gate is None or it.test is None:
            table.add_row(str(it.iteration), *["–"] * len(columns), "in progress")
        else:
            table.add_row(str(it.iteration), *cells(it.gate, it.test), _outcome(it))
    return table


def _accuracies(gate: SetMetrics, test: SetMetrics) -> list[str]:
    metrics = (test.sampled_accuracy, test.greedy_accuracy, test.well_formed_share, test.accuracy_among_well_formed)
    cells = [with_interval(metric, "\n") for metric in (gate.sampled_accuracy, *metrics)]
    return [*cells, _cell(test.mean_length, ".0f")]


def _preferences(gate: SetMetrics, test: SetMetrics) -> list[str]:
    prefers = (with_interval(one.preference_accuracy, "\n") for one in (gate, test))
    return [*prefers, _cell(test.mean_margin, ".2f"), percent(test.likelihood_accuracy)]


def _outcome(it: IterationState) -> str:
    if not it.iteration:
        return "base"
    lines = [{True: "promoted", False: "rejected", None: "in progress"}[it.promoted]]
    lines += [OUTCOMES[it.outcome].replace("prompts ", "prompts\n")] if it.outcome is not None else []
    lines += [f"attempt {it.attempts_begun}"] if it.attempts_begun > 1 else []
    return "\n".join(lines)


def _work_table(state: RunState) -> Table:
    columns = ("iter", "prompt", "resp.", "paired", "pairs", "steps", "sampl", "judge", "pair", "train", "eval", "over")
    table = _table("work, and time by stage (m:ss)", columns)
    for it in state.iterations:
        times = [_stage_time(stage, it.seconds.get(stage), it.stages.get(stage)) for stage in STAGES]
        share = f"{percent(it.time.overhead_share, 0)} %" if it.finished else "–"
        table.add_row(str(it.iteration), *("" if n is None else str(n) for n in _work(it)), *times, share)
    return table


def _work(it: IterationState) -> list[int | None]:
    """Prompts, responses, paired prompts, pairs and steps."""
    sample, pair, train = it.sampled, it.paired, it.trained
    sampled = [sample.prompts, sample.responses] if sample else [None, None]
    paired = [pair.prompts.get("paired"), pair.pairs] if pair else [None, None]
    return [*sampled, *paired, train.steps if train else None]


def _signal_table(state: RunState) -> Table:
    """The training signal by iteration; without rows if no iteration has any."""
    table = _table("signal of the training prompts, shares in %", ("iter", *(head for head, _ in SIGNAL.values())))
    for it in state.iterations:
        if any(it.signal.get(name) is not None for name in SIGNAL):
            table.add_row(str(it.iteration), *(_cell(it.signal.get(name), form) for name, (_, form) in SIGNAL.items()))
    return table


def _cell(value: float | None, form: str) -> str:
    if value is None:
        return "–"
    return percent(value, 0) if form == "%" else format(value, form)


def _stage_time(stage: str, seconds: dict[str, float] | None, state: str | None) -> str:
    if seconds is None:
        return "…" if state == "started" else ""
    return clock(seconds.get("judge" if stage == "judge" else "wall", 0.0), hours=False)
