"""Room `trainer/`, one optimizer step. In: a planned step and its reference log-probs; out: gradients of the mean
loss over all pairs of the step, however many rows they lie in, and what is written into the log about them.

Shapes: `P` pairs of a row, `R` responses of a row.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainer.data import PreferenceData
from trainer.encode import EncodedRow
from trainer.errors import TrainerError
from trainer.losses import PairLogprobs, pair_loss
from trainer.model import Arithmetic
from trainer.rows import Layout, Row, Step, encode_row, separate_tokens
from trainer.scorer import RowScorer, to_batch
from trainer.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class StepContext:
    """What stays the same over all steps of a round."""

    scorer: RowScorer
    data: PreferenceData
    settings: TrainSettings
    arithmetic: Arithmetic
    layout: Layout


@dataclass(slots=True)
class StepTotals:
    """Sums over the pairs of a step; `means` divides them once."""

    pairs: int
    loss: float = 0.0
    """Sum of the numbers that `backward` saw."""
    tokens: int = 0
    plain_tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, **values: Tensor | float) -> None:
        """Add one row's per-pair sums."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def means(self) -> dict[str, float]:
        """Means over the step's pairs, in the words of the log."""
        return {"loss": self.loss} | {name: value / self.pairs for name, value in self.sums.items()}


def accumulate_step(
    context: StepContext,
    step: Step,
    reference: Sequence[Tensor],
    *,
    number: int,
    check_zero: bool,
    tick: Callable[[], None],
) -> StepTotals:
    """Forward and backward over every row; gradients add up to those of the mean loss over the step's pairs.

    With `check_zero` policy and reference are the same weights, and every margin must be exactly 0.
    Raises TrainerError for that, and for a loss that is not a number.
    """
    totals = StepTotals(step.pairs)
    with context.arithmetic.autocast():
        for row, ref_R in zip(step.rows, reference, strict=True):
            encoded = encode_row(context.data, row, context.layout)
            loss = _row_loss(context, row, encoded, ref_R, totals, number=number, check_zero=check_zero)
            with context.arithmetic.autocast(enabled=False):
                loss.backward()
            totals.tokens += encoded.encoded
            totals.plain_tokens += separate_tokens(context.data, row)
            tick()
    return totals


def clip_gradients(parameters: Sequence[nn.Parameter], most: float, *, number: int, prompts: Sequence[str]) -> float:
    """Scale gradients down to the norm `most`; returns the norm before. Raises TrainerError if it is not a number."""
    norm = float(nn.utils.clip_grad_norm_(parameters, most))
    if not math.isfinite(norm):
        raise TrainerError(_not_a_number("gradient norm", norm, number, prompts))
    return norm


def prompts_of(data: PreferenceData, rows: Sequence[Row]) -> list[str]:
    """Ids of the prompts in these rows, for messages."""
    return sorted({data.groups[tree.group].id for row in rows for tree in row.trees})


def _row_loss(
    context: StepContext,
    row: Row,
    encoded: EncodedRow,
    ref_R: Tensor,
    totals: StepTotals,
    *,
    number: int,
    check_zero: bool,
) -> Tensor:
    """The row's share of the step's mean loss; the row's numbers are added to `totals`."""
    arithmetic, settings = context.arithmetic, context.settings
    batch = to_batch(encoded, device=arithmetic.device, mask_dtype=arithmetic.mask_dtype)
    sums_R = context.scorer(batch).sum_R
    pairs = _pair_logprobs(row, sums_R, ref_R.to(sums_R.device), batch.length_R)
    if check_zero:
        _check_step_zero(pairs, row, context.data)
    loss = pair_loss(pairs, name=settings.loss, beta=settings.beta, nll_weight=settings.nll_weight)
    weight_P = sums_R.new_tensor([context.data.pairs[pair.pair].weight for pair in row.pairs])
    total = (weight_P * loss.total_P).sum() / totals.pairs
    if not torch.isfinite(total):
        raise TrainerError(_not_a_number("loss", total.item(), number, prompts_of(context.data, [row])))
    with torch.no_grad():
        parts = {name: (weight_P * value_P).sum() for name, value_P in loss.parts.items()}
        totals.add(**parts, **_diagnostics(pairs, settings.beta))
        totals.loss += total.item()
    return total


def _pair_logprobs(row: Row, sums_R: Tensor, ref_R: Tensor, length_R: Tensor) -> PairLogprobs:
    w = torch.tensor([pair.chosen for pair in row.pairs], device=sums_R.device)
    l = torch.tensor([pair.rejected for pair in row.pairs], device=sums_R.device)  # noqa: E741
    return PairLogprobs(sums_R[w], sums_R[l], ref_R[w], ref_R[l], length_R[w], length_R[l])


def _diagnostics(pairs: PairLogprobs, beta: float) -> dict[str, Tensor]:
    """Sums over the row's pairs of what the log shows; a tie counts one half."""
    delta_P = pairs.delta_P
    return {
        "chosen_logp": pairs.logp_w_P.sum(),
        "rejected_logp": pairs.logp_l_P.sum(),
        "chosen_logp_per_token": (pairs.logp_w_P / pairs.n_w_P).sum(),
        "rejected_logp_per_token": (pairs.logp_l_P / pairs.n_l_P).sum(),
        "margin": beta * delta_P.sum(),
        "reward_accuracy": ((delta_P > 0).float() + 0.5 * (delta_P == 0).float()).sum(),
        "displacement_rate": (pairs.gap_w_P < 0).float().sum(),
    }


def _check_step_zero(pairs: PairLogprobs, row: Row, data: PreferenceData) -> None:
    worst = float(torch.cat([pairs.gap_w_P, pairs.gap_l_P]).detach().abs().max())
    if worst != 0.0:
        raise TrainerError(
            f"Step-0 check failed: policy and reference are the same weights, yet a log-prob of the prompts "
            f"{', '.join(prompts_of(data, [row]))} differs by {worst:.3g} nat before the first update. The reference "
            "log-probs do not belong to this model and these rows, or the model's forward pass does not repeat exactly."
        )


def _not_a_number(what: str, value: Any, number: int, prompts: Sequence[str]) -> str:
    return (
        f"Training stopped at step {number}: the {what} is {value}, with the prompts {', '.join(prompts)}. The weights "
        "of the last checkpoint are kept. Lower the learning rate, or look at these prompts' responses."
    )
