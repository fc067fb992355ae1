"""Relations that are measured and never trained on, to distinguish generalisation from memorisation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from trainer.data import PreferenceData
from trainer.diagnostics import StepTotals, describe
from trainer.errors import TrainerError
from trainer.losses.batch import Responses
from trainer.reference import RowReference
from trainer.relations import Placed, gather, join
from trainer.step import generator_of
from trainer.step_rows import StepContext, mean_length, place_over, read_rows, row_jobs
from trainer.tree.rows import Plan


def split_probe(data: PreferenceData, relations: int, *, seed: int) -> tuple[PreferenceData, PreferenceData | None]:
    """Training data, and whole prompts with at least `relations` to watch. TrainerError if these are over half."""
    if not relations:
        return data, None
    kept, probe = data.split(relations, seed=f"probe {seed}")
    held = len(probe.relations)
    if 2 * held > len(data.relations):
        raise TrainerError(
            f"train.probe_pairs={relations} would hold {held} of the round's {len(data.relations)} {data.kind} out of "
            "training, more than half. Lower it, or sample more."
        )
    return kept, probe


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """The watched relations, planned and scored by the reference like those of training."""

    data: PreferenceData
    plan: Plan
    reference: Sequence[Sequence[RowReference]] | None

    @torch.no_grad()
    def measure(self, context: StepContext) -> dict[str, float]:
        """The loss, its parts and all diagnostics, over the whole set at once."""
        context = replace(context, data=self.data)
        responses: list[Responses] = []
        entropies = StepTotals({}, torch.zeros(()))
        with context.arithmetic.autocast():
            for at, step in enumerate(self.plan.steps):
                jobs = list(row_jobs(context, step, None if self.reference is None else self.reference[at]))
                responses += read_rows(context, jobs, len(step.rows), entropies)
        placed = place_over(self.data, [row for step in self.plan.steps for row in step.rows])
        entropy = entropies.of_all(context.team).means()["entropy"]
        return {"entropy": entropy} | self._numbers(context, join(responses), placed)

    def _numbers(self, context: StepContext, responses: Responses, placed: Sequence[Placed]) -> dict[str, float]:
        relations = [relation for relation, _ in placed]
        objective = context.objective
        totals = StepTotals(objective.counts(relations), mean_length(self.data, relations, context.arithmetic))
        batch = gather(placed, responses, totals.mean_length)
        totals.add(describe(batch, objective.beta))
        known = all(part.update is None or objective.state[part.name] for part in objective.parts)
        if known:  # a running statistic exists from the first step on
            totals.add_loss(objective.evaluate(batch, relations, totals.counts, generator_of(context.seed, 0)))
        means = totals.means()
        return means if known else {name: value for name, value in means.items() if name != "loss"}
