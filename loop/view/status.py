"""Collect the state of a run from its manifests and promotion records; only reads, so it works while the run does."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import TypeAdapter

from loop.config.load import LoadedConfig
from loop.config.settings import AlarmsConfig
from loop.errors import UserError
from loop.measure.alarms import alarms
from loop.measure.evaluation import compare, metrics_of, ratio, read_evaluation
from loop.store.files import write_file
from loop.store.kept import keep, kept, sources_of
from loop.store.lineage import read_lineage, settings_of
from loop.store.run_folder import RunFolder
from loop.store.run_records import Gain, Numbers, read_record
from loop.store.run_state import IterationState, PairCounts, RunState, TimeSplit, TrainCounts
from loop.store.stage import REPEATED, STAGES
from loop.store.verdict_cache import spent_in
from loop.view.progress import stage_states, stages_now


def collect(run: RunFolder, loaded: LoadedConfig | None = None) -> RunState:
    """The state of a run, with its own settings or `loaded`. UserError if there is none, or a file of it is damaged."""
    if not run.exists():
        raise UserError(f"There is no run in {run}. Start one with `prefloop run CONFIG`; runs are kept in runs/.")
    loaded = loaded or settings_of(run)
    confidence = loaded.base.promote.confidence
    iterations = with_alarms([known_state(run, k) for k in run.iterations()], loaded.base.alarms)
    if iterations and not iterations[-1].finished:
        iterations[-1] = replace(iterations[-1], stages=stages_now(run, iterations[-1].iteration))
    best = max((it.incumbent for it in iterations if it.incumbent is not None), default=0)
    known = {it.iteration: it for it in iterations}
    return RunState(
        run=run.name,
        path=str(run),
        parent=read_lineage(run).parent,
        planned_iterations=loaded.iterations,
        complete=sum(it.finished for it in iterations if it.iteration) >= loaded.iterations,
        incumbent=best,
        confidence=confidence,
        judge_spent=spent_in(run.verdict_cache),
        iterations=tuple(iterations),
        gains=gains(known[0], known[best], confidence) if best and {0, best} <= known.keys() else None,
    )


STATE = TypeAdapter(IterationState)


def known_state(run: RunFolder, k: int) -> IterationState:
    """As `iteration_state`, perhaps with alarms; that of a decided iteration may have been kept in the run's cache."""
    sources = sources_of(run, k)
    known = None if sources is None else kept(run.cached_iteration(k), sources, STATE)
    return known or iteration_state(run, k)


def keep_states(run: RunFolder, state: RunState) -> None:
    """Keep the states of all decided iterations; only for the process that holds the lock."""
    for it in state.iterations:
        sources, path = sources_of(run, it.iteration), run.cached_iteration(it.iteration)
        if sources is not None and kept(path, sources, STATE) is not it:
            keep(path, sources, STATE, it)


def iteration_state(run: RunFolder, k: int) -> IterationState:
    """The state of one iteration, without alarms; its metrics have the counts per prompt."""
    manifests = {stage: manifest for stage in STAGES if (manifest := run.latest(k, stage).manifest())}
    decision = run.decision(k) if k else None
    evaluation = read_evaluation(run.latest(k, "eval").metrics) if "eval" in manifests else None
    seconds = {stage: _over_attempts(run, k, stage, manifest.seconds) for stage, manifest in manifests.items()}
    decided = decision is not None if k else run.promotion(0).exists()
    return IterationState(
        iteration=k,
        finished=decided and evaluation is not None,
        stages=stage_states(run, k),
        promoted=decision.promoted if decision else decided or None,
        outcome=decision.outcome if decision else None,
        reason=decision.reason if decision else None,
        gain=decision.gain if decision else None,
        limits=decision.limits if decision else (),
        attempts=decision.attempts if decision else (),
        attempts_begun=run.attempts(k),
        incumbent=run.policy(k).iteration if decided else None,
        counts={stage: manifest.counts for stage, manifest in manifests.items()},
        signal=numbers_of(run, k) if k else {},
        seconds=seconds,
        time=time_of(seconds),
        gate=evaluation.gate if evaluation else None,
        test=evaluation.test if evaluation else None,
    )


def numbers_of(run: RunFolder, k: int) -> Numbers:
    """Training-signal metrics of an iteration (docs/signal.md), from its last training attempt."""
    paired, trained = run.stage(k, "pair").manifest(), run.latest(k, "train").manifest()
    limits = run.latest(k, "guard")
    numbers: Numbers = dict(paired.counted(PairCounts).signal) if paired else {}
    if trained:
        counts = trained.counted(TrainCounts)
        numbers |= {"displacement": counts.displacement, "sampler_gap": counts.sampler_gap}
    if limits.manifest():
        numbers["kl"] = read_record(limits.metrics, Numbers).get("kl")
    return numbers


def with_alarms(iterations: Sequence[IterationState], settings: AlarmsConfig) -> list[IterationState]:
    """Every iteration with the alarms that the current thresholds raise."""
    history: list[Numbers] = []
    found = []
    for it in iterations:
        history += [it.signal] if it.iteration else []
        raised = tuple(alarms(history, settings)) if it.iteration else ()
        found.append(it if it.alarms == raised else replace(it, alarms=raised))
    return found


def _over_attempts(run: RunFolder, k: int, stage: str, last: dict[str, float]) -> dict[str, float]:
    """Seconds of a stage, summed over all attempts."""
    total = Counter(last)
    for attempt in range(1, run.attempts(k)) if stage in REPEATED else ():
        if manifest := run.stage(k, stage, attempt).manifest():
            total.update(manifest.seconds)
    return dict(total)


def time_of(seconds: Mapping[str, Mapping[str, float]]) -> TimeSplit:
    """Split an iteration's wall time into generation, judging, compute and the remaining overhead."""
    wall, generate, judge = (_sum_of(seconds, part) for part in ("wall", "generate", "judge_after_sampling"))
    compute = sum(_sum_of(seconds, part) for part in ("compute", "reference", "warm start"))
    overhead = max(0.0, wall - generate - judge - compute)
    rounded = [round(value, 3) for value in (wall, generate, judge, compute, overhead)]
    share = overhead / wall if wall else 0.0
    return TimeSplit(*[*rounded, share])


def _sum_of(seconds: Mapping[str, Mapping[str, float]], part: str) -> float:
    return sum(stage.get(part, 0.0) for stage in seconds.values())


def gains(base: IterationState, best: IterationState, confidence: float) -> dict[str, Gain] | None:
    """Paired difference and ratio of each test metric, incumbent against base model; None before both are evaluated."""
    if base.test is None or best.test is None:
        return None
    return {
        metric: Gain(compare(base.test, best.test, metric, confidence), ratio(base.test, best.test, metric, confidence))
        for metric in metrics_of(base.test, best.test)
    }


def write_metrics(run: RunFolder, state: RunState) -> None:
    """Rewrite metrics.jsonl: one row per evaluated iteration."""
    write_file(run.metrics, b"".join(it.row for it in state.iterations if it.test is not None))
