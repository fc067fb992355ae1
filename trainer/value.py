"""The value network of DRO-V (arXiv:2405.19107): one value per prompt by a linear head on its last token. In each round
it starts from the policy's layers and a zero head; it shares no parameter, but the optimizer."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.data import PreferenceData
from trainer.model import Arithmetic, disable_dropout
from trainer.tree.rows import Row


class ValueNetwork(nn.Module):
    """Predicts a value for each prompt."""

    def __init__(self, backbone: nn.Module, hidden: int, device: torch.device) -> None:
        super().__init__()
        self.backbone, self.device = backbone, device
        self.head = nn.Linear(hidden, 1, bias=True, device=device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def load(cls, policy: Path, arithmetic: Arithmetic) -> "ValueNetwork":
        """A network whose layers are the policy's, in fp32."""
        from transformers import AutoModel

        backbone: Any = AutoModel.from_pretrained(policy, dtype=torch.float32)
        disable_dropout(backbone)
        return cls(backbone.to(arithmetic.device).eval(), backbone.config.hidden_size, arithmetic.device)

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
