"""Room loop, from pairs to a decision: the round is trained, evaluated and decided on; if it was rejected and retries
are left, trained again with the stated changes. Every attempt keeps its folders.

Attempt 1 lies in the iteration's own folders, attempt n in `attempt-n/`. A decision is a function of what these hold,
so a killed run comes to the same one again.
"""

from dataclasses import asdict, dataclass
from typing import Any

from loop.config_promote import changes_in_words, settings_of_attempt
from loop.context import Campaign, Model, Standing
from loop.evaluation import compare, shadow_change
from loop.files import read_json
from loop.promote import Decision, check_limits, decide
from loop.prompts import PromptRow
from loop.runfolder import Manifest
from loop.stages.evaluate import eval_stage
from loop.stages.guard import guard_stage
from loop.stages.train import train_stage
from loop.stats import Difference


@dataclass(frozen=True, slots=True)
class Attempt:
    """One training of a round, and what became of it."""

    candidate: Model
    changes: dict[str, Any]
    difference: Difference
    guarded: dict[str, Any]
    decision: Decision

    @property
    def record(self) -> dict[str, Any]:
        """What promotion.json says of it."""
        decision = self.decision
        return {
            "changes": self.changes,
            "promoted": decision.promote,
            "reason": decision.reason,
            "gain": asdict(self.difference),
            "limits": [asdict(limit) for limit in decision.limits],
            "measured": self.guarded,
            "candidate": self.candidate.hash,
        }


def train_and_decide(
    campaign: Campaign,
    k: int,
    standing: Standing,
    paired: Manifest,
    sets: dict[str, list[PromptRow]],
    measured: dict[int, dict[str, Any]],
) -> list[Attempt]:
    """The attempts of an iteration, the last of them promoted or given up; `measured` gets its evaluation."""
    promote, steps = campaign.loaded.at(k).promote, 0
    tried: list[Attempt] = []
    for number in range(1, attempts_of(campaign, k) + 1):
        train, changes = settings_of_attempt(campaign.loaded.at(k).train, promote.retry, number, steps)
        if tried and not campaign.run.promotion(k).exists():
            campaign.display.say(f"  {tried[-1].decision.reason}\n  attempt {number}: {changes_in_words(changes)}")
        trained, candidate = train_stage(campaign, k, standing, paired, sets["gate"], train, number)
        campaign.reached(k, "train")
        measured[k] = eval_stage(campaign, k, candidate, sets, number)
        guarded = guard_stage(campaign, k, number, candidate, standing.initial, sets["gate"])
        campaign.reached(k, "eval")
        tried.append(judge_attempt(campaign, k, number, standing, candidate, changes, guarded, measured))
        steps = trained.counts["steps"]
        if tried[-1].decision.promote:
            break
    return tried


def attempts_of(campaign: Campaign, k: int) -> int:
    """How many attempts an iteration may have; a finished one stays as it was decided."""
    path = campaign.run.promotion(k)
    if path.exists():
        return len(read_json(path).get("attempts", [None]))
    return campaign.loaded.at(k).promote.attempts


def judge_attempt(
    campaign: Campaign,
    k: int,
    number: int,
    standing: Standing,
    candidate: Model,
    changes: dict[str, Any],
    guarded: dict[str, Any],
    measured: dict[int, dict[str, Any]],
) -> Attempt:
    """Compare candidate and incumbent on the gate prompts, and decide."""
    promote, incumbent = campaign.loaded.at(k).promote, standing.incumbent
    ours, theirs = measured[k]["gate"], measured[incumbent.iteration]["gate"]
    difference = compare(theirs, ours, promote.metric, promote.confidence)
    numbers = limits_measured(ours, theirs) | guarded
    if promote.limits.shadow is not None:
        before = campaign.run.judged_shards(incumbent.iteration, "gate")
        own = campaign.run.judged_shards(k, "gate", number)
        numbers["shadow"] = shadow_change(before, own, promote.limits.shadow)
    limits = check_limits(promote.limits, numbers)
    return Attempt(candidate, changes, difference, guarded, decide(promote, difference, limits))


def limits_measured(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float | None]:
    """What the gate evaluations themselves say: lengths and truncation of the sampled responses."""
    own, before = ours["mean_length"], theirs["mean_length"]
    ratio = own / before if own is not None and before else None
    return {"length": own, "length_ratio": ratio, "truncated": ours["truncated_share"]}
