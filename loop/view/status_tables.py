"""Print the state that `status.collect` returns."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loop.format import clock, duration, percent, percent_with_interval, points_with_interval
from loop.store.run_records import NO_TRIALS, AttemptRecord, Gain, Interval, SetMetrics
from loop.store.run_state import IterationState, RunState
from loop.store.stage import STAGES
from loop.view.describe import describe_changes, describe_extra_pairs, describe_sources

SIGNAL = {
    "solve_rate": "%",
    "mixed": "%",
    "all_right": "%",
    "all_wrong": "%",
    "unique": "%",
    "entropy": ".2f",
    "length": ".0f",
    "length_p95": ".0f",
    "truncated": "%",
    "per_prompt": ".1f",
    "trained_on": "%",
    "kl": ".1f",
}
"""Columns of the training-signal table and their formats."""


def with_interval(metric: Interval | None, between: str = " ") -> str:
    """Format as 52.1 [48, 56] in per cent, or a dash; `between` separates value and interval."""
    found = metric or NO_TRIALS
    return percent_with_interval(found.value, found.low, found.high, between=between)


def iteration_line(state: RunState, k: int) -> str:
    """One evaluated iteration as a summary line."""
    it = next(it for it in state.iterations if it.iteration == k)
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
    if test.well_formed_share.value is None:
        return shown
    well_formed, right = with_interval(test.well_formed_share), with_interval(test.accuracy_among_well_formed)
    return f"{shown}, well-formed {well_formed} %, right among those {right} %"


def print_status(state: RunState, console: Console) -> None:
    """Print the tables of iterations, times and signal, and the gains."""
    unjudged = any(it.test is not None and it.test.preference_accuracy is not None for it in state.iterations)
    console.print(preference_table(state) if unjudged else _accuracy_table(state))
    console.print(_work_table(state))
    if any(_has_signal(it) for it in state.iterations):
        console.print(_signal_table(state))
    for line in [*_summary(state), *(line for it in state.iterations for line in _notes(it))]:
        console.print(line, markup=False)
    if used := judge_line(state):
        console.print(used, markup=False)
    if not state.complete:
        console.print(f"Not complete. Continue with: prefloop run {state.path}", markup=False)


def _summary(state: RunState) -> Iterator[str]:
    """Where the run comes from, and how far it has got."""
    if state.parent is not None:
        yield f"Forked from iteration {state.parent.iteration} of {state.parent.run}."
    best = state.incumbent
    against = ". Its test results against the base model's:" if best else "."
    yield f"Incumbent: {f'iteration {best}' if best else 'the base model'}{against}"
    for metric, gain in (state.gains or {}).items():
        yield gain_line(metric, gain)


def _notes(it: IterationState) -> Iterator[str]:
    """What is worth a sentence about an iteration: its sources, extra pairs, decision and alarms."""
    k = it.iteration
    if it.sampled is not None and it.sampled.sources:
        yield f"Iteration {k} takes its prompts from: {describe_sources(it.sampled)}."
    if it.paired is not None and (extra := describe_extra_pairs(it.paired)):
        yield f"Iteration {k} trains on {it.paired.pairs} pairs{extra}."
    if it.reason:
        yield from attempt_lines(it)
        again = f", attempt {len(it.attempts)}{_changed(it.attempts[-1])}" if len(it.attempts) > 1 else ""
        yield f"Iteration {k}{again} {it.reason}."
    for alarm in it.alarms:
        yield f"Iteration {k}, alarm: {alarm.text}."


def attempt_lines(iteration: IterationState) -> list[str]:
    """One line per attempt before the last one."""
    k, tried = iteration.iteration, iteration.attempts
    return [f"Iteration {k}, attempt {n}{_changed(one)} {one.reason}." for n, one in enumerate(tried[:-1], start=1)]


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


def _accuracy_table(state: RunState) -> Table:
    title = f"{state.run}: accuracy in %, {100 * state.confidence:g} % intervals over prompts"
    accuracies = ("gate\nsampled", "test\nsampled", "test\ngreedy", "well-\nformed", "right of\nthose")
    table = _table(title, ("iter", *accuracies, "mean\ntokens", ""))
    for it in state.iterations:
        gate, test = it.gate, it.test
        if gate is None or test is None:
            table.add_row(str(it.iteration), *["–"] * 6, "in progress")
            continue
        metrics = (test.sampled_accuracy, test.greedy_accuracy, test.well_formed_share, test.accuracy_among_well_formed)
        cells = [with_interval(metric, "\n") for metric in (gate.sampled_accuracy, *metrics)]
        table.add_row(str(it.iteration), *cells, _cell(test.mean_length, ".0f"), _outcome(it))
    return table


def _outcome(it: IterationState) -> str:
    if not it.iteration:
        return "base"
    outcome = {True: "promoted", False: "rejected", None: "in progress"}[it.promoted]
    return f"{outcome}\nattempt {it.attempts_begun}" if it.attempts_begun > 1 else outcome


def preference_table(state: RunState) -> Table:
    """The table of iterations for a campaign without a judge."""
    title = f"{state.run}: held-out pairs, {100 * state.confidence:g} % intervals over prompts"
    table = _table(title, ("iter", "gate\nprefers, %", "test\nprefers, %", "margin\nin nats", "likelier,\n%", ""))
    for it in state.iterations:
        gate, test = it.gate, it.test
        if gate is None or test is None:
            table.add_row(str(it.iteration), *["–"] * 4, "in progress")
            continue
        likelier = test.likelihood_accuracy
        numbers = (_cell(test.mean_margin, ".2f"), percent(likelier))
        prefers = (with_interval(one.preference_accuracy, "\n") for one in (gate, test))
        table.add_row(str(it.iteration), *prefers, *numbers, _outcome(it))
    return table


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
    return [
        sample.prompts if sample else None,
        sample.responses if sample else None,
        pair.prompts.get("paired") if pair else None,
        pair.pairs if pair else None,
        train.steps if train else None,
    ]


def _has_signal(it: IterationState) -> bool:
    """Whether any column of the signal table has a value."""
    return any(it.signal.get(name) is not None for name in SIGNAL)


def _signal_table(state: RunState) -> Table:
    """The training signal by iteration; docs/signal.md explains every column."""
    shares = ("solved", "mixed", "all\nright", "all\nwrong", "uniq.")
    others = ("nats/\ntoken", "mean\ntokens", "p95", "cut\noff", "pairs/\nprompt", "used", "KL")
    table = _table("signal of the training prompts, shares in %", ("iter", *shares, *others))
    for it in state.iterations:
        if _has_signal(it):
            cells = (_cell(it.signal.get(name), form) for name, form in SIGNAL.items())
            table.add_row(str(it.iteration), *cells)
    return table


def _cell(value: float | None, form: str) -> str:
    if value is None:
        return "–"
    return percent(value, 0) if form == "%" else format(value, form)


def _stage_time(stage: str, seconds: dict[str, float] | None, state: str | None) -> str:
    if seconds is None:
        return {"finished": "", "started": "…", "waiting": "", None: ""}[state]
    return clock(seconds.get("judge" if stage == "judge" else "wall", 0.0), hours=False)
