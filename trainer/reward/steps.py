"""The steps of a reward model from the last checkpoint on, one line of `steps.jsonl` each, and measuring pairs without
steps. A step is over the mean loss of its pairs, whatever the rows. Shapes: `R` responses of a row, `P` its pairs."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from trainer.checkpoint import Position, save_checkpoint
from trainer.data import Pair, PreferenceData
from trainer.learner import Learner
from trainer.losses.primitives import ell
from trainer.model import Arithmetic
from trainer.objective import Objective
from trainer.optimizer import Optimizer, learning_rate, make_optimizer
from trainer.reward.model import RewardScorer
from trainer.reward.summary import RewardMetrics
from trainer.scorer import to_batch
from trainer.settings import Identity, TrainSettings
from trainer.spec import Report
from trainer.step import clip_gradients
from trainer.step_rows import prompts_of
from trainer.steps import STEPS, checkpoint_is_due, open_log, resume
from trainer.stopping import Stopped, is_asked, stoppable
from trainer.stops import BadStep, check_weights, keep_batch
from trainer.summary import Clock, StepMetrics
from trainer.tree.rows import Layout, Plan, Row, Step, encode_row

BINS = 10
"""Equal bins of [1/2, 1] for the calibration error."""


@dataclass(frozen=True, slots=True)
class RewardContext:
    """What stays the same over all steps."""

    scorer: RewardScorer
    data: PreferenceData
    arithmetic: Arithmetic
    layout: Layout
    centre: float


@dataclass(frozen=True, slots=True)
class RewardJob:
    """Inputs of the steps of a reward model."""

    work: Path
    context: RewardContext
    plan: Plan
    settings: TrainSettings
    identity: Identity
    """Identifies the training; a checkpoint with another identity is rejected."""


def train_reward_steps(job: RewardJob, *, clock: Clock, report: Report) -> int:
    """Run all remaining optimizer steps; return the number of the first one."""
    learner, total = Learner(job.context.scorer.model, Objective(())), len(job.plan.order)
    optimizer = make_optimizer(learner, job.settings)
    start = resume(learner, optimizer, job.work, job.identity, clock)
    with open_log(job.work / STEPS, start.log_bytes) as log, stoppable():
        for number in range(start.steps, total):
            with clock.part("compute"):
                metrics = _step(job, number, optimizer, learner, report)
            log.write((json.dumps(metrics) + "\n").encode())
            log.flush()
            report({"phase": "train", "done": number + 1, "total": total} | metrics)
            stop = is_asked() and number + 1 < total
            if stop or checkpoint_is_due(number + 1, total, job.settings.checkpoint_every):
                with clock.part("checkpoint"):
                    os.fsync(log.fileno())
                    position = Position(number + 1, log.tell(), dict(clock.seconds))
                    save_checkpoint(job.work, position, job.identity, learner, optimizer)
            if stop:
                raise Stopped
    return start.steps


def _step(job: RewardJob, number: int, optimizer: Optimizer, learner: Learner, report: Report) -> StepMetrics:
    """Make one optimizer step; return its line of the log."""
    started, total = time.perf_counter(), len(job.plan.order)
    step = job.plan.steps[job.plan.order[number]]
    tick = partial(report, {"phase": "train", "done": number, "total": total})
    names, most = prompts_of(job.context.data, step.rows), job.settings.max_grad_norm
    with keep_batch(job.work, job.context.data, step, number) as known:
        metrics = accumulate_rewards(job.context, step, number=number, tick=tick)
        known["loss"] = metrics["loss"]
        norm = clip_gradients(list(learner.parameters().values()), most, number=number, prompts=names)
        known["gradient_norm"] = norm
        rate = learning_rate(number, total, job.settings)
        optimizer.step(rate)
        if number + 1 == total or checkpoint_is_due(number + 1, total, job.settings.checkpoint_every):
            check_weights(learner.parameters(), number=number, prompts=names)
    numbers = {"gradient_norm": norm, "learning_rate": rate, "pairs": step.relations}
    return {"step": number, **metrics, **numbers, "seconds": time.perf_counter() - started}


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
    """Forward and backward over every row; returns the step's part of the log. BadStep if the loss is no number."""
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
    metrics = describe_rewards(*_joined(seen))
    log = {name: getattr(metrics, name) for name in ("accuracy", "margin", "reward_mean", "reward_spread")}
    return {"loss": loss, "bradley_terry": metrics.loss, **log, "tokens": tokens}


@torch.no_grad()
def measure_rewards(context: RewardContext, plan: Plan, tick: Callable[[int, int], None]) -> RewardMetrics:
    """Evaluate all pairs of a plan; `tick(done, total)` after each row."""
    seen: list[RowRewards] = []
    rows = [row for step in plan.steps for row in step.rows]
    with context.arithmetic.autocast():
        for _, rewards in _rows(context, rows):
            seen.append(rewards)
            tick(len(seen), len(rows))
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


def describe_rewards(reward_w: Tensor, reward_l: Tensor) -> RewardMetrics:
    """Metrics of pairs from the rewards [P] of their chosen and rejected responses."""
    gap_P = (reward_w - reward_l).double()
    rewards = torch.cat([reward_w, reward_l]).double()
    return RewardMetrics(
        pairs=float(len(gap_P)),
        accuracy=float(((gap_P > 0) + 0.5 * (gap_P == 0)).mean()),
        margin=float(gap_P.mean()),
        loss=float(bradley_terry(reward_w.double(), reward_l.double(), margin=0.0, centre=0.0).mean()),
        calibration_error=calibration_error(gap_P),
        reward_mean=float(rewards.mean()),
        reward_spread=float(rewards.std(correction=0)),
    )


def calibration_error(gap_P: Tensor) -> float:
    """Expected calibration error of `σ(|gap|)`, the probability that the higher reward is the chosen one's: `sum_b
    |B_b|/P |accuracy(B_b) - confidence(B_b)|`, eq. 3 of arXiv:1706.04599. A tie is half right."""
    confidence_P = torch.sigmoid(gap_P.abs())
    right_P = (gap_P > 0) + 0.5 * (gap_P == 0)
    bin_P = ((confidence_P - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    off_B = torch.zeros(BINS, dtype=torch.double).index_add_(0, bin_P, right_P.double() - confidence_P.double())
    return float(off_B.abs().sum() / len(gap_P))


def bradley_terry(reward_w: Tensor, reward_l: Tensor, *, margin: Tensor | float, centre: float) -> Tensor:
    """`ell(r_w - r_l - m) + c (r_w + r_l)²`, [P] (Bradley and Terry 1952; eq. 2 of arXiv:2305.18290). Only differences
    are identified; the second term draws their mean to 0 (arXiv:2312.09244, which uses `c = 0.01`)."""
    return ell(reward_w - reward_l - margin) + centre * (reward_w + reward_l) ** 2
