"""Options that vLLM lacks, or that prefloop sets itself, are refused by name before anything starts; a shard records
those that are given, and nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loop.config.sampling_section import DecodingOptions, SamplingConfig
from loop.config.settings import Config
from loop.engines import base, option_checks
from loop.engines.option_checks import option_problems
from loop.workers.sampling_service import SampleTask

SOURCE = """
class SamplingParams(Base):
    n: int = 1
    allowed_token_ids: list | None = None
    thinking_token_budget: int | None = None
    _hidden: int = 0
    def f(self): ...
"""


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A vLLM of which only the source is there."""
    (tmp_path / "sampling_params.py").write_text(SOURCE)
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    for module in (base, option_checks):
        monkeypatch.setattr(module, "find_spec", lambda name: spec)
    option_checks.names_in_vllm.cache_clear()
    yield
    option_checks.names_in_vllm.cache_clear()


def config(**sections: Any) -> Config:
    return Config(**{"prompts": {"source": "gsm8k"}, "judge": {"name": "gsm8k"}, **sections})


def problems(extra: dict[str, Any], kind: str = "vllm", section: str = "sampling") -> str:
    return " ".join(option_problems([config(engine={"kind": kind}, **{section: {"extra": extra}})]))


@pytest.mark.usefixtures("vllm")
def test_parameters_of_vllm_are_taken_by_name_and_others_refused_with_a_suggestion() -> None:
    assert problems({"allowed_token_ids": [1], "thinking_token_budget": 3}) == ""
    assert "sampling.extra: vLLM has no sampling parameter 'alowed_tokens_ids'; did you mean allowed_token_ids?" in (
        problems({"alowed_tokens_ids": [1]})
    )
    assert "vLLM has no sampling parameter '_hidden'." in problems({"_hidden": 1})
    assert "eval.extra: top_k has its own key; set eval.top_k instead." in problems({"top_k": 3}, section="eval")
    assert "logprobs cannot be set: prefloop records" in problems({"logprobs": 3})
    assert "stop cannot be set: it ends a response at another token" in problems({"stop": ["x"]})
    assert "the transformers engine has none of them" in problems({"allowed_token_ids": [1]}, kind="transformers")


def test_the_names_are_those_of_the_installed_vllm() -> None:
    pytest.importorskip("vllm", reason="vllm is not installed")
    known = option_checks.names_in_vllm(*option_checks.SAMPLING_PARAMETERS)
    assert known is not None
    assert {*option_checks.OWN_KEYS, *option_checks.REFUSED_PARAMETERS} <= known
    assert {"allowed_token_ids", "thinking_token_budget", "extra_args"} <= known


GIVEN = {"top_k": 4, "logit_bias": {7: -1.5}, "stop_token_ids": [3], "min_p": 0.1}


def test_a_manifest_and_a_shard_record_the_options_that_are_given_and_no_others() -> None:
    before = {"n", "temperature", "top_p", "max_tokens", "from_reference", "shard_prompts", "adaptive"}
    assert SamplingConfig().recorded().keys() == {f"sampling.{key}" for key in before}
    found = SamplingConfig(**GIVEN).recorded()
    assert {key for key in found if key[9:] not in before} == {f"sampling.{key}" for key in GIVEN}
    assert found["sampling.logit_bias"] == {"7": -1.5}, "as JSON has it"
    task = SampleTask("a", Path("a"), (), (0.8,), 1.0, 12, (0,), Path("p"), "hash")
    assert task.spec.keys() == {"prompts", "temperatures", "top_p", "max_tokens", "seed_words", "policy_hash"}
    changed = replace(task, options=DecodingOptions(**GIVEN)).spec
    assert {key: changed[key] for key in changed.keys() - task.spec.keys()} == {**GIVEN, "logit_bias": {"7": -1.5}}


def test_what_ends_a_response_ends_it_in_the_evaluation_too_and_nothing_else_is_shared() -> None:
    found = config(sampling=GIVEN, eval={"stop_token_ids": [5], "min_tokens": 2})
    assert found.eval_options.given() == {"stop_token_ids": [3, 5], "min_tokens": 2}
    assert config().eval_options.given() == {}
