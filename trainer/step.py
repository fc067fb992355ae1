"""Room `trainer/`, one optimizer step. In: a planned step and its reference log-probs; out: gradients of the mean
loss over all relations of the step, however many rows they lie in, and what is written into the log about them.

A loss whose statistics span the step takes two passes over its rows: the first, without gradients, gives the log-probs
of all responses, from which the loss and its gradient for each log-prob follow; the second carries them into the
weights.

Shapes: `R` responses of a row.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from trainer.data import PreferenceData, Relation
from trainer.diagnostics import describe
from trainer.errors import TrainerError
from trainer.learner import Learner
from trainer.losses.batch import Responses
from trainer.model import Arithmetic
from trainer.objective import Objective, Value
from trainer.reference import RowReference
from trainer.relations import Batch, Placed, gather, join, leaves
from trainer.rows import Layout, Row, Step, encode_row, separate_tokens
from trainer.scorer import RowBatch, RowScorer, Scores, along_paths, to_batch
from trainer.stops import BadStep


@dataclass(frozen=True, slots=True)
class StepContext:
    """What stays the same over all steps of a round."""

    scorer: RowScorer
    learner: Learner
    data: PreferenceData
    arithmetic: Arithmetic
    layout: Layout
    seed: int = 0

    @property
    def objective(self) -> Objective:
        """The loss."""
        return self.learner.objective

    def relations(self, step: Step) -> list[Relation]:
        """All relations of a step, in the order of its rows."""
        return [self.data.relations[relation.index] for row in step.rows for relation in row.relations]


@dataclass(slots=True)
class StepTotals:
    """Sums over the relations of a step; `means` divides them once."""

    counts: dict[str, int]
    """Relations that each loss term is averaged over."""
    mean_length: Tensor
    loss: float = 0.0
    """Sum of the numbers that `backward` saw."""
    tokens: int = 0
    plain_tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def add(self, values: dict[str, tuple[float, float]]) -> None:
        """Add sums with the number of things summed."""
        for name, (total, count) in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + total
            self.weights[name] = self.weights.get(name, 0.0) + count

    def add_loss(self, value: Value) -> None:
        """Add a share of the loss and of its parts."""
        self.loss += float(value.total.detach())
        self.add({name: (total, 0.0) for name, total in value.parts.items()})
        self.weights |= {name: float(self.counts[name]) for name in value.parts}

    def means(self) -> dict[str, float]:
        """Means over the step's relations, in the words of the log."""
        return {"loss": self.loss} | {name: total / self.weights[name] for name, total in self.sums.items()}


@dataclass(frozen=True, slots=True)
class RowJob:
    """A row on the device, with what the reference says of it."""

    row: Row
    batch: RowBatch
    reference: RowReference | None
    placed: list[Placed]
    encoded: int


def accumulate_step(
    context: StepContext,
    step: Step,
    reference: Sequence[RowReference] | None,
    *,
    number: int,
    check_zero: bool,
    tick: Callable[[], None],
) -> StepTotals:
    """Forward and backward over every row; gradients add up to those of the mean loss over the step's relations.

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
    return totals


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
        if check_zero:
            check_step_zero(responses, job.row, context.data)
        batch = gather(job.placed, responses, totals.mean_length)
        loss = _loss(context, batch, job.placed, totals, number, [job.row])
        _backward(context, [loss], [None])
        totals.add(describe(batch, context.objective.beta) | entropy_of(scores))
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
    cut: list[Responses] = []
    placed: list[Placed] = []
    for job in jobs:
        with torch.no_grad():
            responses, scores = forward(context, job)
        if check_zero:
            check_step_zero(responses, job.row, context.data)
        before = sum(len(row.logp) for row in cut)
        placed += [(relation, tuple(before + place for place in places)) for relation, places in job.placed]
        cut.append(leaves(responses))
        totals.add(entropy_of(scores))
    torch.clear_autocast_cache()  # weights that were cast without gradients must not serve the second pass
    order = [relation.index for row in step.rows for relation in row.relations]
    placed = [entry for _, entry in sorted(zip(order, placed, strict=True), key=lambda both: both[0])]  # draws see this
    batch = gather(placed, join(cut), totals.mean_length)
    context.objective.update(batch)
    with context.arithmetic.autocast(enabled=False):
        _loss(context, batch, placed, totals, number, step.rows).backward()
    totals.add(describe(batch, context.objective.beta))
    for job, leaf in zip(jobs, cut, strict=True):
        responses, _ = forward(context, job)
        names = [name for name in ("logp", "tokens", "kl", "value") if getattr(leaf, name) is not None]
        grads = {name: getattr(leaf, name).grad for name in names}
        wanted = [name for name in names if grads[name] is not None and getattr(responses, name).requires_grad]
        _backward(context, [getattr(responses, name) for name in wanted], [grads[name] for name in wanted])
        yield job


def _backward(context: StepContext, values: list[Tensor], grads: list[Tensor | None]) -> None:
    with context.arithmetic.autocast(enabled=False):
        torch.autograd.backward(values, grads)


def row_jobs(context: StepContext, step: Step, reference: Sequence[RowReference] | None) -> Iterator[RowJob]:
    """The step's rows, one after the other, as the model reads them."""
    arithmetic = context.arithmetic
    said_of_rows: Sequence[RowReference | None] = [None] * len(step.rows) if reference is None else reference
    for row, said in zip(step.rows, said_of_rows, strict=True):
        encoded = encode_row(context.data, row, context.layout)
        batch = to_batch(encoded, device=arithmetic.device, mask_dtype=arithmetic.mask_dtype)
        placed = [(context.data.relations[relation.index], relation.places) for relation in row.relations]
        yield RowJob(row, batch, said, placed, encoded.encoded)


def forward(context: StepContext, job: RowJob) -> tuple[Responses, Scores]:
    """What policy, reference and value network say of the row's responses."""
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
