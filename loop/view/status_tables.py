"""Print the state that `status.collect` returns."""

import json
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loop.config.checks import PREFERENCE
from loop.redact import redacted
from loop.store.stage import STAGES
from loop.view.describe import describe_changes, describe_extra_pairs, describe_sources
from loop.view.frame import duration

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


def percent(metric: dict[str, Any] | None, between: str = " ") -> str:
    """Format as 52.1 [48, 56] in per cent, or a dash; `between` separates value and interval."""
    if metric is None or metric["value"] is None:
        return "–"
    return f"{100 * metric['value']:.1f}{between}[{100 * metric['low']:.0f}, {100 * metric['high']:.0f}]"


def iteration_line(state: dict[str, Any], k: int) -> str:
    """One iteration as a summary line."""
    it = next(it for it in state["iterations"] if it["iteration"] == k)
    test = it["test"]
    shown = f"test: sampled {percent(test['sampled_accuracy'])} %, greedy {percent(test['greedy_accuracy'])} %"
    if PREFERENCE in test:
        shown = f"test: agrees with the data {percent(test[PREFERENCE])} %"
    if test["well_formed_share"]["value"] is not None:
        well_formed, right = percent(test["well_formed_share"]), percent(test["accuracy_among_well_formed"])
        shown += f", well-formed {well_formed} %, right among those {right} %"
    if k == 0:
        return f"base model | {shown}"
    spent, pair = it["time"], it["counts"]["pair"]
    took = f"{duration(spent['wall'])}, {100 * spent['overhead_share']:.0f} % overhead"
    made = f"{pair['pairs']} {pair.get('kind', 'pairs')}{describe_extra_pairs(pair)}"
    return f"iteration {k} | {made} | {shown} | {took}\n  {it['reason']}"


def print_status(state: dict[str, Any], console: Console) -> None:
    """Print the tables of iterations, times and signal, and the gains."""
    unjudged = any(PREFERENCE in (it["test"] or {}) for it in state["iterations"])
    console.print(preference_table(state) if unjudged else _accuracy_table(state))
    console.print(_work_table(state))
    if any(_has_signal(it) for it in state["iterations"]):
        console.print(_signal_table(state))
    if parent := state["parent"]:
        console.print(f"Forked from iteration {parent['iteration']} of {parent['run']}.", markup=False)
    best = state["incumbent"]
    against = ". Its test results against the base model's:" if best else "."
    console.print(f"Incumbent: {f'iteration {best}' if best else 'the base model'}{against}")
    for metric, gain in state.get("gains", {}).items():
        console.print(gain_line(metric, gain), markup=False)
    for it in state["iterations"]:
        if sources := describe_sources(it["counts"].get("sample", {})):
            console.print(f"Iteration {it['iteration']} takes its prompts from: {sources}.", markup=False)
        if beside := describe_extra_pairs(it["counts"].get("pair", {})):
            pairs = it["counts"]["pair"]["pairs"]
            console.print(f"Iteration {it['iteration']} trains on {pairs} pairs{beside}.", markup=False)
        if it["reason"]:
            for line in attempt_lines(it):
                console.print(line, markup=False)
            again = f", attempt {len(it['attempts'])}{_changed(it['attempts'][-1])}" if len(it["attempts"]) > 1 else ""
            console.print(f"Iteration {it['iteration']}{again} {it['reason']}.", markup=False)
        for alarm in it["alarms"]:
            console.print(f"Iteration {it['iteration']}, alarm: {alarm['text']}.", markup=False)
    if used := judge_line(state):
        console.print(used, markup=False)
    if not state["complete"]:
        console.print(f"Not complete. Continue with: prefloop run {state['path']}", markup=False)


def attempt_lines(iteration: dict[str, Any]) -> list[str]:
    """One line per attempt before the last one."""
    k, tried = iteration["iteration"], iteration["attempts"]
    return [f"Iteration {k}, attempt {n}{_changed(one)} {one['reason']}." for n, one in enumerate(tried[:-1], start=1)]


def _changed(attempt: dict[str, Any]) -> str:
    changes = describe_changes(attempt["changes"])
    return f" ({changes})" if changes else ""


def judge_line(state: dict[str, Any]) -> str:
    """Calls and tokens spent on a paid judge; empty if there are none."""
    spent = state["judge_spent"]
    tokens = spent["prompt_tokens"] + spent["completion_tokens"]
    return f"Judge: {spent['calls']:,} paid calls and {tokens:,} tokens so far." if spent["calls"] else ""


def gain_line(metric: str, gain: dict[str, Any]) -> str:
    """One line: the gain in a metric on the test prompts."""
    difference, factor = gain["difference"], gain["ratio"]
    name = metric.replace("_", " ")
    if difference["value"] is None:
        return f"  {name}: cannot be compared"
    line = (
        f"  {name}: {100 * difference['value']:+.1f} points "
        f"[{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"
    )
    if factor["value"] is None:
        return line
    high = "" if factor["high"] is None else f"{factor['high']:.2f}"
    return f"{line}, {factor['value']:.2f} times [{factor['low']:.2f}, {high}]"


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _accuracy_table(state: dict[str, Any]) -> Table:
    title = f"{state['run']}: accuracy in %, {100 * state['confidence']:g} % intervals over prompts"
    columns = (
        "iter",
        "gate\nsampled",
        "test\nsampled",
        "test\ngreedy",
        "well-\nformed",
        "right of\nthose",
        "mean\ntokens",
        "",
    )
    table = _table(title, columns)
    names = ("sampled_accuracy", "greedy_accuracy", "well_formed_share", "accuracy_among_well_formed")
    for it in state["iterations"]:
        gate, test = it["gate"], it["test"]
        if test is None:
            table.add_row(str(it["iteration"]), *["–"] * 6, "in progress")
            continue
        cells = [percent(m, "\n") for m in (gate["sampled_accuracy"], *(test[name] for name in names))]
        length = "–" if test["mean_length"] is None else f"{test['mean_length']:.0f}"
        table.add_row(str(it["iteration"]), *cells, length, _outcome(it))
    return table


def _outcome(it: dict[str, Any]) -> str:
    if not it["iteration"]:
        return "base"
    outcome = {True: "promoted", False: "rejected", None: "in progress"}[it["promoted"]]
    return f"{outcome}\nattempt {it['attempts_begun']}" if it["attempts_begun"] > 1 else outcome


def preference_table(state: dict[str, Any]) -> Table:
    """The table of iterations for a campaign without a judge."""
    title = f"{state['run']}: held-out pairs, {100 * state['confidence']:g} % intervals over prompts"
    table = _table(title, ("iter", "gate\nprefers, %", "test\nprefers, %", "margin\nin nats", "likelier,\n%", ""))
    for it in state["iterations"]:
        gate, test = it["gate"], it["test"]
        if test is None:
            table.add_row(str(it["iteration"]), *["–"] * 4, "in progress")
            continue
        likelier, margin = test["likelihood_accuracy"], test["mean_margin"]
        numbers = ("–" if margin is None else f"{margin:.2f}", "–" if likelier is None else f"{100 * likelier:.1f}")
        prefers = (percent(one[PREFERENCE], "\n") for one in (gate, test))
        table.add_row(str(it["iteration"]), *prefers, *numbers, _outcome(it))
    return table


def _work_table(state: dict[str, Any]) -> Table:
    columns = ("iter", "prompt", "resp.", "paired", "pairs", "steps", "sampl", "judge", "pair", "train", "eval", "over")
    table = _table("work, and time by stage (m:ss)", columns)
    for it in state["iterations"]:
        counts = it["counts"]
        sample, pair, train = (counts.get(stage, {}) for stage in ("sample", "pair", "train"))
        numbers = (
            sample.get("prompts"),
            sample.get("responses"),
            pair.get("prompts", {}).get("paired"),
            pair.get("pairs"),
            train.get("steps"),
        )
        times = [_stage_time(stage, it["seconds"].get(stage), it["stages"].get(stage)) for stage in STAGES]
        share = f"{100 * it['time']['overhead_share']:.0f} %" if it["finished"] else "–"
        table.add_row(str(it["iteration"]), *("" if n is None else str(n) for n in numbers), *times, share)
    return table


def _has_signal(it: dict[str, Any]) -> bool:
    """Whether any column of the signal table has a value."""
    return any(it["signal"].get(name) is not None for name in SIGNAL)


def _signal_table(state: dict[str, Any]) -> Table:
    """The training signal by iteration; docs/signal.md explains every column."""
    shares = ("solved", "mixed", "all\nright", "all\nwrong", "uniq.")
    others = ("nats/\ntoken", "mean\ntokens", "p95", "cut\noff", "pairs/\nprompt", "used", "KL")
    table = _table("signal of the training prompts, shares in %", ("iter", *shares, *others))
    for it in state["iterations"]:
        if _has_signal(it):
            numbers = it["signal"]
            cells = (_cell(numbers.get(name), form) for name, form in SIGNAL.items())
            table.add_row(str(it["iteration"]), *cells)
    return table


def _cell(value: float | None, form: str) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.0f}" if form == "%" else format(value, form)


def _stage_time(stage: str, seconds: dict[str, float] | None, state: str | None) -> str:
    if seconds is None:
        return {"finished": "", "started": "…", "waiting": "", None: ""}[state]
    whole = round(seconds["judge"] if stage == "judge" else seconds["wall"])
    return f"{whole // 60}:{whole % 60:02d}"


def print_json(value: Any) -> None:
    """Print as JSON, without secrets."""
    print(json.dumps(redacted(json.loads(json.dumps(value, default=str))), indent=1))
