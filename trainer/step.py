"""One optimizer step: gradients of the mean loss over its relations, in however many rows, and numbers for the log. A
loss with statistics of the step takes two passes: log-probs of all responses, then their gradients into the weights.
Each process has its rows' part of the gradients; the caller sums them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from trainer.adapters import dropping
from trainer.diagnostics import StepTotals, describe, log_ratios_of
from trainer.losses.batch import Responses
from trainer.reference import RowReference
from trainer.relations import Batch, Placed, gather, join, leaves
from trainer.step_rows import (
    RowJob,
    StepContext,
    check_step_zero,
    entropy_of,
    forward,
    gap_of,
    mean_length,
    place_over,
    prompts_of,
    read_rows,
    row_jobs,
)
from trainer.stops import BadStep
from trainer.tree.rows import Row, Step, separate_tokens


def accumulate_step(
    context: StepContext,
    step: Step,
    reference: Sequence[RowReference] | None,
    *,
    number: int,
    check_zero: bool,
    tick: Callable[[], None],
) -> StepTotals:
    """Forward and backward over this process's rows; the totals are those of all processes. With `check_zero` every
    log-ratio must be exactly 0, else TrainerError; BadStep for a loss that is not a number."""
    relations = context.relations(step)
    totals = StepTotals(context.objective.counts(relations), mean_length(context.data, relations, context.arithmetic))
    run = _two_passes if context.objective.whole_step else _row_by_row
    with context.arithmetic.autocast(), dropping(context.learner.model):
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


def _row_by_row(
    context: StepContext,
    step: Step,
    reference: Sequence[RowReference] | None,
    totals: StepTotals,
    number: int,
    check_zero: bool,
) -> Iterator[RowJob]:
    for job in row_jobs(context, step, reference, number):
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
    """Score all responses of the step first without, then with gradients."""
    jobs = list(row_jobs(context, step, reference, number))
    cut = [leaves(row) for row in read_rows(context, jobs, len(step.rows), totals, check_zero=check_zero)]
    placed = place_over(context.data, step.rows)
    batch = gather(placed, join(cut), totals.mean_length)
    context.objective.update(batch)
    # every process has the whole step's numbers; only the leader's count
    counted = totals if context.team.leads else replace(totals, sums={}, weights={}, log_ratios=[])
    with context.arithmetic.autocast(enabled=False):
        _loss(context, batch, placed, counted, number, step.rows).backward()
    counted.add(describe(batch, context.objective.beta))
    counted.log_ratios += log_ratios_of(batch)
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
    """A backward pass with zero gradients: sharded weights need every process in each one."""
    outputs = [values for values in (responses.logp, responses.value) if values is not None]
    _backward(context, outputs, [torch.zeros_like(values) for values in outputs])


def _loss(
    context: StepContext, batch: Batch, placed: Sequence[Placed], totals: StepTotals, number: int, rows: Sequence[Row]
) -> Tensor:
    """The share of these relations in the step's mean loss; its numbers are added to `totals`."""
    value = context.objective.evaluate(
        batch, [relation for relation, _ in placed], totals.counts, generator_of(context.seed, number)
    )
    if not torch.isfinite(value.total):
        raise BadStep(number, f"the loss is {value.total.item()}", prompts_of(context.data, rows), rows)
    totals.add_loss(value)
    return value.total


def generator_of(seed: int, number: int) -> torch.Generator:
    """The random numbers of one step, independent of what ran before."""
    return torch.Generator().manual_seed((seed + 1_000_003 * number) % 2**63)
