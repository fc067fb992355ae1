"""Trains, evaluates and decides on a round; a rejected candidate is retrained with the configured changes while retries
are left. A decision is a function of the folders' contents, so a killed run reaches the same one again; one that is
recorded stands."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from loop.campaign.context import Iteration, ModelRoles, refuse_changes
from loop.campaign.stages.evaluate import eval_stage
from loop.campaign.stages.limits import limits_stage
from loop.campaign.stages.look import look_again, looks_of, with_earlier_looks
from loop.campaign.stages.train import train_stage
from loop.config.promote_section import settings_of_attempt
from loop.measure.evaluation import compare, shadow_change
from loop.measure.promotion import check_limits, decide, deciding_confidence, is_open
from loop.store.files import sealed_json, write_file
from loop.store.model_refs import Model, model_of, model_record
from loop.store.run_records import (
    AttemptRecord,
    BestSoFar,
    Evaluation,
    Look,
    Numbers,
    PromotionRecord,
    SetMetrics,
    plain,
    read_record,
)
from loop.store.run_state import TrainCounts
from loop.store.stage import Manifest, StageFolder
from loop.view.describe import describe_changes


class Attempt(NamedTuple):
    """The candidate of one training of a round, and the decision on it as promotion.json records it."""

    candidate: Model
    record: AttemptRecord


def train_and_decide(it: Iteration, paired: Manifest, evaluations: dict[int, Evaluation]) -> list[Attempt]:
    """Run attempts until one is promoted or none is left; the last evaluation becomes the iteration's."""
    campaign, k, steps = it.campaign, it.k, 0
    decided = campaign.run.decision(k)
    tried: list[Attempt] = []
    for number in range(1, attempts_of(it) + 1):
        train, changes = settings_of_attempt(it.config.train, it.config.promote.retry, number, steps)
        if tried and decided is None:
            campaign.display.say(f"  {tried[-1].record.reason}\n  attempt {number}: {describe_changes(changes)}")
        trained, candidate = train_stage(it, paired, train, number)
        it.reached("train")
        evaluations[k] = eval_stage(it, candidate, number)
        measured = limits_stage(it, candidate, number)
        it.reached("eval")
        counts = trained.counted(TrainCounts)
        steps = counts.steps
        if decided is not None:
            tried.append(Attempt(candidate, decided.attempts[number - 1]))
            looks_of(it, candidate, number, tried[-1].record)
            continue
        tried.append(look_and_decide(it, number, candidate, changes, measured, evaluations, counts.checkpoints))
        if tried[-1].record.promoted:
            break
    return tried


def attempts_of(it: Iteration) -> int:
    """How many attempts an iteration may have; for a finished one, how many it had."""
    decision = it.campaign.run.decision(it.k)
    return len(decision.attempts) if decision else it.config.promote.attempts


def look_and_decide(
    it: Iteration,
    number: int,
    candidate: Model,
    changes: dict[str, Any],
    measured: Numbers,
    evaluations: Mapping[int, Evaluation],
    checkpoints: int,
) -> Attempt:
    """Decide on an attempt by its evaluation and, with `promote.more_samples`, by further looks while it is open."""
    promote, looks = it.config.promote, list[Look]()
    if promote.more_samples is None:
        confidence = confidence_of(it, checkpoints)
        return compare_with_incumbent(it, number, candidate, changes, measured, evaluations, confidence)
    seen, samples = with_earlier_looks(it, evaluations), it.campaign.base.eval.samples
    while True:
        confidence = confidence_of(it, checkpoints, look=len(looks) + 1)
        record = compare_with_incumbent(it, number, candidate, changes, measured, seen, confidence).record
        looks.append(Look(samples + len(looks) * promote.more_samples.samples, record.gain, confidence))
        if len(looks) == promote.looks or not is_open(promote, record):
            break
        it.campaign.display.say(f"  undecided after {looks[-1].samples} samples per gate prompt: {record.reason}")
        seen = look_again(it, candidate, number, len(looks) + 1, seen)
    times = f"look {len(looks)} of at most {promote.looks}, {looks[-1].samples} samples per prompt"
    return Attempt(candidate, replace(record, reason=f"{record.reason}; {times}", looks=tuple(looks)))


def compare_with_incumbent(
    it: Iteration,
    number: int,
    candidate: Model,
    changes: dict[str, Any],
    measured: Numbers,
    evaluations: Mapping[int, Evaluation],
    confidence: float,
) -> Attempt:
    """Compare the candidate with the incumbent, and with the best promoted model so far, on the gate prompts; check the
    limits, and decide."""
    promote, run, incumbent = it.config.promote, it.campaign.run, it.models.incumbent
    ours, theirs = evaluations[it.k].gate, evaluations[incumbent.iteration].gate
    difference = compare(theirs, ours, promote.metric, confidence)
    numbers = limits_measured(ours, theirs) | measured
    if promote.limits.shadow is not None:
        before = run.judged_shards(incumbent.iteration, "gate")
        own = run.judged_shards(it.k, "gate", number)
        numbers["shadow"] = shadow_change(before, own, promote.limits.shadow)
    best = against_best(it, ours, evaluations, confidence)
    limits = check_limits(promote.limits, numbers)
    decision = decide(promote, difference, limits, best=best, confidence=confidence)
    record = AttemptRecord(
        changes=changes,
        promoted=decision.promote,
        reason=decision.reason,
        gain=difference,
        limits=decision.limits,
        measured=measured,
        candidate=candidate.hash,
        outcome=decision.outcome,
        confidence=confidence,
        best=best,
    )
    return Attempt(candidate, record)


def confidence_of(it: Iteration, checkpoints: int, look: int = 1) -> float:
    """Confidence of the interval that decides, in that look, on a candidate chosen from that many checkpoints."""
    iterations, samples = it.campaign.loaded.iterations, it.config.eval.samples
    planned = {"k": it.k, "iterations": iterations, "checkpoints": checkpoints}
    return deciding_confidence(it.config.promote, **planned, samples=samples, look=look)


def against_best(
    it: Iteration, ours: SetMetrics, evaluations: Mapping[int, Evaluation], confidence: float
) -> BestSoFar | None:
    """The candidate against the promoted model with the highest metric on the gate prompts; None if that is the
    incumbent. The base model counts as promoted."""
    metric, incumbent = it.config.promote.metric, it.models.incumbent.iteration

    def rank(k: int) -> tuple[float, bool]:
        found = evaluations[k].gate.metric(metric)
        value = found.value if found is not None and found.value is not None else -1.0
        return value, k == incumbent

    best = max((k for k in range(it.k) if not k or it.campaign.run.policy(k).iteration == k), key=rank)
    if best == incumbent:
        return None
    return BestSoFar(best, compare(evaluations[best].gate, ours, metric, confidence))


def limits_measured(ours: SetMetrics, theirs: SetMetrics) -> Numbers:
    """The limits that the gate evaluations already measure: length and truncation of the sampled responses."""
    own, before = ours.mean_length, theirs.mean_length
    ratio = own / before if own is not None and before else None
    return {"length": own, "length_ratio": ratio, "truncated": ours.truncated_share}


def promote_stage(it: Iteration, attempts: list[Attempt]) -> ModelRoles:
    """Record the last attempt's decision with its evidence; returns the models that the next iteration starts from."""
    campaign, config, last = it.campaign, it.config, attempts[-1]
    path = campaign.run.promotion(it.k)
    inputs = {
        **config.promote.decided_by(len(attempts)),
        "made from": {"candidate": last.candidate.hash, "incumbent": it.models.incumbent.hash},
    }
    if not path.exists():
        campaign.begin_work()
        promoted, reason = last.record.promoted, last.record.reason
        policy = last.candidate if promoted else it.models.incumbent
        record = PromotionRecord(
            iteration=it.k,
            promoted=promoted,
            reason=reason,
            gain=last.record.gain,
            limits=last.record.limits,
            attempts=tuple(attempt.record for attempt in attempts),
            policy=model_record(campaign.run, policy),
            candidate=model_record(campaign.run, last.candidate),
            incumbent=model_record(campaign.run, it.models.incumbent),
            start=model_record(campaign.run, it.start),
            reference=model_record(campaign.run, it.reference),
            inputs=inputs,
            outcome=last.record.outcome,
        )
        write_file(path, sealed_json(plain(record)))
        decided_as = {"promoted": promoted, "outcome": last.record.outcome, "reason": reason}
        campaign.run.event("promotion", iteration=it.k, **decided_as, attempts=len(attempts))
    decided = read_record(path, PromotionRecord)
    refuse_changes(StageFolder(path.parent, "promote", it.k), decided.inputs, inputs)
    policy, candidate = (model_of(campaign.run, record) for record in (decided.policy, decided.candidate))
    return replace(it.models, incumbent=policy, previous=candidate)
