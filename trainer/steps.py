"""The optimizer steps of a round, from its last checkpoint on: one line of `steps.jsonl` per step, and checkpoints."""

import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from trainer.checkpoint import Position, find_checkpoint, load_checkpoint, save_checkpoint
from trainer.data import PreferenceData
from trainer.errors import TrainerError
from trainer.learner import Learner
from trainer.memory import peak_memory_gb
from trainer.mix import MixPlan, add_mix, mix_context
from trainer.optimizer import Optimizer, learning_rate, make_optimizer
from trainer.parallel.team import ALONE, Team
from trainer.reference import Reference
from trainer.scorer import RowScorer
from trainer.settings import Identity
from trainer.spec import RoundSpec, Running
from trainer.step import accumulate_step, clip_gradients
from trainer.step_rows import StepContext, prompts_of
from trainer.stopping import Stopped, is_asked, stoppable
from trainer.stops import NormWatch, check_weights, keep_batch
from trainer.summary import Clock, StepMetrics
from trainer.tree.rows import Plan
from trainer.watched_pairs import ProbeSet

STEPS = "steps.jsonl"
MOST_PAIRS = 64
"""Maximum number of pairs per step whose log-ratios are logged, evenly spread."""


@dataclass(frozen=True, slots=True)
class StepsPlan:
    """The data, their rows, and the reference's log-probs of the rows (None if no loss needs them)."""

    data: PreferenceData
    plan: Plan
    reference: Reference | None
    probe: ProbeSet | None = None
    """Relations that are watched and never trained on."""
    mix: MixPlan | None = None
    """Supervised examples in every step."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of a round's prompts that the planned data cover; outside online training all of them."""

    number: int = 0
    of: int = 1
    before: int = 0
    """Optimizer steps of the slices before."""
    seen: dict[str, Any] = field(default_factory=dict)
    """In online training, the progress that checkpoints keep; if empty, the log has no slices."""

    def scheduled(self, at: int, steps: int) -> tuple[int, int]:
        """(step, total) for the learning rate of step `at`, as if every slice had as many `steps` as this one."""
        return self.number * steps + at, self.of * steps

    def notes(self, at: int) -> dict[str, int]:
        """For the log of online training: the slice, and how many steps the policy is ahead of its samples."""
        return {"slice": self.number, "staleness": at} if self.seen else {}


@dataclass(frozen=True, slots=True)
class StepsJob:
    """Inputs of the steps of a round or of one of its slices."""

    running: Running
    planned: StepsPlan
    identity: Identity
    """Identifies the round; a checkpoint with another identity is rejected."""
    keep: Callable[[int], None] | None = None
    """Called before each checkpoint with the number of steps done, if a candidate is chosen among them."""
    slice: Slice = Slice()

    @property
    def spec(self) -> RoundSpec:
        """The round's specification."""
        return self.running.spec

    @property
    def end(self) -> int:
        """The number of the step after the last planned one."""
        return self.slice.before + len(self.planned.plan.order)

    @property
    def total(self) -> int:
        """The number of the step after the last one of the round; of a later slice, only one step is known."""
        return self.end + (self.slice.number + 1 < self.slice.of)

    def checkpoint_is_due(self, done: int) -> bool:
        """Whether a checkpoint is due. The round's last step needs none."""
        return checkpoint_is_due(done, self.total, self.spec.settings.checkpoint_every)


def train_steps(learner: Learner, job: StepsJob) -> int:
    """Run all remaining optimizer steps; return the number of the first one."""
    optimizer = make_optimizer(learner, job.spec.settings)
    start = resume(learner, optimizer, job.spec.work, job.identity, job.running.clock, job.running.team)
    run_steps(learner, optimizer, job, start)
    return start.steps


def run_steps(learner: Learner, optimizer: Optimizer, job: StepsJob, start: Position) -> Position:
    """Run the planned steps from `start` on; return the position after them."""
    plan, spec, clock, team = job.planned, job.spec, job.running.clock, job.running.team
    scorer, arithmetic, in_slices = RowScorer(learner.model), job.running.arithmetic, bool(job.slice.seen)
    layout, drops = plan.plan.layout, spec.settings.lora is not None and spec.settings.lora.dropout > 0
    context = StepContext(scorer, learner, plan.data, arithmetic, layout, spec.seed, team, in_slices, drops)
    with open_log(spec.work / STEPS, start.log_bytes) if team.leads else io.BytesIO() as log, stoppable():
        watch = _norm_watch(job)
        for number in range(start.steps, job.end):
            with clock.part("compute"):
                metrics = _watch(context, job, number) | _step(context, job, optimizer, watch, number)
                if number + 1 == job.end and plan.probe is not None:
                    metrics["probe_after"] = plan.probe.measure(context)
            log.write((json.dumps(metrics) + "\n").encode())
            log.flush()
            job.running.report({"phase": "train", "done": number + 1, "total": job.end} | metrics)
            asked = any(team.gather(is_asked()))  # so that all processes stop after the same step
            due, stop = job.checkpoint_is_due(number + 1), asked and number + 1 < job.total
            if due or stop:
                with clock.part("checkpoint"):
                    if due and job.keep is not None:
                        job.keep(number + 1)
                    if team.leads:
                        os.fsync(log.fileno())
                    position = Position(number + 1, log.tell(), dict(clock.seconds), job.slice.seen)
                    save_checkpoint(spec.work, position, job.identity, learner, optimizer, team)
            if stop:
                raise Stopped
        return Position(job.end, log.tell(), dict(clock.seconds), job.slice.seen)


def read_steps(work: Path) -> list[StepMetrics]:
    """The step log of a round."""
    return [json.loads(line) for line in (work / STEPS).read_text(encoding="utf-8").splitlines()]


def _norm_watch(job: StepsJob) -> NormWatch:
    """Only the leader checks norms; if it stops, so do the others."""
    settings, leads = job.spec.settings, job.running.team.leads
    norms = [line["gradient_norm"] for line in read_steps(job.spec.work)] if leads else []
    return NormWatch(settings.stop_at_norm_ratio if leads else None, settings.max_grad_norm, norms)


def _watch(context: StepContext, job: StepsJob, number: int) -> StepMetrics:
    """Measure the watched relations before this step, if due."""
    probe = job.planned.probe
    return {} if probe is None or number % job.spec.settings.probe_every else {"probe": probe.measure(context)}


def _step(context: StepContext, job: StepsJob, optimizer: Optimizer, watch: NormWatch, number: int) -> StepMetrics:
    """Make one optimizer step; return its log line. A bad step saves its batch and raises TrainerError."""
    plan, spec, start = job.planned.plan, job.spec, time.perf_counter()
    at = number - job.slice.before
    index = plan.order[at]
    step, learner = plan.steps[index], context.learner
    tick = partial(job.running.report, {"phase": "train", "done": number, "total": job.end})
    check_zero = number == 0 and spec.same_weights  # the first margins must be 0
    reference = None if job.planned.reference is None else job.planned.reference[index]
    rate = learning_rate(*job.slice.scheduled(at, len(plan.order)), spec.settings)
    names, parameters = prompts_of(context.data, step.rows), learner.parameters()
    with keep_batch(spec.work, context.data, step, number) as known:
        totals = accumulate_step(context, step, reference, number=number, check_zero=check_zero, tick=tick)
        known["loss"] = totals.loss
        numbers = _mixed(totals.means(), context, job, number, tick)
        context.team.sum_gradients(parameters.values())
        norm = clip_gradients(list(parameters.values()), spec.settings.max_grad_norm, number=number, prompts=names)
        known["gradient_norm"] = norm
        watch.check(norm, number=number, prompts=names)
        optimizer.step(rate)
        if number + 1 == job.end or job.checkpoint_is_due(number + 1):
            check_weights(parameters, number=number, prompts=names)
    if learner.live is not None:
        learner.live.after_step(learner.model, number + 1)
    seconds = time.perf_counter() - start
    return {
        "step": number,
        **job.slice.notes(at),
        **numbers,
        **({"log_ratios": thinned(totals.log_ratios)} if totals.log_ratios else {}),
        "gradient_norm": norm,
        "learning_rate": rate,
        "pairs": step.relations,
        "tokens": totals.tokens,
        "plain_tokens": totals.plain_tokens,
        "seconds": seconds,
        "tokens_per_second": totals.tokens / seconds,
        "peak_memory_gb": peak_memory_gb(context.arithmetic.device),
    }


def thinned(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_PAIRS pairs, sorted, so that the order does not depend on the processes."""
    return sorted(pairs)[:: -(-len(pairs) // MOST_PAIRS)]


def _mixed(
    numbers: dict[str, float], context: StepContext, job: StepsJob, number: int, tick: Callable[[], None]
) -> StepMetrics:
    """The step's metrics with those of its supervised examples, if there are any."""
    mix = job.planned.mix
    if mix is None:
        return numbers
    with keep_batch(job.spec.work, mix.data, mix.plan.steps[mix.plan.order[number]], number):
        return add_mix(numbers, mix_context(context, mix), mix, number=number, tick=tick)


def resume(
    learner: Learner, optimizer: Optimizer, work: Path, identity: Identity, clock: Clock, team: Team = ALONE
) -> Position:
    """Restore the newest checkpoint and return its position; the start if there is none."""
    folder = find_checkpoint(work, identity, team)
    if folder is None:
        return Position(0, 0, {})
    with clock.part("load"):
        position = load_checkpoint(folder, learner, optimizer, team)
    for part, seconds in position.seconds.items():
        clock.seconds[part] = clock.seconds.get(part, 0.0) + seconds
    return position


def open_log(path: Path, length: int) -> BinaryIO:
    """Open the step log, truncated to its length at the checkpoint."""
    log = path.open("ab")
    if log.tell() < length:
        log.close()
        raise TrainerError(
            f"{path} is shorter than its checkpoint says ({length} bytes). The work folder was changed: remove "
            f"{path.parent} to train this round from its start."
        )
    log.truncate(length)
    log.seek(length)
    return log


def checkpoint_is_due(done: int, total: int, every: int) -> bool:
    """Whether a checkpoint is due. The last step needs none."""
    return every > 0 and done % every == 0 and done < total
