"""The steps of a reward model from the last checkpoint on: one line of `steps.jsonl` each, and checkpoints."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint import Position, save_checkpoint
from trainer.learner import Learner
from trainer.objective import Objective
from trainer.optimizer import learning_rate, make_optimizer
from trainer.reward.step import RewardContext, accumulate_rewards
from trainer.settings import TrainSettings
from trainer.step import clip_gradients
from trainer.step_rows import prompts_of
from trainer.steps import STEPS, Report, checkpoint_is_due, open_log, resume, update
from trainer.stops import check_weights, keep_batch
from trainer.summary import Clock
from trainer.tree.rows import Plan


@dataclass(frozen=True, slots=True)
class RewardJob:
    """Inputs of the steps of a reward model."""

    work: Path
    context: RewardContext
    plan: Plan
    settings: TrainSettings
    identity: dict[str, Any]
    """Identifies the training; a checkpoint with another identity is rejected."""


def train_reward_steps(job: RewardJob, *, clock: Clock, report: Report) -> int:
    """Run all remaining optimizer steps; return the number of the first one."""
    learner, total = Learner(job.context.scorer.model, Objective(())), len(job.plan.order)
    optimizer = make_optimizer(learner.parameters().values(), job.settings)
    start = resume(learner, optimizer, job.work, job.identity, clock)
    with open_log(job.work / STEPS, start.log_bytes) as log:
        for number in range(start.steps, total):
            with clock.part("compute"):
                metrics = _step(job, number, optimizer, learner, report)
            log.write((json.dumps(metrics) + "\n").encode())
            log.flush()
            report({"phase": "train", "done": number + 1, "total": total} | metrics)
            if checkpoint_is_due(number + 1, total, job.settings.checkpoint_every):
                with clock.part("checkpoint"):
                    os.fsync(log.fileno())
                    position = Position(number + 1, log.tell(), dict(clock.seconds))
                    save_checkpoint(job.work, position, job.identity, learner, optimizer)
    return start.steps


def _step(
    job: RewardJob, number: int, optimizer: torch.optim.Optimizer, learner: Learner, report: Report
) -> dict[str, Any]:
    """Make one optimizer step; return its line of the log."""
    started, total = time.perf_counter(), len(job.plan.order)
    step = job.plan.steps[job.plan.order[number]]

    def tick() -> None:
        report({"phase": "train", "done": number, "total": total})

    names, most = prompts_of(job.context.data, step.rows), job.settings.max_grad_norm
    with keep_batch(job.work, job.context.data, step, number) as known:
        metrics = accumulate_rewards(job.context, step, number=number, tick=tick)
        known["loss"] = metrics["loss"]
        norm = clip_gradients(list(learner.parameters().values()), most, number=number, prompts=names)
        known["gradient_norm"] = norm
        rate = learning_rate(number, total, job.settings)
        update(optimizer, rate)
        if number + 1 == total or checkpoint_is_due(number + 1, total, job.settings.checkpoint_every):
            check_weights(learner.parameters(), number=number, prompts=names)
    numbers = {"gradient_norm": norm, "learning_rate": rate, "pairs": step.relations}
    return {"step": number, **metrics, **numbers, "seconds": time.perf_counter() - started}
