"""Trains, evaluates and decides on a round; a rejected candidate is retrained with the configured changes while
retries are left.

Attempt 1 uses the iteration's own folders, attempt n uses `attempt-n/`, and all are kept. A decision is a function of
their contents, so a killed run reaches the same one again.
"""

from dataclasses import dataclass, replace
from typing import Any

from loop.campaign.context import Campaign, ModelRoles, refuse_changes
from loop.campaign.stages.evaluate import eval_stage
from loop.campaign.stages.limits import guard_stage
from loop.campaign.stages.train import train_stage
from loop.config.promote_section import settings_of_attempt
from loop.measure.evaluation import compare, shadow_change
from loop.measure.promotion import Decision, check_limits, decide
from loop.prompts.row import PromptRow
from loop.store.files import to_json, write_file
from loop.store.model_refs import Model, model_of, model_record
from loop.store.run_records import (
    AttemptRecord,
    Difference,
    Evaluation,
    Numbers,
    PromotionRecord,
    SetMetrics,
    read_record,
)
from loop.store.stage import Manifest, StageFolder
from loop.view.describe import describe_changes


@dataclass(frozen=True, slots=True)
class Attempt:
    """One training of a round, and the decision on its candidate."""

    candidate: Model
    changes: dict[str, Any]
    difference: Difference
    measured: Numbers
    """What the limits needed beyond the evaluation."""
    decision: Decision

    @property
    def record(self) -> AttemptRecord:
        """The attempt's entry in promotion.json."""
        return AttemptRecord(
            changes=self.changes,
            promoted=self.decision.promote,
            reason=self.decision.reason,
            gain=self.difference,
            limits=self.decision.limits,
            measured=self.measured,
            candidate=self.candidate.hash,
        )


def train_and_decide(
    campaign: Campaign,
    k: int,
    standing: ModelRoles,
    paired: Manifest,
    sets: dict[str, list[PromptRow]],
    measured: dict[int, Evaluation],
) -> list[Attempt]:
    """Run attempts until one is promoted or none is left; stores the last evaluation in `measured[k]`."""
    promote, steps = campaign.loaded.at(k).promote, 0
    tried: list[Attempt] = []
    for number in range(1, attempts_of(campaign, k) + 1):
        train, changes = settings_of_attempt(campaign.loaded.at(k).train, promote.retry, number, steps)
        if tried and not campaign.run.promotion(k).exists():
            campaign.display.say(f"  {tried[-1].decision.reason}\n  attempt {number}: {describe_changes(changes)}")
        trained, candidate = train_stage(campaign, k, standing, paired, sets["gate"], train, number)
        campaign.reached(k, "train")
        measured[k] = eval_stage(campaign, k, candidate, sets, number)
        guarded = guard_stage(campaign, k, number, candidate, standing.initial, sets["gate"])
        campaign.reached(k, "eval")
        tried.append(compare_with_incumbent(campaign, k, number, standing, candidate, changes, guarded, measured))
        steps = trained.counts["steps"]
        if tried[-1].decision.promote:
            break
    return tried


def attempts_of(campaign: Campaign, k: int) -> int:
    """How many attempts an iteration may have; for a finished one, how many it had."""
    decision = campaign.run.decision(k)
    return len(decision.attempts) if decision else campaign.loaded.at(k).promote.attempts


def compare_with_incumbent(
    campaign: Campaign,
    k: int,
    number: int,
    standing: ModelRoles,
    candidate: Model,
    changes: dict[str, Any],
    guarded: Numbers,
    measured: dict[int, Evaluation],
) -> Attempt:
    """Compare candidate and incumbent on the gate prompts, check the limits, and decide."""
    promote, incumbent = campaign.loaded.at(k).promote, standing.incumbent
    ours, theirs = measured[k].gate, measured[incumbent.iteration].gate
    difference = compare(theirs, ours, promote.metric, promote.confidence)
    numbers = limits_measured(ours, theirs) | guarded
    if promote.limits.shadow is not None:
        before = campaign.run.judged_shards(incumbent.iteration, "gate")
        own = campaign.run.judged_shards(k, "gate", number)
        numbers["shadow"] = shadow_change(before, own, promote.limits.shadow)
    limits = check_limits(promote.limits, numbers)
    return Attempt(candidate, changes, difference, guarded, decide(promote, difference, limits))


def limits_measured(ours: SetMetrics, theirs: SetMetrics) -> Numbers:
    """The limits that the gate evaluations already measure: length and truncation of the sampled responses."""
    own, before = ours.mean_length, theirs.mean_length
    ratio = own / before if own is not None and before else None
    return {"length": own, "length_ratio": ratio, "truncated": ours.truncated_share}


def promote_stage(campaign: Campaign, k: int, standing: ModelRoles, attempts: list[Attempt]) -> ModelRoles:
    """Record the last attempt's decision with its evidence; returns the models that the next iteration starts from."""
    config, path, last = campaign.loaded.at(k), campaign.run.promotion(k), attempts[-1]
    inputs = {
        **config.promote.decided_by(len(attempts)),
        "made from": {"candidate": last.candidate.hash, "incumbent": standing.incumbent.hash},
    }
    if not path.exists():
        campaign.begin_work()
        promoted, reason = last.decision.promote, last.decision.reason
        policy = last.candidate if promoted else standing.incumbent
        record = PromotionRecord(
            iteration=k,
            promoted=promoted,
            reason=reason,
            gain=last.difference,
            limits=last.decision.limits,
            attempts=tuple(attempt.record for attempt in attempts),
            policy=model_record(campaign.run, policy),
            candidate=model_record(campaign.run, last.candidate),
            incumbent=model_record(campaign.run, standing.incumbent),
            start=model_record(campaign.run, standing.start(config)),
            reference=model_record(campaign.run, standing.reference(config)),
            inputs=inputs,
        )
        write_file(path, to_json(record.as_json()))
        campaign.run.event("promotion", iteration=k, promoted=promoted, reason=reason, attempts=len(attempts))
    decided = read_record(path, PromotionRecord)
    refuse_changes(StageFolder(path.parent, "promote", k), decided.inputs, inputs)
    policy, candidate = (model_of(campaign.run, record) for record in (decided.policy, decided.candidate))
    return replace(standing, incumbent=policy, previous=candidate)
