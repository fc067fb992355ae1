"""One optimizer step of a reward model, and measuring pairs without one. Gradients are those of the mean loss over all
pairs of the step, however many rows they lie in.

Shapes: `R` responses of a row, `P` its pairs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from trainer.data import Pair, PreferenceData
from trainer.losses.reward import bradley_terry
from trainer.model import Arithmetic
from trainer.reward.model import RewardScorer
from trainer.reward.summary import describe_rewards
from trainer.scorer import to_batch
from trainer.step import prompts_of
from trainer.stops import BadStep
from trainer.tree.rows import Layout, Plan, Row, Step, encode_row


@dataclass(frozen=True, slots=True)
class RewardContext:
    """What stays the same over all steps."""

    scorer: RewardScorer
    data: PreferenceData
    arithmetic: Arithmetic
    layout: Layout
    centre: float


class RowRewards(NamedTuple):
    """A row's pairs: rewards and data columns, all [P]; tokens that the model read."""

    reward_w: Tensor
    reward_l: Tensor
    margin: Tensor
    weight: Tensor
    encoded: int


def accumulate_rewards(
    context: RewardContext, step: Step, *, number: int, tick: Callable[[], None]
) -> dict[str, float]:
    """Forward and backward over every row; gradients add up to those of the mean loss over the step's pairs. Returns
    the step's part of the log. Raises BadStep for a loss that is not a number."""
    loss, tokens = 0.0, 0
    seen: list[RowRewards] = []
    with context.arithmetic.autocast():
        for row, rewards in _rows(context, step.rows):
            with context.arithmetic.autocast(enabled=False):
                values_P = rewards.weight * bradley_terry(*rewards[:2], margin=rewards.margin, centre=context.centre)
                share = values_P.sum() / step.relations
                if not math.isfinite(value := float(share.detach())):
                    raise BadStep(number, f"the loss is {value}", prompts_of(context.data, [row]), [row])
                share.backward()
            loss, tokens = loss + value, tokens + rewards.encoded
            seen.append(rewards)
            tick()
    described = describe_rewards(*_joined(seen))
    log = {name: described[name] for name in ("accuracy", "margin", "reward_mean", "reward_spread")}
    return {"loss": loss, "bradley_terry": described["loss"], **log, "tokens": tokens}


@torch.no_grad()
def measure_rewards(context: RewardContext, plan: Plan, tick: Callable[[], None]) -> dict[str, float]:
    """Evaluate all pairs of a plan."""
    seen: list[RowRewards] = []
    with context.arithmetic.autocast():
        for step in plan.steps:
            for _, rewards in _rows(context, step.rows):
                seen.append(rewards)
                tick()
    torch.clear_autocast_cache()  # weights that were cast without gradients must not serve training
    return describe_rewards(*_joined(seen))


def _rows(context: RewardContext, rows: Sequence[Row]) -> Iterator[tuple[Row, RowRewards]]:
    device = context.arithmetic.device
    for row in rows:
        encoded = encode_row(context.data, row, context.layout)
        reward_R = context.scorer(to_batch(encoded, device=device, mask_dtype=context.arithmetic.mask_dtype))
        pairs = [cast(Pair, context.data.relations[relation.index]) for relation in row.relations]
        w, l = torch.tensor([relation.places for relation in row.relations], device=device).unbind(1)  # noqa: E741
        margin = reward_R.new_tensor([pair.margin or 0.0 for pair in pairs])
        weight = reward_R.new_tensor([pair.weight for pair in pairs])
        yield row, RowRewards(reward_R[w], reward_R[l], margin, weight, encoded.encoded)


def _joined(seen: Sequence[RowRewards]) -> tuple[Tensor, Tensor]:
    return torch.cat([row.reward_w.detach() for row in seen]), torch.cat([row.reward_l.detach() for row in seen])
