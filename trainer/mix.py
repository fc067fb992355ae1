"""Mix supervised examples into every step of a round: each step adds `weight * mean of their NLL per token`. Their rows
are plain: an example may be longer than any sequence on which the probe checked trees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trainer.data import CheckedData, PreferenceData
from trainer.errors import TrainerError
from trainer.losses.terms import terms_of
from trainer.objective import Objective
from trainer.settings import TrainSettings
from trainer.step import accumulate_step
from trainer.step_rows import StepContext
from trainer.summary import MixSummary, StepMetrics
from trainer.tree.rows import Plan, plan_rows


@dataclass(frozen=True, slots=True)
class MixPlan:
    """Which examples go into which step: `plan.order[number]` is the step with that number."""

    data: PreferenceData
    plan: Plan
    weight: float


def plan_mix(data: PreferenceData, settings: TrainSettings, *, steps: int, seed: int) -> MixPlan:
    """About `per_step` examples for each of the round's steps, pass after pass over all of them in seeded order.
    TrainerError without settings of a mix."""
    mix = settings.mix
    if mix is None:
        raise TrainerError("Supervised examples were given, but train.mix is not set. Set it, or give no examples.")
    passes = -(-steps // -(-len(data.relations) // mix.per_step))
    changes = {"batch_pairs": mix.per_step, "grouping": "shuffled", "epochs": passes, "max_steps": steps}
    plan = plan_rows(data, settings.model_copy(update=changes), seed=seed, layout="plain")
    return MixPlan(data, plan, mix.weight)


def mix_context(context: StepContext, mix: MixPlan) -> StepContext:
    """The same model with the mix's own data and loss."""
    term = {"name": "sft", "weight": mix.weight}
    objective = Objective(terms_of([term], beta=None, nll_weight=None))
    learner = replace(context.learner, objective=objective, live=None, value=None)
    return replace(context, learner=learner, data=mix.data, layout="plain")


def add_mix(
    metrics: dict[str, float], context: StepContext, mix: MixPlan, *, number: int, tick: Callable[[], None]
) -> StepMetrics:
    """Forward and backward over the step's examples; returns the metrics with theirs. `loss` becomes the total."""
    step = mix.plan.steps[mix.plan.order[number]]
    totals = accumulate_step(context, step, None, number=number, check_zero=False, tick=tick)
    numbers = {"mix": totals.means()["sft"], "mix_examples": step.relations, "mix_tokens": totals.tokens}
    return metrics | {"loss": metrics["loss"] + totals.loss} | numbers


def summarise_mix(checked: CheckedData, steps: Sequence[StepMetrics]) -> MixSummary:
    """The examples in the record of a round with this step log."""
    trained = sum(step["mix_examples"] for step in steps)
    return MixSummary(examples=len(checked.data.relations), dropped=checked.dropped, trained=trained)
