"""One optimizer step: gradients of the mean loss over all relations of the step, however many rows they lie in, and the
step's numbers for the log.

A loss whose statistics span the step takes two passes over its rows: the first, without gradients, gives the log-probs
of all responses, from which the loss and its gradient for each log-prob follow; the second carries them into the
weights.

Several processes share a step's rows. Each one's gradients are its rows' part of the whole; the caller sums them.

Shapes: `R` responses of a row.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from trainer.data import PreferenceData, Relation
from trainer.diagnostics import describe, log_ratios_of
from trainer.errors import TrainerError
from trainer.learner import Learner
from trainer.losses.batch import Responses
from trainer.model import Arithmetic
from trainer.objective import Objective
from trainer.parallel.team import ALONE, Team
from trainer.reference import RowReference
from trainer.relations import Batch, Placed, gather, join, leaves, moved
from trainer.scorer import RowBatch, RowScorer, Scores, along_paths, to_batch
from trainer.stops import BadStep
from trainer.totals import StepTotals
from trainer.tree.rows import Layout, Row, Step, encode_row, separate_tokens


@dataclass(frozen=True, slots=True)
class StepContext:
    """What stays the same over all steps of a round."""

    scorer: RowScorer
    learner: Learner
    data: PreferenceData
    arithmetic: Arithmetic
    layout: Layout
    seed: int = 0
    team: Team = ALONE
    log_sampler: bool = False
    """Whether the log says how far the policy is from what the sampler said of the responses."""

    @property
    def objective(self) -> Objective:
        """The loss."""
        return self.learner.objective

    def relations(self, step: Step) -> list[Relation]:
        """All relations of a step, in the order of its rows."""
        return [self.data.relations[relation.index] for row in step.rows for relation in row.relations]


@dataclass(frozen=True, slots=True)
class RowJob:
    """A row on the device, with its reference numbers."""

    row: Row
    batch: RowBatch
    reference: RowReference | None
    placed: list[Placed]
    encoded: int
    at: int
    """Which of the step's rows it is."""
    idle: bool
    """Another process counts this row (`Turn.idle`)."""


def accumulate_step(
    context: StepContext,
    step: Step,
    reference: Sequence[RowReference] | None,
    *,
    number: int,
    check_zero: bool,
    tick: Callable[[], None],
) -> StepTotals:
    """Forward and backward over this process's rows; gradients add up, over all rows and processes, to those of the
    mean loss over the step's relations. The totals are those of all processes.

    With `check_zero` policy and reference are the same weights, and every log-ratio must be exactly 0.
    Raises TrainerError for that, and BadStep for a loss that is not a number.
    """
    relations = context.relations(step)
    totals = StepTotals(context.objective.counts(relations), mean_length(context.data, relations, context.arithmetic))
    run = _two_passes if context.objective.whole_step else _row_by_row
    with context.arithmetic.autocast():
        for job in run(context, step, reference, totals, number, check_zero):
            totals.tokens += job.encoded
            totals.plain_tokens += separate_tokens(context.data, job.row)
            tick()
    return totals.of_all(context.team)


def clip_gradients(parameters: Sequence[nn.Parameter], most: float, *, number: int, prompts: Sequence[str]) -> float:
    """Scale gradients down to the norm `most`; returns the norm before. Raises BadStep if it is not a number."""
    norm = float(nn.utils.clip_grad_norm_(parameters, most))
    if not math.isfinite(norm):
        raise BadStep(number, f"the gradient norm is {norm}", prompts)
    return norm


def prompts_of(data: PreferenceData, rows: Sequence[Row]) -> list[str]:
    """Ids of the prompts in these rows, for messages."""
    return sorted({data.groups[tree.group].id for row in rows for tree in row.trees})


def _row_by_row(
    context: StepContext,
    step: Step,
    reference: Sequence[RowReference] | None,
    totals: StepTotals,
    number: int,
    check_zero: bool,
) -> Iterator[RowJob]:
    for job in row_jobs(context, step, reference):
        responses, scores = forward(context, job)
        if job.idle:
            _backward_without_effect(context, responses)
            continue
        if check_zero:
            check_step_zero(responses, job.row, context.data)
        batch = gather(job.placed, responses, totals.mean_length)
        loss = _loss(context, batch, job.placed, totals, number, [job.row])
        if loss.requires_grad:
            _backward(context, [loss], [None])
        else:  # no term is written over this row's relations
            _backward_without_effect(context, responses)
        totals.add(describe(batch, context.objective.beta) | entropy_of(scores) | gap_of(context, job, responses))
        totals.log_ratios += log_ratios_of(batch)
        yield job


def _two_passes(
    context: StepContext,
    step: Step,
    reference: Sequence[RowReference] | None,
    totals: StepTotals,
    number: int,
    check_zero: bool,
) -> Iterator[RowJob]:
    """All responses of the step first without, then with gradients."""
    jobs = list(row_jobs(context, step, reference))
    cut = [leaves(row) for row in read_rows(context, jobs, len(step.rows), totals, check_zero=check_zero)]
    placed = place_over(context.data, step.rows)
    batch = gather(placed, join(cut), totals.mean_length)
    context.objective.update(batch)
    # all processes know the step, one reports it
    said = totals if context.team.leads else replace(totals, sums={}, weights={}, log_ratios=[])
    with context.arithmetic.autocast(enabled=False):
        _loss(context, batch, placed, said, number, step.rows).backward()
    said.add(describe(batch, context.objective.beta))
    said.log_ratios += log_ratios_of(batch)
    for job in jobs:
        responses, _ = forward(context, job)
        if job.idle:
            _backward_without_effect(context, responses)
            continue
        leaf = cut[job.at]
        names = [name for name in ("logp", "tokens", "kl", "value") if getattr(leaf, name) is not None]
        grads = {name: getattr(leaf, name).grad for name in names}
        wanted = [name for name in names if grads[name] is not None and getattr(responses, name).requires_grad]
        _backward(context, [getattr(responses, name) for name in wanted], [grads[name] for name in wanted])
        yield job


def _backward(context: StepContext, values: list[Tensor], grads: list[Tensor | None]) -> None:
    with context.arithmetic.autocast(enabled=False):
        torch.autograd.backward(values, grads)


def _backward_without_effect(context: StepContext, responses: Responses) -> None:
    """Sharded weights need every process in every backward pass."""
    said = [values for values in (responses.logp, responses.value) if values is not None]
    _backward(context, said, [torch.zeros_like(values) for values in said])


@torch.no_grad()
def read_rows(
    context: StepContext, jobs: Sequence[RowJob], rows: int, totals: StepTotals, *, check_zero: bool = False
) -> list[Responses]:
    """The models' numbers for each of a step's `rows`, of which this process reads `jobs`, no gradients; the
    entropies of its own are added to `totals`."""
    mine: list[Responses] = []
    for job in jobs:
        responses, scores = forward(context, job)
        mine.append(responses)
        if check_zero:
            check_step_zero(responses, job.row, context.data)
        if not job.idle:
            totals.add(entropy_of(scores) | gap_of(context, job, responses))
    torch.clear_autocast_cache()  # weights that were cast without gradients must not serve training
    if context.team.size == 1:
        return mine
    said = context.team.in_order([moved(responses, "cpu") for responses in mine], rows)
    return [moved(responses, context.arithmetic.device) for responses in said]


def place_over(data: PreferenceData, rows: Sequence[Row]) -> list[Placed]:
    """The relations of these rows, over the responses of all of them; in the order of the data, so that what is drawn
    for them does not depend on the rows."""
    placed: dict[int, Placed] = {}
    before = 0
    for row in rows:
        for relation in row.relations:
            places = tuple(before + place for place in relation.places)
            placed[relation.index] = (data.relations[relation.index], places)
        before += row.responses
    return [placed[index] for index in sorted(placed)]


def row_jobs(context: StepContext, step: Step, reference: Sequence[RowReference] | None) -> Iterator[RowJob]:
    """This process's rows of the step, one after the other, as the model reads them."""
    arithmetic = context.arithmetic
    for at, idle in context.team.turns(len(step.rows)):
        row, said = step.rows[at], None if reference is None else reference[at]
        encoded = encode_row(context.data, row, context.layout)
        batch = to_batch(encoded, device=arithmetic.device, mask_dtype=arithmetic.mask_dtype)
        placed = [(context.data.relations[relation.index], relation.places) for relation in row.relations]
        yield RowJob(row, batch, said, placed, encoded.encoded, at, idle)


def forward(context: StepContext, job: RowJob) -> tuple[Responses, Scores]:
    """Run policy, reference and value network over the row."""
    needs, batch, learner = context.objective.needs, job.batch, context.learner
    live = learner.live
    logits = live.logits(batch) if live is not None and "sequence_kl" in needs else None
    scores: Scores = context.scorer(batch, collision="collision" in needs, entropy=True, reference_logits_NV=logits)
    said = live.score(batch) if live is not None and live.moves else job.reference
    device, tokens = scores.sum_R.device, "tokens" in needs
    responses = Responses(
        logp=scores.sum_R,
        length=batch.length_R,
        ref=None if said is None else said.sum_R.to(device),
        tokens=along_paths(scores.token_K, batch.path_RL) if tokens else None,
        ref_tokens=None if said is None or said.tokens_RL is None else said.tokens_RL.to(device),
        kl=scores.kl_R,
        collision=None if scores.collision_K is None else along_paths(scores.collision_K, batch.path_RL),
        value=None if learner.value is None else learner.value.of_row(context.data, job.row),
    )
    return responses, scores


def _loss(
    context: StepContext,
    batch: Batch,
    placed: Sequence[Placed],
    totals: StepTotals,
    number: int,
    rows: Sequence[Row],
) -> Tensor:
    """The share of the step's mean loss; its numbers are added to `totals`."""
    value = context.objective.evaluate(
        batch, [relation for relation, _ in placed], totals.counts, generator_of(context.seed, number)
    )
    if not torch.isfinite(value.total):
        raise BadStep(number, f"the loss is {value.total.item()}", prompts_of(context.data, rows), rows)
    totals.add_loss(value)
    return value.total


def generator_of(seed: int, number: int) -> torch.Generator:
    """The random numbers of one step, whatever ran before it."""
    return torch.Generator().manual_seed((seed + 1_000_003 * number) % 2**63)


def check_step_zero(responses: Responses, row: Row, data: PreferenceData) -> None:
    """TrainerError unless every log-ratio is exactly 0."""
    worst = 0.0 if responses.ref is None else float(responses.gap.detach().abs().max())
    if worst != 0.0:
        raise TrainerError(
            f"Step-0 check failed: policy and reference are the same weights, yet a log-prob of the prompts "
            f"{', '.join(prompts_of(data, [row]))} differs by {worst:.3g} nat before the first update. The reference "
            "log-probs do not belong to this model and these rows, or the model's forward pass does not repeat exactly."
        )


def mean_length(data: PreferenceData, relations: Sequence[Relation], arithmetic: Arithmetic) -> Tensor:
    """[] mean number of tokens of the relations' first (for pairs: chosen) responses."""
    lengths = [data.length(relation.prompt_id, relation.responses[0]) for relation in relations]
    return torch.tensor(sum(lengths) / len(lengths), device=arithmetic.device)


def entropy_of(scores: Scores) -> dict[str, tuple[float, float]]:
    """The row's mean entropy as a sum over one row."""
    return {} if scores.entropy is None else {"entropy": (float(scores.entropy), 1.0)}


def gap_of(context: StepContext, job: RowJob, said: Responses) -> dict[str, tuple[float, float]]:
    """Mean distance, in nats per token, of the policy's log-probs of the row's responses from the sampler's, as sums
    over responses and tokens. Responses without sampler log-probs do not count."""
    if not context.log_sampler:
        return {}
    groups = ((context.data.groups[tree.group].responses, tree.responses) for tree in job.row.trees)
    responses = [members[index] for members, wanted in groups for index in wanted]
    known = [
        (abs(response.sampled_logp - logp), len(response.token_ids))
        for response, logp in zip(responses, said.logp.detach().tolist(), strict=True)
        if response.sampled_logp is not None
    ]
    return {"sampler_gap": (sum(gap for gap, _ in known), float(sum(n for _, n in known)))} if known else {}
