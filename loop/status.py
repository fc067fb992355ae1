"""Room loop, where a run stands: its manifests and promotions come in, one plain structure goes out, and tables of it.

Reads the run folder only, so it works while the campaign runs elsewhere.
"""

import json
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from loop.config_load import load_config
from loop.display import duration
from loop.errors import UserError
from loop.evaluation import METRICS, compare, ratio
from loop.runfolder import STAGES, RunFolder, read_json


def collect(run: RunFolder) -> dict[str, Any]:
    """The state of a run. `iterations` starts with the base model at 0. UserError if there is no run."""
    if not run.exists():
        raise UserError(f"There is no run in {run}. `prefloop run CONFIG` starts one; runs lie in the folder runs/.")
    loaded = load_config(run.config)
    present = run.iterations()
    iterations = [iteration_state(run, k) for k in present]
    best = max((it["incumbent"] for it in iterations if it["incumbent"] is not None), default=0)
    state = {
        "run": run.name,
        "path": str(run),
        "planned_iterations": loaded.iterations,
        "complete": sum(it["finished"] for it in iterations if it["iteration"]) >= loaded.iterations,
        "incumbent": best,
        "iterations": [public(it) for it in iterations],
    }
    if 0 in present and best and len(iterations) > best:
        state["gains"] = gains(iterations[0], iterations[best], loaded.base.promote.confidence)
    return state


def iteration_state(run: RunFolder, k: int) -> dict[str, Any]:
    """Everything known of one iteration; metrics still carry their per-prompt counts."""
    manifests = {stage: manifest for stage in STAGES if (manifest := run.stage(k, stage).manifest())}
    promotion = read_json(run.promotion(k)) if run.promotion(k).exists() else None
    metrics = read_json(run.stage(k, "eval").metrics) if "eval" in manifests else {"gate": None, "test": None}
    seconds = {stage: manifest.seconds for stage, manifest in manifests.items()}
    return {
        "iteration": k,
        "finished": promotion is not None and "eval" in manifests,
        "stages": {stage: "finished" if stage in manifests else _started(run, k, stage) for stage in _stages_of(k)},
        "promoted": promotion["promoted"] if promotion else None,
        "reason": promotion.get("reason") if promotion else None,
        "gain": promotion.get("gain") if promotion else None,
        "incumbent": promotion["policy"]["iteration"] if promotion else None,
        "counts": {stage: manifest.counts for stage, manifest in manifests.items()},
        "seconds": seconds,
        "time": time_of(seconds),
        **metrics,
    }


def _stages_of(k: int) -> tuple[str, ...]:
    return STAGES if k else ("eval",)


def _started(run: RunFolder, k: int, stage: str) -> str:
    return "started" if run.stage(k, stage).path.exists() else "waiting"


def time_of(seconds: dict[str, dict[str, float]]) -> dict[str, float]:
    """Wall time of an iteration, and the part of it that was neither generating, judging nor computing."""
    wall = sum(s.get("wall", 0.0) for s in seconds.values())
    generate = sum(s.get("generate", 0.0) for s in seconds.values())
    judge = sum(s.get("judge_after_sampling", 0.0) for s in seconds.values())
    compute = sum(s.get("compute", 0.0) + s.get("reference", 0.0) for s in seconds.values())
    overhead = max(0.0, wall - generate - judge - compute)
    parts = {
        "wall": wall,
        "generate": generate,
        "judge_after_sampling": judge,
        "compute": compute,
        "overhead": overhead,
    }
    return {name: round(value, 3) for name, value in parts.items()} | {
        "overhead_share": overhead / wall if wall else 0.0
    }


def gains(base: dict[str, Any], best: dict[str, Any], confidence: float) -> dict[str, Any]:
    """The incumbent against the base model on the test prompts, paired: difference and ratio of each metric."""
    from dataclasses import asdict

    found = {}
    for metric in METRICS:
        difference = asdict(compare(base["test"], best["test"], metric, confidence))
        found[metric] = {"difference": difference, "ratio": ratio(base["test"], best["test"], metric, confidence)}
    return found


def public(iteration: dict[str, Any]) -> dict[str, Any]:
    """The state without the per-prompt counts."""
    shown = dict(iteration)
    for name in ("gate", "test"):
        if shown[name] is not None:
            shown[name] = {key: value for key, value in shown[name].items() if key != "counts"}
    return shown


def metric_rows(state: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per iteration that has been evaluated, for metrics.jsonl."""
    return [it for it in state["iterations"] if it["test"] is not None]


# ---- for people ----


def percent(metric: dict[str, Any] | None) -> str:
    """52.1 % [48.0, 56.2], or a dash."""
    if metric is None or metric["value"] is None:
        return "–"
    return f"{100 * metric['value']:.1f} % [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"


def iteration_line(state: dict[str, Any], k: int) -> str:
    """The summary line of one iteration."""
    it = next(it for it in state["iterations"] if it["iteration"] == k)
    if it["test"] is None:
        return f"iteration {k}: not evaluated yet"
    test = it["test"]
    shown = f"test: sampled {percent(test['sampled_accuracy'])}, greedy {percent(test['greedy_accuracy'])}"
    if test["well_formed_share"]["value"] is not None:
        shown += f", well-formed {percent(test['well_formed_share'])}, right among those {percent(test['accuracy_among_well_formed'])}"
    if k == 0:
        return f"base model | {shown}"
    spent = it["time"]
    pairs = it["counts"]["pair"]["pairs"]
    took = f"{duration(spent['wall'])}, {100 * spent['overhead_share']:.0f} % overhead"
    return f"iteration {k} | {pairs} pairs | {shown} | {took}\n  {it['reason']}"


def print_status(state: dict[str, Any], console: Console) -> None:
    """The table of iterations, the time per stage, and what was gained."""
    console.print(_accuracy_table(state))
    console.print(_work_table(state))
    best = state["incumbent"]
    console.print(f"Incumbent: {'the base model' if not best else f'iteration {best}'}.", markup=False)
    for metric, gain in state.get("gains", {}).items():
        console.print(gain_line(metric, gain), markup=False)
    for it in state["iterations"][1:]:
        if it["reason"]:
            console.print(f"Iteration {it['iteration']} {it['reason']}", markup=False)
    if not state["complete"]:
        console.print(f"Not complete. Continue with: prefloop run {state['path']}", markup=False)


def gain_line(metric: str, gain: dict[str, Any]) -> str:
    """One metric's gain on the test prompts, in words."""
    difference, factor = gain["difference"], gain["ratio"]
    name = metric.replace("_", " ")
    if difference["value"] is None:
        return f"Test {name}: cannot be compared."
    line = (
        f"Test {name}: {100 * difference['value']:+.1f} points over the base model "
        f"[{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"
    )
    return line + (f", {factor['value']:.2f} times" if factor["value"] is not None else "") + "."


def _accuracy_table(state: dict[str, Any]) -> Table:
    table = Table(
        title=f"{state['run']}: accuracy, with {_confidence(state)} intervals over prompts", title_justify="left"
    )
    for column in (
        "iteration",
        "gate sampled",
        "test sampled",
        "test greedy",
        "well-formed",
        "right among those",
        "tokens",
        "",
    ):
        table.add_column(column)
    for it in state["iterations"]:
        gate, test = it["gate"], it["test"]
        if test is None:
            table.add_row(str(it["iteration"]), *["–"] * 6, "in progress")
            continue
        cells = [percent(gate["sampled_accuracy"])] + [
            percent(test[m])
            for m in ("sampled_accuracy", "greedy_accuracy", "well_formed_share", "accuracy_among_well_formed")
        ]
        length = "–" if test["mean_length"] is None else f"{test['mean_length']:.0f}"
        table.add_row("base" if not it["iteration"] else str(it["iteration"]), *cells, length, _outcome(it))
    return table


def _confidence(state: dict[str, Any]) -> str:
    return "95 %" if "confidence" not in state else f"{100 * state['confidence']:g} %"


def _outcome(it: dict[str, Any]) -> str:
    if it["iteration"] == 0:
        return ""
    return {True: "promoted", False: "rejected", None: "in progress"}[it["promoted"]]


def _work_table(state: dict[str, Any]) -> Table:
    table = Table(title="work and time", title_justify="left")
    for column in ("iteration", "prompts", "responses", "paired prompts", "pairs", "steps", *STAGES, "overhead"):
        table.add_column(column, justify="right")
    for it in state["iterations"]:
        counts, seconds = it["counts"], it["seconds"]
        sample, pair, train = (counts.get(stage, {}) for stage in ("sample", "pair", "train"))
        numbers = [
            sample.get("prompts"),
            sample.get("responses"),
            pair.get("prompts", {}).get("paired"),
            pair.get("pairs"),
            train.get("steps"),
        ]
        times = [_stage_time(stage, seconds.get(stage), it["stages"].get(stage)) for stage in STAGES]
        share = f"{100 * it['time']['overhead_share']:.0f} %" if it["finished"] else "–"
        table.add_row(str(it["iteration"]), *("–" if n is None else str(n) for n in numbers), *times, share)
    return table


def _stage_time(stage: str, seconds: dict[str, float] | None, state: str | None) -> str:
    if seconds is None:
        return state or ""
    return duration(seconds["judge"] if stage == "judge" else seconds["wall"])


def print_json(value: Any) -> None:
    """For machines."""
    print(json.dumps(value, indent=1, default=str))
