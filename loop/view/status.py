"""Collect the state of a run from its manifests and promotion records.

`collect` only reads the run folder, so it works while the campaign runs in another process.
"""

from collections import Counter
from dataclasses import asdict
from typing import Any

from loop.config.load import load_config
from loop.config.settings import AlarmsConfig
from loop.errors import UserError
from loop.measure.alarms import alarms
from loop.measure.evaluation import compare, metrics_of, ratio
from loop.store.files import read_json, to_json, write_file
from loop.store.lineage import read_lineage
from loop.store.run_folder import RunFolder
from loop.store.stage import REPEATED, STAGES, StageFolder
from loop.store.verdict_cache import spent_in


def collect(run: RunFolder) -> dict[str, Any]:
    """The state of a run; `iterations` starts with the base model at 0. Raises UserError if there is no run."""
    if not run.exists():
        raise UserError(f"There is no run in {run}. Start one with `prefloop run CONFIG`; runs are kept in runs/.")
    loaded = load_config(run.config)
    present = run.iterations()
    iterations = [iteration_state(run, k) for k in present]
    add_alarms(iterations, loaded.base.alarms)
    best = max((it["incumbent"] for it in iterations if it["incumbent"] is not None), default=0)
    state = {
        "run": run.name,
        "path": str(run),
        "parent": read_lineage(run).get("parent"),
        "planned_iterations": loaded.iterations,
        "complete": sum(it["finished"] for it in iterations if it["iteration"]) >= loaded.iterations,
        "incumbent": best,
        "confidence": loaded.base.promote.confidence,
        "judge_spent": asdict(spent_in(run.verdict_cache)),
        "iterations": [public(it) for it in iterations],
    }
    if 0 in present and best and len(iterations) > best:
        state["gains"] = gains(iterations[0], iterations[best], loaded.base.promote.confidence)
    return state


def iteration_state(run: RunFolder, k: int) -> dict[str, Any]:
    """The state of one iteration, with per-prompt counts in its metrics."""
    folders = {stage: run.latest(k, stage) for stage in STAGES}
    manifests = {stage: manifest for stage in STAGES if (manifest := folders[stage].manifest())}
    promotion = read_json(run.promotion(k)) if run.promotion(k).exists() else None
    metrics = read_json(folders["eval"].metrics) if "eval" in manifests else {"gate": None, "test": None}
    seconds = {stage: _over_attempts(run, k, stage, manifest.seconds) for stage, manifest in manifests.items()}
    return {
        "iteration": k,
        "finished": promotion is not None and "eval" in manifests,
        "stages": {stage: "finished" if stage in manifests else _started(folders[stage]) for stage in _stages_of(k)},
        "promoted": promotion["promoted"] if promotion else None,
        "reason": promotion.get("reason") if promotion else None,
        "gain": promotion.get("gain") if promotion else None,
        "limits": promotion.get("limits", []) if promotion else [],
        "attempts": promotion.get("attempts", []) if promotion else [],
        "attempts_begun": run.attempts(k),
        "incumbent": promotion["policy"]["iteration"] if promotion else None,
        "counts": {stage: manifest.counts for stage, manifest in manifests.items()},
        "signal": numbers_of(run, k) if k else {},
        "seconds": seconds,
        "time": time_of(seconds),
        **metrics,
    }


def numbers_of(run: RunFolder, k: int) -> dict[str, float | None]:
    """Training-signal metrics of an iteration (docs/signal.md), from its last training attempt."""
    paired, trained = run.stage(k, "pair").manifest(), run.latest(k, "train").manifest()
    guarded = run.latest(k, "guard")
    numbers: dict[str, float | None] = dict(paired.counts.get("signal", {})) if paired else {}
    if trained:
        numbers |= {name: trained.counts.get(name) for name in ("displacement", "sampler_gap")}
    if guarded.manifest():
        numbers["kl"] = read_json(guarded.metrics).get("kl")
    return numbers


def add_alarms(iterations: list[dict[str, Any]], settings: AlarmsConfig) -> None:
    """Add to every iteration the alarms that the current thresholds raise."""
    history: list[dict[str, float | None]] = []
    for it in iterations:
        history += [it["signal"]] if it["iteration"] else []
        it["alarms"] = [asdict(alarm) for alarm in alarms(history, settings)] if it["iteration"] else []


def _stages_of(k: int) -> tuple[str, ...]:
    return STAGES if k else ("eval",)


def _started(folder: StageFolder) -> str:
    return "started" if folder.path.exists() else "waiting"


def _over_attempts(run: RunFolder, k: int, stage: str, last: dict[str, float]) -> dict[str, float]:
    """Seconds of a stage, summed over all attempts."""
    total = Counter(last)
    for attempt in range(1, run.attempts(k)) if stage in REPEATED else ():
        if manifest := run.stage(k, stage, attempt).manifest():
            total.update(manifest.seconds)
    return dict(total)


def time_of(seconds: dict[str, dict[str, float]]) -> dict[str, float]:
    """Split an iteration's wall time into generation, judging, compute and the remaining overhead."""
    wall = sum(s.get("wall", 0.0) for s in seconds.values())
    generate = sum(s.get("generate", 0.0) for s in seconds.values())
    judge = sum(s.get("judge_after_sampling", 0.0) for s in seconds.values())
    compute = sum(sum(s.get(part, 0.0) for part in ("compute", "reference", "warm start")) for s in seconds.values())
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
    """Paired difference and ratio of each test metric, incumbent against base model."""
    found = {}
    for metric in metrics_of(base["test"], best["test"]):
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


def write_metrics(run: RunFolder, state: dict[str, Any]) -> None:
    """Rewrite metrics.jsonl: one row per evaluated iteration."""
    rows = [it for it in state["iterations"] if it["test"] is not None]
    write_file(run.metrics, b"".join(to_json(row).replace(b"\n", b"").rstrip() + b"\n" for row in rows))
