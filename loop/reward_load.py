"""Room loop, loading the config of a reward model: YAML file or shipped name, and `key=value` overrides, come in, a
RewardConfig out. What a user can get wrong is said as it is for campaigns: all at once, by file or override and key."""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from loop.config_load import absolute, absolute_base, apply_override, find_config, read_sections, shipped_reward_configs
from loop.config_problems import not_finite, texts_of
from loop.errors import UserError
from loop.reward_config import FilePairs, RewardConfig, RunPairs


def load_reward_config(source: str | Path, overrides: Sequence[str] = ()) -> RewardConfig:
    """The settings, paths made absolute. Raises UserError with one paragraph per problem."""
    path = find_config(source, shipped_reward_configs())
    raw = read_sections(path, RewardConfig, "data and out")
    raw.setdefault("per_iteration", {})  # where an override of that name goes
    origins = {apply_override(raw, text): text for text in overrides}
    if not raw["per_iteration"]:
        del raw["per_iteration"]
    if problems := list(not_finite(raw, str(path))):
        raise UserError("\n\n".join(problems))
    try:
        config = RewardConfig.model_validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        raise UserError("\n\n".join(texts_of(error, raw, str(path), origins, RewardConfig))) from error
    if config.base is None and not isinstance(config.data, RunPairs):
        raise UserError(
            f"{path}: base is missing: the model whose layers the reward model starts from. Only with data.source=run "
            "it may be left out; the run's own base model is taken then."
        )
    return _with_absolute_paths(config)


def _with_absolute_paths(config: RewardConfig) -> RewardConfig:
    data = config.data
    if isinstance(data, RunPairs):
        data = data.model_copy(update={"run": absolute(data.run)})
    elif isinstance(data, FilePairs):
        data = data.model_copy(update={"path": absolute(data.path)})
    base = None if config.base is None else absolute_base(config.base)
    return config.model_copy(update={"data": data, "base": base, "out": absolute(config.out)})
