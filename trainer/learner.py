"""What changes while a round runs: policy, value network, moving reference, running statistics of losses."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.data import PreferenceData
from trainer.losses.method import Need
from trainer.losses.primitives import follow
from trainer.model import disable_dropout, trained_parameters
from trainer.model_folder import PLAIN, loading
from trainer.objective import Objective
from trainer.reference import RowReference
from trainer.scorer import RowBatch, RowScorer, Scores, along_paths
from trainer.tree.rows import Row

LIVE: frozenset[Need] = frozenset({"sequence_kl", "moving_reference"})
"""Needs for which the reference stays in memory."""


class ValueNetwork(nn.Module):
    """DRO-V's value network (arXiv:2405.19107): a value for each prompt, read at its last token. It starts each round
    from the policy's layers in fp32 and a zero head; it shares no parameter with the policy."""

    def __init__(self, policy: Path, device: torch.device) -> None:
        from transformers import AutoModel

        super().__init__()
        backbone: Any = loading(
            f"the model in {policy}", lambda: AutoModel.from_pretrained(policy, dtype=torch.float32, **PLAIN)
        )
        disable_dropout(backbone)
        self.backbone, self.device = backbone.to(device).eval(), device
        self.head = nn.Linear(backbone.config.hidden_size, 1, bias=True, device=device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def of_row(self, data: PreferenceData, row: Row) -> Tensor:
        """[R] the value of each response's prompt, in fp32."""
        prompts = [list(data.groups[tree.group].token_ids) for tree in row.trees]
        values = self(prompts)
        counts = torch.tensor([len(tree.responses) for tree in row.trees], device=self.device)
        return values.repeat_interleave(counts)

    def forward(self, prompts: list[list[int]]) -> Tensor:
        """[B] values of right-padded prompts, read at each one's last token."""
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        longest = int(lengths.max())
        tokens_BT = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=self.device)
        mask_BT = torch.arange(longest, device=self.device) < lengths[:, None]
        hidden = self.backbone(input_ids=tokens_BT, attention_mask=mask_BT.long(), use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(prompts), device=self.device), lengths - 1]
        with torch.autocast(self.device.type, enabled=False):
            values: Tensor = self.head(last.float()).squeeze(1)
        return values


class LiveReference:
    """A frozen copy of the policy before the first step (or the given model), for losses that need its whole
    distribution (TDPO) or let it follow the policy (TR-DPO)."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        """Takes over `model`. After every `tau` steps: `reference <- alpha * policy + (1 - alpha) * reference`."""
        self.scorer, self.tokens = RowScorer(model.eval()), "tokens" in objective.needs
        self.parameters = dict(trained_parameters(model))
        model.requires_grad_(False)
        moving = [part.arguments for part in objective.parts if "moving_reference" in part.method.needs]
        self.moves = bool(moving)
        """Whether it moves, so that log-probs of a reference pass before the round do not hold."""
        self.alpha, self.tau = (float(moving[0]["alpha"]), int(moving[0]["tau"])) if moving else (0.0, 1)

    def stays(self, steps: int) -> bool:
        """Whether a reference that should follow stays the same until the last of a round's `steps`."""
        return self.moves and self.tau >= steps

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
        if self.moves and done % self.tau == 0:
            for name, parameter in trained_parameters(model):
                self.parameters[name].copy_(follow(self.parameters[name], parameter, alpha=self.alpha))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: nothing unless it moves."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()} if self.moves else {}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Put a checkpoint's state back."""
        for name, values in state.items():
            self.parameters[name].copy_(values)


@dataclass(frozen=True, slots=True)
class Learner:
    """What is trained, and what a checkpoint must hold of it."""

    model: nn.Module
    objective: Objective
    """Without terms for a reward model, whose loss keeps nothing."""
    live: LiveReference | None = None
    value: ValueNetwork | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters that the optimizer changes, by name."""
        found = dict(trained_parameters(self.model))
        if self.value is not None:
            found |= {f"value.{name}": parameter for name, parameter in self.value.named_parameters()}
        return found
