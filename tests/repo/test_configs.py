"""Every campaign file that ships with prefloop is valid, and its first lines say what it is for."""

from pathlib import Path

import pytest

from loop.config.load import load_config, shipped_configs, shipped_reward_configs
from loop.config.reward_settings import load_reward_config

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs"
CONFIGS = sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("recipes/*.yaml")])


def test_the_shipped_configs_are_those_of_the_checkout() -> None:
    assert shipped_configs() | shipped_reward_configs() == {
        path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in CONFIGS
    }
    assert {"quickstart", "recipes/sppo"} <= set(shipped_configs())
    assert "reward" in shipped_reward_configs()
    assert not shipped_configs().keys() & shipped_reward_configs().keys()


@pytest.mark.parametrize("name", shipped_configs())
def test_a_shipped_campaign_loads_by_its_name(name: str) -> None:
    load_config(name)


@pytest.mark.parametrize("name", shipped_reward_configs())
def test_a_shipped_reward_model_loads_by_its_name(name: str) -> None:
    load_reward_config(name)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_begins_by_saying_what_it_is_for(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
