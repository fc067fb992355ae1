"""A reference kept in memory without gradients: for its whole distribution (TDPO), or to follow the policy (TR-DPO)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.losses.method import Need
from trainer.losses.moving import follow
from trainer.model import trained_parameters
from trainer.objective import Objective
from trainer.reference import RowReference
from trainer.scorer import RowBatch, RowScorer, Scores, along_paths

LIVE: frozenset[Need] = frozenset({"sequence_kl", "moving_reference"})
"""Needs for which the reference stays in memory."""


@dataclass(frozen=True, slots=True)
class Follow:
    """How the reference moves: `reference <- alpha * policy + (1 - alpha) * reference` after every `tau` steps."""

    alpha: float
    tau: int


class LiveReference:
    """A frozen copy of the policy as it is before the first step (or the given reference model)."""

    def __init__(self, model: nn.Module, follow: Follow | None, *, tokens: bool) -> None:
        self.scorer = RowScorer(model)
        self.follow, self.tokens = follow, tokens
        self.parameters = dict(trained_parameters(model))
        model.requires_grad_(False)

    @classmethod
    def of(cls, model: nn.Module, objective: Objective) -> "LiveReference":
        """The reference that the losses need, made of `model`, which it takes over."""
        return cls(model.eval(), _follow(objective), tokens="tokens" in objective.needs)

    @property
    def moves(self) -> bool:
        """Whether it moves, so that log-probs of a reference pass before the round do not hold."""
        return self.follow is not None

    def stays(self, steps: int) -> bool:
        """Whether a reference that should follow stays the same until the last of a round's `steps`."""
        return self.follow is not None and self.follow.tau >= steps

    @torch.no_grad()
    def logits(self, row: RowBatch) -> Tensor:
        """[N, V] logits of the kept outputs."""
        return self.scorer.logits(row)

    @torch.no_grad()
    def score(self, row: RowBatch) -> RowReference:
        """Log-probs of the row's responses."""
        scores: Scores = self.scorer(row)
        return RowReference(scores.sum_R, along_paths(scores.token_K, row.path_RL) if self.tokens else None)

    @torch.no_grad()
    def after_step(self, model: nn.Module, done: int) -> None:
        """Move the reference if it is due after `done` steps."""
        if self.follow is None or done % self.follow.tau:
            return
        for name, parameter in trained_parameters(model):
            self.parameters[name].copy_(follow(self.parameters[name], parameter, alpha=self.follow.alpha))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: nothing unless it moves."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()} if self.moves else {}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Put a checkpoint's state back."""
        for name, values in state.items():
            self.parameters[name].copy_(values)


def _follow(objective: Objective) -> Follow | None:
    for part in objective.parts:
        if "moving_reference" in part.method.needs:
            arguments: dict[str, Any] = part.arguments
            return Follow(float(arguments["alpha"]), int(arguments["tau"]))
    return None
