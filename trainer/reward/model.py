"""Load and save reward models: a causal model's layers with a new linear head on the last token, saved as an ordinary
sequence-classification folder. transformers read the last token that is not the pad token, so no response may end with
it. Shapes: `B` sequences, `T` tokens, `R` responses, `D` hidden size."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.data import PreferenceData
from trainer.errors import TrainerError
from trainer.model import Arithmetic, attention_of, copy_tokenizer, disable_dropout
from trainer.model_folder import PLAIN, loading
from trainer.scorer import RowBatch
from trainer.tree.attention import use_tree_attention


class RewardScorer(nn.Module):
    """Rewards of the responses of a row, each read just before its placeholder (`with_end` in round.py)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, row: RowBatch) -> Tensor:
        """[R] rewards in fp32: the head is never rounded to bf16, where rewards would tie."""
        last_RD = self.last_hidden(row)
        with torch.autocast(last_RD.device.type, enabled=False):
            rewards_R: Tensor = self.model.score(last_RD.float()).squeeze(1)
        return rewards_R

    def last_hidden(self, row: RowBatch) -> Tensor:
        """[R, D] hidden states at the responses' last tokens."""
        inputs: dict[str, Any] = {"input_ids": row.tokens_BT, "attention_mask": row.attention, "use_cache": False}
        if row.positions_BT is not None:
            inputs["position_ids"] = row.positions_BT
        hidden_BTD = getattr(self.model, self.model.base_model_prefix)(**inputs).last_hidden_state
        places_R = row.path_RL.gather(1, row.length_R[:, None] - 1).squeeze(1)
        kept_R, kept = row.from_K[places_R], len(row.keep_U)
        last_RD: Tensor = hidden_BTD[kept_R // kept, row.keep_U[kept_R % kept]]
        return last_RD


def load_reward_model(folder: Path, arithmetic: Arithmetic, *, pad_id: int, head_scale: float, seed: int) -> Any:
    """The model of a folder in fp32, dropout off, with a new head. TrainerError if it has no such head."""
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    config = loading(f"config.json in {folder}", lambda: AutoConfig.from_pretrained(folder, num_labels=1, **PLAIN))
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it would warn that the head is new
    logging.disable_progress_bar()
    try:
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, **PLAIN, **attention_of(config)
        )
    except (ValueError, KeyError) as error:
        raise _no_head(folder, config.model_type, str(error)) from error
    finally:
        logging.set_verbosity(before)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.bias is not None or head.out_features != 1:
        raise _no_head(folder, config.model_type, "its classifier is not one linear layer without bias")
    _start_head(head, head_scale, seed)
    _set_padding(model, pad_id)
    disable_dropout(model)
    if model.config._attn_implementation == "sdpa":
        use_tree_attention(model)
    return model.to(arithmetic.device).eval()


def padded_rewards(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    """[B] rewards of whole sequences as transformers give them for a batch padded on the right."""
    device, pad_id = model.score.weight.device, model.config.get_text_config().pad_token_id
    longest = max(map(len, sequences))
    tokens_BT = torch.tensor([[*ids, *[pad_id] * (longest - len(ids))] for ids in sequences], device=device)
    lengths_B = torch.tensor([len(ids) for ids in sequences], device=device)
    mask_BT = (torch.arange(longest, device=device) < lengths_B[:, None]).long()
    rewards_B: Tensor = model(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False).logits.squeeze(1)
    return rewards_B


def check_padding(data: PreferenceData, pad_id: int) -> None:
    """TrainerError if a response ends with the pad token, which cannot be distinguished from padding."""
    for group in data.groups:
        for response in group.responses:
            if len(response.token_ids) and response.token_ids[-1] == pad_id:
                raise TrainerError(
                    f"The response {response.id!r} of prompt {group.id!r} ends with the token {pad_id}, which is also "
                    "the pad token: a padded batch would read its reward one token early. Choose another pad token."
                )


def save_reward_model(model: Any, folder: Path, *, tokenizer: Path) -> None:
    """Save weights in fp32, config, and the tokenizer files byte for byte."""
    model.save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)


def _start_head(head: nn.Linear, scale: float, seed: int) -> None:
    values = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        head.weight.copy_(values * (scale / math.sqrt(head.in_features)))


def _set_padding(model: Any, pad_id: int) -> None:
    if pad_id >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(pad_id + 1, mean_resizing=False)
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = pad_id
    model.config.id2label, model.config.label2id = {0: "reward"}, {"reward": 0}


def _no_head(folder: Path, kind: str, why: str) -> TrainerError:
    reason = " ".join(why.split())[:200].rstrip(".")
    return TrainerError(
        f"The model in {folder} (model type {kind}) cannot become a reward model: {reason}. Choose a decoder model "
        "that transformers can load with AutoModelForSequenceClassification, such as Llama, Qwen, Mistral or Gemma."
    )
