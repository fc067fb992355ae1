"""Models that a library cannot load: one sentence, in which nobody is told to run code that comes with a model."""

import builtins
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from judges import JudgeError, build_judge
from loop.config.engine_section import EngineConfig
from loop.engines.vllm_engine import VllmEngine
from loop.workers.entry import failure, is_users
from loop.workers.log_prob_service import tokenizer_of
from tests.helpers import tiny
from tests.helpers.classifiers import save_classifier
from trainer.errors import TrainerError
from trainer.learner import ValueNetwork
from trainer.model import Arithmetic
from trainer.model_folder import check_model, load_tokenizer, loading, read_config
from trainer.reward.model import load_reward_model


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def with_own_code(folder: Path) -> Path:
    """A folder whose model and tokenizer exist only in Python files that come with it."""
    edit(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Model"})
    edit(folder / "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", None]})
    (folder / "mine.py").write_text("raise SystemExit('this code was run')\n")
    return folder


LOADERS: dict[str, Callable[[Path], Any]] = {
    "checking the folder": check_model,
    "the config": read_config,
    "the tokenizer": load_tokenizer,
    "the tokenizer of a judge": tokenizer_of,
    "a reward model": lambda f: load_reward_model(
        f, Arithmetic(torch.device("cpu"), "fp32"), pad_id=0, head_scale=1.0, seed=0
    ),
    "values": lambda f: ValueNetwork(f, torch.device("cpu")),
    "a classifier as the judge": lambda f: build_judge("reward-model", {"model": str(f)}).ready(),
}


@pytest.mark.parametrize("what", LOADERS)
def test_a_model_with_code_of_its_own_is_refused_without_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder = with_own_code(save_classifier(tmp_path) if "judge" in what else tiny.save_model(tmp_path))
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked whether to run the code"))
    with pytest.raises((TrainerError, JudgeError), match="needs code of its own") as refused:
        LOADERS[what](folder)
    assert "trust_remote_code" not in str(refused.value)
    assert "\n" not in str(refused.value)


RAISED: dict[str, tuple[Exception, str]] = {
    "no room": (ValueError("No available memory for the cache blocks.\n Try more."), "No available memory for the"),
    "own code": (ValueError("Please pass the argument `trust_remote_code=True`."), "needs code of its own"),
    "unknown": (NotImplementedError("Model architectures ['Mine'] are not supported"), r"architectures .*'Mine'.* are"),
    "a mistake": (AssertionError(), "vLLM cannot load the model in .*: AssertionError"),
    "a missing key": (KeyError("layers.0"), "'layers.0'"),
}


@pytest.mark.parametrize("what", RAISED)
def test_what_vllm_raises_is_one_sentence_about_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    error, words = RAISED[what]

    def start(*_: Any, **__: Any) -> None:
        raise error

    fake = ModuleType("vllm")
    fake.LLM = start  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", fake)
    for name in ("ENABLE_V1_MULTIPROCESSING", "LOGGING_LEVEL", "CPU_KVCACHE_SPACE"):
        monkeypatch.setenv(f"VLLM_{name}", "0")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.raises(TrainerError, match=words) as refused:
        VllmEngine(tmp_path, EngineConfig(kind="vllm"))
    text = str(refused.value)
    assert "trust_remote_code" not in text
    assert "\n" not in text
    assert what == "own code" or "Check engine.max_model_len, engine.batch" in text


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_a_lack_of_memory_is_no_fault_of_the_model(error: Exception) -> None:
    def read() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        loading("the model", read)
    assert not is_users(raised.value)
    assert failure(raised.value)[0].endswith(f"(test_loading_errors.py:{read.__code__.co_firstlineno + 1})")
