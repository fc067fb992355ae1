"""Shared by the trainer's tests: two-layer models made from configs and small preference data."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.data import Pair, PreferenceData, PromptGroup, Response
from trainer.settings import TrainSettings
from trainer.spec import RoundSpec

VOCABULARY = 97


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test makes its own proofs of layouts, its processes included."""
    monkeypatch.setenv("PREFLOOP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _llama(seed: int, **changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**values | changes))


@pytest.fixture(scope="session")
def make_policy(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a tiny random Llama and the files that a tokenizer would leave."""

    def make(seed: int = 0, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("policy")
        _llama(seed, **changes).save_pretrained(folder)
        (folder / "tokenizer.json").write_bytes(b'{"version": "1.0",  "kept": "byte for byte"}')
        (folder / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
        return folder

    return make


@pytest.fixture(scope="session")
def policy(make_policy: Callable[..., Path]) -> Path:
    """The folder of one tiny Llama with tied embeddings."""
    return make_policy()


@pytest.fixture(scope="session")
def toy_data() -> PreferenceData:
    """8 prompts with a common beginning, 6 responses each, 4 pairs each; response r0 is in two of them."""
    rng = random.Random(0)

    def ids(count: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(count)]

    groups = tuple(
        PromptGroup(f"p{p}", [1, 2, 3, *ids(4)], tuple(Response(f"r{r}", ids(rng.randint(1, 9))) for r in range(6)))
        for p in range(8)
    )
    kinds = ((0, 3), (1, 4), (2, 5), (0, 4))
    return PreferenceData(
        groups, tuple(Pair(group.id, f"r{chosen}", f"r{rejected}") for group in groups for chosen, rejected in kinds)
    )


@pytest.fixture
def make_spec(tmp_path: Path, policy: Path) -> Callable[..., RoundSpec]:
    """A round in fp32 in a folder of its own; keyword arguments of the spec or of its settings replace the defaults."""

    def make(name: str = "round", **changes: Any) -> RoundSpec:
        settings = TrainSettings(
            **{"precision": "fp32", "learning_rate": 5e-3, "batch_pairs": 8, "row_tokens": 48, "checkpoint_every": 0}
            | {key: value for key, value in changes.items() if key in TrainSettings.model_fields}
        )
        folder = tmp_path / name
        spec = RoundSpec(policy, "policy", policy, "policy", folder / "work", folder / "out", settings, 0, 1)
        return replace(spec, **{key: value for key, value in changes.items() if key not in TrainSettings.model_fields})

    return make


@pytest.fixture
def silent() -> Callable[[dict[str, Any]], None]:
    """A report that nobody reads."""
    return lambda _: None
