"""The real vLLM engine: exact repetition, weights replaced in place, log-probs of the same model; and a kill."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loop.config.engine_section import EngineConfig
from loop.config.sampling_section import PLAIN, DecodingOptions
from loop.engines.base import Completion, Request
from loop.engines.transformers_engine import TransformersEngine
from loop.errors import UserError
from loop.prompts.chat_template import ChatFormat
from loop.prompts.row import PromptRow
from loop.store.model_folder import weights_hash
from loop.workers.process import Job, Worker, call
from loop.workers.sampling_service import SampleTask
from tests.helpers import tiny
from tests.helpers.campaigns import Cli, assert_same_results, events, rows, times

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
pytest.importorskip("vllm", reason="vllm is not installed")

SETTINGS = EngineConfig(kind="vllm", dtype="float32", max_model_len=384, batch=16, memory_gib=1.0)
SYSTEM = "Add the two numbers and say nothing else. " * 4
"""Long enough to fill whole blocks of a prefix cache."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders with other weights of the same shape, tied embeddings included."""
    return [tiny.save_model(tmp_path_factory.mktemp("model"), seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One engine in a worker, as a campaign has it; started once for this file."""
    log = tmp_path_factory.mktemp("logs") / "engine.log"
    arguments = {"settings": SETTINGS, "chat": ChatFormat()}
    worker = Worker(
        "engine", "loop.workers.sampling_service:EngineService", arguments, log, 240.0, 0, lambda *_, **__: None
    )
    yield worker
    assert worker.starts == 1
    worker.close()


def prompts(start: int, count: int) -> tuple[PromptRow, ...]:
    def row(a: int) -> PromptRow:
        asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{a} + {a % 7} ="}]
        return PromptRow(f"{a:016x}", asked, str(a + a % 7), {})

    return tuple(row(a) for a in range(start, start + count))


def sample(
    engine: Worker,
    model: Path,
    path: Path,
    asked: tuple[PromptRow, ...],
    temperatures: tuple[float, ...],
    options: DecodingOptions = PLAIN,
) -> list[dict[str, Any]]:
    """The rows of a shard."""
    found = weights_hash(model)
    task = SampleTask(path.name, path, asked, temperatures, 1.0, 12, (0, 1, "train"), model, found, options=options)
    call(engine, Job(f"sampling {path.name}", "sample", {"task": task}))
    return rows(path)


def test_a_shard_repeats_exactly_also_after_other_work(engine: Worker, models: list[Path], tmp_path: Path) -> None:
    first = sample(engine, models[0], tmp_path / "one", prompts(0, 8), (0.8,) * 4)
    assert sample(engine, models[0], tmp_path / "two", prompts(0, 8), (0.8,) * 4) == first
    sample(engine, models[0], tmp_path / "other", prompts(20, 11), (1.0,) * 3)
    sample(engine, models[1], tmp_path / "policy", prompts(0, 8), (0.8,) * 4)
    assert sample(engine, models[0], tmp_path / "three", prompts(0, 8), (0.8,) * 4) == first
    assert len({tuple(row["token_ids"]) for row in first}) > 20
    assert {row["finish_reason"] for row in first} == {"stop", "length"}


def test_the_engine_holds_exactly_the_weights_it_was_given(engine: Worker, models: list[Path], tmp_path: Path) -> None:
    """There, to the other folder and back: answers and log-probs are those of transformers on the folder it was given,
    and not those of the other one."""
    for turn, place in enumerate((0, 1, 0)):
        found = sample(engine, models[place], tmp_path / f"shard-{turn}", prompts(0, 16), (0.0,))
        wanted = [Request(row["prompt_token_ids"], row["seed"], 0.0, 1.0, 12) for row in found]
        ours, others = (transformers_says(models[p], wanted) for p in (place, 1 - place))
        for name in ("token_ids", "finish_reason"):
            assert [row[name] for row in found] == [getattr(completion, name) for completion in ours]
        for row, completion in zip(found, ours, strict=True):  # vLLM leaves out a character that is cut at the end
            assert row["text"].rstrip("\ufffd") == completion.text.rstrip("\ufffd")
        assert [row["token_ids"] for row in found] != [completion.token_ids for completion in others]
        for row, completion in zip(found, ours, strict=True):
            assert row["logprobs"] == pytest.approx(completion.logprobs, abs=1e-3)


def transformers_says(model: Path, wanted: list[Request]) -> list[Completion]:
    """One at a time, so without padding."""
    return TransformersEngine(model, EngineConfig(kind="transformers", batch=1)).generate(wanted, lambda *_: None)


def test_logprobs_of_sampled_tokens_are_the_models_own_before_temperature(
    engine: Worker, models: list[Path], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(models[1], dtype=torch.float32)
    for row in sample(engine, models[1], tmp_path / "shard", prompts(0, 8), (0.7, 1.3)):
        prompt, answer = row["prompt_token_ids"], row["token_ids"]
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        expected_T = torch.log_softmax(logits_TV, -1).gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert row["logprobs"] == pytest.approx(expected_T.tolist(), abs=1e-3)
        assert (answer[-1] == tiny.EOS) == (row["finish_reason"] == "stop")


OPTIONS: list[dict[str, Any]] = [
    {"min_tokens": 9, "repetition_penalty": 1.7},
    {"min_tokens": 9, "presence_penalty": 1.5, "frequency_penalty": 0.7},
    {"logit_bias": {tiny.EOS: -100, 65: 4.0}},
    {"min_tokens": 9},
    {"bad_words": ["T", "x"]},
    {"stop_token_ids": [51, 249]},
]


def test_options_change_the_tokens_as_with_transformers_and_log_probs_stay_the_models_own(
    engine: Worker, models: list[Path], tmp_path: Path
) -> None:
    plain = sample(engine, models[0], tmp_path / "plain", prompts(0, 16), (0.0,))
    seen = [[row["token_ids"] for row in plain]]
    for turn, given in enumerate(OPTIONS):
        options = DecodingOptions(**given)
        found = sample(engine, models[0], tmp_path / f"shard-{turn}", prompts(0, 16), (0.0,), options)
        wanted = [Request(row["prompt_token_ids"], row["seed"], 0.0, 1.0, 12, options=options) for row in found]
        ours = transformers_says(models[0], wanted)
        for name in ("token_ids", "finish_reason", "stop_reason"):
            assert [row[name] for row in found] == [getattr(completion, name) for completion in ours], given
        for row, completion in zip(found, ours, strict=True):
            assert row["logprobs"] == pytest.approx(completion.logprobs, abs=1e-3)
        seen.append([row["token_ids"] for row in found])
        assert seen.count(seen[-1]) == 1, given
    for given in ({"top_k": 1}, {"min_p": 1.0}):  # one token is left, the most likely one
        found = sample(engine, models[0], tmp_path / "cut", prompts(0, 16), (1.0,), DecodingOptions(**given))
        assert [row["token_ids"] for row in found] == [row["token_ids"] for row in plain], given
        (tmp_path / "cut").unlink()
    allowed = DecodingOptions(extra={"allowed_token_ids": [5, 6]})
    found = sample(engine, models[0], tmp_path / "extra", prompts(0, 4), (1.0,), allowed)
    assert {token for row in found for token in row["token_ids"]} <= {5, 6}
    with pytest.raises(UserError, match=r"vLLM refuses the options of sampling\.extra.*out-of-vocab"):
        sample(
            engine,
            models[0],
            tmp_path / "no",
            prompts(0, 4),
            (1.0,),
            DecodingOptions(extra={"allowed_token_ids": [999]}),
        )


@pytest.mark.timeout(600)
def test_a_campaign_on_vllm_killed_while_it_samples_ends_as_an_uninterrupted_one(
    cli: Cli, settings: dict[str, Any]
) -> None:
    """Killed in the second iteration: one run reloads the weights in place, the other starts its engine with them."""
    settings |= {"engine": SETTINGS.model_dump(exclude_defaults=True)}
    config, run = cli.write(settings), cli.runs / "campaign"
    cli.pause_at("os.link:*/iter-002/sample/.shard-002.parquet.partial*", config).kill()
    finished = times(run, "iter-*/*/*-0*.parquet")
    assert "iter-002/sample/shard-001.parquet" in finished
    cli.run(config)
    assert finished.items() <= times(run, "iter-*/*/*-0*.parquet").items()
    whole = cli.run(config, "--name", "uninterrupted")
    assert [e["worker"] for e in events(whole, "worker_started")].count("engine") == 1
    assert_same_results(run, whole)
