"""Every campaign file that ships with prefloop is valid, and its first lines say what it is for."""

from pathlib import Path

import pytest

from loop.config_load import load_config, shipped_configs

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_the_shipped_configs_are_those_of_the_checkout() -> None:
    assert shipped_configs() == {path.stem: path for path in CONFIGS}
    assert "quickstart" in shipped_configs()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_loads_by_its_name(path: Path) -> None:
    load_config(path.stem)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_begins_by_saying_what_it_is_for(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
