"""Options that vLLM lacks, or that prefloop sets itself, are refused by name before anything starts; a shard records
those that are given, and nothing else."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from loop.config.engine_section import EngineConfig
from loop.config.sampling_section import DecodingOptions, SamplingConfig
from loop.config.settings import Config
from loop.engines import base, option_checks
from loop.engines.base import environments, visible_gpus
from loop.engines.option_checks import engine_problems, option_problems
from loop.engines.vllm_engine import _named_choices, cpu_options, gpu_options
from loop.store.stage import MADE_WITH
from loop.workers.sampling_service import SampleTask

SOURCE = """
class SamplingParams(Base):
    n: int = 1
    allowed_token_ids: list | None = None
    thinking_token_budget: int | None = None
    _hidden: int = 0
    def f(self): ...
"""
ARGUMENTS = """
class EngineArgs:
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    enable_chunked_prefill: bool | None = None
"""


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A vLLM of which only the source is there."""
    (tmp_path / "sampling_params.py").write_text(SOURCE)
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "arg_utils.py").write_text(ARGUMENTS)
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


@pytest.fixture
def give_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Have the machine show this many GPUs, of which a process may use the named ones."""

    def give(count: int, named: str | None = None) -> None:
        folder = tmp_path / f"dev-{count}"
        folder.mkdir(exist_ok=True)
        for name in [*map(str, range(count)), "ctl", "-uvm"]:
            (folder / f"nvidia{name}").touch()
        monkeypatch.setattr(base, "DEVICES", folder)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if named is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)

    return give


def test_gpus_are_counted_as_cuda_does(give_gpus: Callable[..., None]) -> None:
    for count, named, expected in (
        (0, None, []),
        (0, "0,1", []),
        (2, None, ["0", "1"]),
        (4, "3, 1", ["3", "1"]),
        (4, "", []),
        (4, "2,-1,3", ["2"]),
        (2, "GPU-8f3a,GPU-11bc", ["GPU-8f3a", "GPU-11bc"]),
    ):
        give_gpus(count, named)
        assert visible_gpus() == expected, (count, named)


def engine(**given: Any) -> str:
    return " ".join(engine_problems(EngineConfig(**{"kind": "vllm", **given})))


@pytest.mark.usefixtures("vllm")
def test_arguments_of_the_engine_are_taken_by_name_and_others_refused_with_a_suggestion(
    give_gpus: Callable[..., None],
) -> None:
    give_gpus(0)
    assert engine(args={"kv_cache_dtype": "fp8"}) == ""
    assert "vLLM's engine has no argument 'kv_cach_dtype'; did you mean kv_cache_dtype?" in (
        engine(args={"kv_cach_dtype": "fp8"})
    )
    assert "dtype has its own key; set engine.dtype instead" in engine(args={"dtype": "float16"})
    assert "engine.args: model cannot be set: prefloop gives" in engine(args={"model": "x"})
    assert "set HF_TOKEN in the environment" in engine(args={"hf_token": "hf_x"})
    assert "breaks the seeds of responses on a CPU" in engine(args={"enable_chunked_prefill": True})
    assert "engine.args is for vllm, and the transformers engine" in engine(kind="transformers", args={"seed": 1})
    give_gpus(1)
    assert engine(args={"enable_chunked_prefill": True}) == ""


@pytest.mark.usefixtures("vllm")
def test_an_engine_on_more_gpus_than_there_are_is_refused(give_gpus: Callable[..., None]) -> None:
    give_gpus(0)
    expected = "engine.tensor_parallel=2 need 2 GPUs for one engine, and there is none here: on a CPU both are 1"
    assert expected in engine(tensor_parallel=2)
    give_gpus(4, "0,1,2")
    assert engine(tensor_parallel=2) == engine(pipeline_parallel=3) == ""
    expected = (
        "engine.tensor_parallel=2 and engine.pipeline_parallel=2 need 4 GPUs for one engine, and this machine has 3"
    )
    assert expected in engine(tensor_parallel=2, pipeline_parallel=2)
    assert "engine.pipeline_parallel is for vllm" in engine(kind="transformers", pipeline_parallel=2)


@pytest.mark.usefixtures("vllm")
def test_more_replicas_or_threads_than_the_machine_has_are_refused(
    monkeypatch: pytest.MonkeyPatch, give_gpus: Callable[..., None]
) -> None:
    give_gpus(0)
    monkeypatch.setattr(option_checks, "cores", lambda: 4)
    assert engine(replicas=4) == engine(replicas=2, threads=2) == engine() == ""
    assert "engine.replicas=5 with 1 thread each needs 5 cores, and this machine has 4" in engine(replicas=5)
    expected = "engine.replicas=2 with engine.threads=3 needs 6 cores, and this machine has 4"
    assert expected in engine(replicas=2, threads=3, kind="transformers")
    assert "engine.threads=5 needs 5 cores" in engine(threads=5)
    give_gpus(4)
    assert engine(replicas=2, tensor_parallel=2) == engine(replicas=64 // 16) == engine() == ""
    expected = "engine.replicas=3 on 2 GPUs each need 6 GPUs, and this machine has 4"
    assert expected in engine(replicas=3, tensor_parallel=2)


def test_each_replica_gets_gpus_or_threads_of_its_own(
    monkeypatch: pytest.MonkeyPatch, give_gpus: Callable[..., None]
) -> None:
    def places(**given: Any) -> list[dict[str, str]]:
        return environments(EngineConfig(**given), None)

    monkeypatch.setattr(base, "cores", lambda: 8)
    give_gpus(0)
    assert places() == [{}], "a single engine finds its threads as ever"
    assert places(threads=3) == [{"OMP_NUM_THREADS": "3"}]
    assert places(replicas=2) == 2 * [{"OMP_NUM_THREADS": "4"}]
    assert places(replicas=2, threads=1) == 2 * [{"OMP_NUM_THREADS": "1"}]
    assert environments(EngineConfig(replicas=3), 2) == 3 * [{"OMP_NUM_THREADS": "2"}], "as the run's first samples"
    assert environments(EngineConfig(replicas=3), 4) == 3 * [{"OMP_NUM_THREADS": "2"}], "not beyond the cores"
    give_gpus(6, "5,4,3,1,0")
    assert places(tensor_parallel=2) == [{"CUDA_VISIBLE_DEVICES": "5,4"}, {"CUDA_VISIBLE_DEVICES": "3,1"}]
    assert places(replicas=1) == [{}]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places()] == ["5", "4", "3", "1", "0"]


def test_a_gpu_gets_the_arguments_that_suit_one_and_a_cpu_those_that_repeat_exactly() -> None:
    exact = {"max_num_seqs": 128, "max_num_batched_tokens": 4096, "enable_chunked_prefill": False}
    assert cpu_options(EngineConfig()) == exact | {"enforce_eager": True, "block_size": 32}
    assert cpu_options(EngineConfig(max_model_len=9000, batch=7))["max_num_batched_tokens"] == 9000
    found = gpu_options(EngineConfig(tensor_parallel=2, idle="keep"))
    expected = {"max_num_seqs": 512, "max_num_batched_tokens": 8192, "enable_chunked_prefill": True}
    expected |= {"enforce_eager": False, "gpu_memory_utilization": 0.85, "enable_sleep_mode": False}
    assert found == expected | {"tensor_parallel_size": 2, "pipeline_parallel_size": 1}
    assert gpu_options(EngineConfig(batch=64))["max_num_seqs"] == 64


def test_what_was_chosen_of_vllm_is_part_of_the_engines_identity() -> None:
    assert _named_choices(EngineConfig()) == {}
    chosen = EngineConfig(tensor_parallel=2, args={"compilation_config": {1: (2, 3)}})
    assert _named_choices(chosen) == {"tensor_parallel": 2, "args": {"compilation_config": {"1": [2, 3]}}}
    assert {f"engine.{key}" for key in ("args", "tensor_parallel", "pipeline_parallel")} <= {*MADE_WITH}


def test_the_names_are_those_of_the_installed_vllm() -> None:
    if find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    known = option_checks.names_in_vllm(*option_checks.ENGINE_ARGUMENTS)
    assert known is not None
    assert {*option_checks.KEYS_OF_ARGUMENTS, *option_checks.REFUSED_ARGUMENTS, "kv_cache_dtype"} <= known
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
