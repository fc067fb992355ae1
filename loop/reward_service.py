"""Room loop, a reward model inside its worker: the config comes in, a sequence-classification folder goes out.

It finds the base model, reads the pairs and chooses the pad token for the room `trainer`, which knows of no files of
pairs, no run folder and no tokenizer.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loop.answers import Renderer
from loop.errors import UserError
from loop.models import check_folder, resolve_base, weights_hash
from loop.reward_config import RewardConfig, RunPairs
from loop.reward_data import base_of, read_pairs, read_run, run_of
from loop.worker import Report
from trainer.data import PreferenceData

PAD = "<|pad|>"
"""The pad token that a tokenizer gets which has none of its own, or only its end token."""


class RewardService:
    """Trains one reward model."""

    def train(self, config: RewardConfig, work: Path, report: Report) -> dict[str, Any]:
        """Train it (or what is missing of it); its summary."""
        from transformers import AutoTokenizer

        from trainer.reward_round import RewardSpec, train_reward

        base = find_base(config)
        tokenizer: Any = AutoTokenizer.from_pretrained(base)
        data = self._read(config, tokenizer, report)
        folder = set_padding(tokenizer, data, base=base, own=work / "tokenizer")
        spec = RewardSpec(
            base=base,
            base_hash=weights_hash(base),
            tokenizer=folder,
            pad_id=tokenizer.pad_token_id,
            work=work,
            out=Path(config.out),
            settings=config.train,
            seed=config.seed,
            threads=config.threads,
            described=described(config),
        )
        return train_reward(spec, data, report=lambda progress: report(**progress)).as_dict()

    def _read(self, config: RewardConfig, tokenizer: Any, report: Report) -> PreferenceData:
        report(phase="read", done=0, total=0)
        if isinstance(config.data, RunPairs):
            _check_same_tokens(tokenizer, base_of(run_of(config.data)), config)
            return read_run(config.data)
        renderer = Renderer(tokenizer, config.chat_template_kwargs, config.data.chat)
        return read_pairs(config.data, renderer, lambda done, total: report(phase="read", done=done, total=total))


def find_base(config: RewardConfig) -> Path:
    """The folder of the model whose layers the reward model starts from. UserError if it cannot be loaded."""
    if config.base is not None:
        return resolve_base(config.base)
    assert isinstance(config.data, RunPairs), "the config was loaded without a base"
    folder = base_of(run_of(config.data))
    check_folder(folder)
    return folder


def _check_same_tokens(tokenizer: Any, sampled_by: Path, config: RewardConfig) -> None:
    """UserError if the run's token ids mean something else to the base model of the reward model."""
    if config.base is None:
        return
    from transformers import AutoTokenizer

    if AutoTokenizer.from_pretrained(sampled_by).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"base: {config.base} has another tokenizer than {sampled_by}, whose token ids the run holds, so it would "
            "read other texts than were sampled. Leave base out, or name a model of the same family."
        )


def set_padding(tokenizer: Any, data: PreferenceData, *, base: Path, own: Path) -> Path:
    """Give the tokenizer a pad token with which no response ends, on the right; returns the folder of its files: the
    base model's, or `own` if something had to be changed."""
    shutil.rmtree(own, ignore_errors=True)
    ends = {response.token_ids[-1] for group in data.groups for response in group.responses if response.token_ids}
    usable = tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in {*ends, tokenizer.eos_token_id}
    if usable and tokenizer.padding_side == "right":
        return base
    if not usable:
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(own)
    return own


def described(config: RewardConfig) -> str:
    """Base model and data in words, for the model card."""
    data = config.data
    if isinstance(data, RunPairs):
        of = f"iterations {_listed(data.iterations)}" if data.iterations else "all iterations"
        return f"Base model: {config.base or 'that of the run'}. Pairs: the run {Path(data.run).name}, {of}."
    pairs = data.path if data.source == "file" else f"{data.dataset}, split {data.split}"
    return f"Base model: {config.base}. Pairs: {pairs}."


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
