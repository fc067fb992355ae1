"""Trains, evaluates and decides on a round; a rejected candidate is retrained with the configured changes while retries
are left. A decision is a function of the folders' contents, so a killed run reaches the same one again."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from loop.campaign.context import Iteration, ModelRoles, refuse_changes
from loop.campaign.stages.evaluate import eval_stage
from loop.campaign.stages.limits import limits_stage
from loop.campaign.stages.train import train_stage
from loop.config.promote_section import settings_of_attempt
from loop.measure.evaluation import compare, shadow_change
from loop.measure.promotion import check_limits, decide
from loop.store.files import to_json, write_file
from loop.store.model_refs import Model, model_of, model_record
from loop.store.run_records import AttemptRecord, Evaluation, Numbers, PromotionRecord, SetMetrics, plain, read_record
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
    tried: list[Attempt] = []
    for number in range(1, attempts_of(it) + 1):
        train, changes = settings_of_attempt(it.config.train, it.config.promote.retry, number, steps)
        if tried and not campaign.run.promotion(k).exists():
            campaign.display.say(f"  {tried[-1].record.reason}\n  attempt {number}: {describe_changes(changes)}")
        trained, candidate = train_stage(it, paired, train, number)
        it.reached("train")
        evaluations[k] = eval_stage(it, candidate, number)
        measured = limits_stage(it, candidate, number)
        it.reached("eval")
        tried.append(compare_with_incumbent(it, number, candidate, changes, measured, evaluations))
        steps = trained.counted(TrainCounts).steps
        if tried[-1].record.promoted:
            break
    return tried


def attempts_of(it: Iteration) -> int:
    """How many attempts an iteration may have; for a finished one, how many it had."""
    decision = it.campaign.run.decision(it.k)
    return len(decision.attempts) if decision else it.config.promote.attempts


def compare_with_incumbent(
    it: Iteration,
    number: int,
    candidate: Model,
    changes: dict[str, Any],
    measured: Numbers,
    evaluations: Mapping[int, Evaluation],
) -> Attempt:
    """Compare candidate and incumbent on the gate prompts, check the limits, and decide."""
    promote, run, incumbent = it.config.promote, it.campaign.run, it.models.incumbent
    ours, theirs = evaluations[it.k].gate, evaluations[incumbent.iteration].gate
    difference = compare(theirs, ours, promote.metric, promote.confidence)
    numbers = limits_measured(ours, theirs) | measured
    if promote.limits.shadow is not None:
        before = run.judged_shards(incumbent.iteration, "gate")
        own = run.judged_shards(it.k, "gate", number)
        numbers["shadow"] = shadow_change(before, own, promote.limits.shadow)
    decision = decide(promote, difference, check_limits(promote.limits, numbers))
    record = AttemptRecord(
        changes=changes,
        promoted=decision.promote,
        reason=decision.reason,
        gain=difference,
        limits=decision.limits,
        measured=measured,
        candidate=candidate.hash,
    )
    return Attempt(candidate, record)


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
        )
        write_file(path, to_json(plain(record)))
        campaign.run.event("promotion", iteration=it.k, promoted=promoted, reason=reason, attempts=len(attempts))
    decided = read_record(path, PromotionRecord)
    refuse_changes(StageFolder(path.parent, "promote", it.k), decided.inputs, inputs)
    policy, candidate = (model_of(campaign.run, record) for record in (decided.policy, decided.candidate))
    return replace(it.models, incumbent=policy, previous=candidate)
