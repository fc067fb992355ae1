"""The transformers engine says what the model says: checked against plain forward passes of a tiny Llama."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loop.config.engine_section import EngineConfig
from loop.config.sampling_section import DecodingOptions
from loop.engines.base import Completion, Request, chosen_engine
from loop.engines.transformers_engine import TransformersEngine
from loop.errors import UserError
from tests.helpers import tiny

PROMPTS = ([104, 105], [49, 32, 43, 32, 50, 32, 61], [97], [120, 121, 122, 32, 61])


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders with other weights of the same shape."""
    return [tiny.save_model(tmp_path_factory.mktemp("model"), seed) for seed in (0, 1)]


@pytest.fixture
def make_engine(models: list[Path]) -> Callable[..., TransformersEngine]:
    def make(folder: Path = models[0], batch: int = 8) -> TransformersEngine:
        return TransformersEngine(folder, EngineConfig(kind="transformers", batch=batch, max_model_len=128))

    return make


def requests(temperature: float = 0.8, max_tokens: int = 10, top_p: float = 1.0) -> list[Request]:
    return [
        Request(ids, 7 * place + sample, temperature, top_p, max_tokens)
        for place, ids in enumerate(PROMPTS)
        for sample in range(4)
    ]


def run(engine: TransformersEngine, wanted: list[Request]) -> list[Completion]:
    return engine.generate(wanted, lambda done, tokens: None)


def logprobs_TV(folder: Path, ids: list[int]) -> torch.Tensor:
    """log softmax of a plain forward over one sequence; T tokens, V vocabulary."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)


def by_hand(folder: Path, prompt: list[int], max_tokens: int) -> list[int]:
    """Greedy decoding, one full forward per token, without a cache."""
    tokens: list[int] = []
    while len(tokens) < max_tokens and tiny.EOS not in tokens:
        tokens.append(int(logprobs_TV(folder, [*prompt, *tokens])[-1].argmax()))
    return tokens


def test_the_same_requests_give_the_same_completions(make_engine: Callable[..., TransformersEngine]) -> None:
    engine = make_engine()
    first = run(engine, requests())
    assert run(engine, requests()) == first == run(make_engine(), requests())
    assert len({tuple(c.token_ids) for c in first}) > 12, "seeds must matter"


def test_completions_come_in_the_order_of_the_requests(make_engine: Callable[..., TransformersEngine]) -> None:
    wanted = requests(temperature=0)
    alone = [run(make_engine(), [request])[0].token_ids for request in wanted[::4]]
    assert [c.token_ids for c in run(make_engine(batch=3), wanted)][::4] == alone


def test_a_response_depends_on_its_own_seed_and_not_on_its_neighbours_seeds(
    make_engine: Callable[..., TransformersEngine],
) -> None:
    wanted = requests()
    other = [wanted[0], *(Request(r.prompt_ids, r.seed + 1000, r.temperature, 1.0, r.max_tokens) for r in wanted[1:])]
    first, second = run(make_engine(), wanted), run(make_engine(), other)
    assert first[0].token_ids == second[0].token_ids
    assert [c.token_ids for c in first[1:]] != [c.token_ids for c in second[1:]]


def test_temperature_0_is_the_models_argmax(make_engine: Callable[..., TransformersEngine], models: list[Path]) -> None:
    found = run(make_engine(), requests(temperature=0))
    for place, prompt in enumerate(PROMPTS):
        assert found[4 * place].token_ids == by_hand(models[0], prompt, 10)


@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.5])
def test_logprobs_are_the_models_own_before_temperature(
    make_engine: Callable[..., TransformersEngine], models: list[Path], temperature: float
) -> None:
    wanted = requests(temperature=temperature, top_p=0.9)
    for request, completion in zip(wanted, run(make_engine(), wanted), strict=True):
        prompt = list(request.prompt_ids)
        rows_TV = logprobs_TV(models[0], [*prompt, *completion.token_ids])[len(prompt) - 1 : -1]
        expected_T = rows_TV.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert completion.logprobs == pytest.approx(expected_T.tolist(), abs=1e-4)


def test_the_end_token_is_there_exactly_if_the_response_stopped(
    make_engine: Callable[..., TransformersEngine],
) -> None:
    found = run(make_engine(), requests(max_tokens=12))
    for completion in found:
        assert (completion.token_ids[-1] == tiny.EOS) == (completion.finish_reason == "stop")
        assert tiny.EOS not in completion.token_ids[:-1]
        assert len(completion.logprobs) == len(completion.token_ids)
        assert completion.finish_reason == "stop" or len(completion.token_ids) == 12
        assert "<eos>" not in completion.text
    assert {c.finish_reason for c in found} == {"stop", "length"}


def test_each_request_keeps_its_own_max_tokens(make_engine: Callable[..., TransformersEngine]) -> None:
    long = requests(max_tokens=9)
    mixed = [Request(r.prompt_ids, r.seed, 0.8, 1.0, 9 if i % 2 else 3) for i, r in enumerate(long)]
    whole, cut = run(make_engine(batch=16), long), run(make_engine(batch=16), mixed)
    for i, (a, b) in enumerate(zip(whole, cut, strict=True)):
        assert b.token_ids == a.token_ids[: 9 if i % 2 else 3]
        assert b.finish_reason == ("stop" if b.token_ids[-1] == tiny.EOS else "length")


def test_top_p_leaves_only_likely_tokens(make_engine: Callable[..., TransformersEngine], models: list[Path]) -> None:
    for completion in run(make_engine(), requests(temperature=1.0, top_p=1e-6, max_tokens=1)):
        assert completion.token_ids in [by_hand(models[0], prompt, 1) for prompt in PROMPTS]


def test_sampled_shares_are_the_models_probabilities(
    make_engine: Callable[..., TransformersEngine], models: list[Path]
) -> None:
    probability = logprobs_TV(models[0], list(PROMPTS[0]))[-1].exp()
    wanted = [Request(PROMPTS[0], seed, 1.0, 1.0, 1) for seed in range(3000)]
    counts = torch.zeros_like(probability)
    for completion in run(make_engine(batch=3000), wanted):
        counts[completion.token_ids[0]] += 1
    top = probability.topk(3).indices
    assert (counts[top] / 3000 - probability[top]).abs().max() < 0.03


def test_a_loaded_policy_answers_as_an_engine_that_began_with_it(
    make_engine: Callable[..., TransformersEngine], models: list[Path]
) -> None:
    engine = make_engine()
    before = run(engine, requests())
    engine.load_policy(models[1])
    after = run(engine, requests())
    assert after != before
    assert after == run(make_engine(models[1]), requests())
    engine.load_policy(models[0])
    assert run(engine, requests()) == before


def test_an_engine_that_is_not_installed_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import loop.engines.base

    monkeypatch.setattr(loop.engines.base, "find_spec", lambda name: None)
    assert chosen_engine(EngineConfig()) == "transformers"
    with pytest.raises(UserError, match=r"engine\.kind=transformers"):
        chosen_engine(EngineConfig(kind="vllm"))


GENERATION = [
    {"repetition_penalty": 1.3},
    {"num_beams": 4},
    {"forced_eos_token_id": tiny.EOS},
    {"no_repeat_ngram_size": 2},
    {"suppress_tokens": list(range(100))},
    {"min_new_tokens": 8},
    {"do_sample": True, "temperature": 0.1, "top_k": 1},
    {"max_length": 20, "max_new_tokens": 2},
    {"bad_words_ids": [[i] for i in range(100, 200)]},
]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_of_the_models_generation_settings_only_end_tokens_count(
    tmp_path_factory: pytest.TempPathFactory, temperature: float
) -> None:
    folder = tiny.save_model(tmp_path_factory.mktemp("generation") / "model")
    path = folder / "generation_config.json"
    plain = json.loads(path.read_text())
    wanted = [Request(list(b"u:1 + 1 =\na:"), seed, temperature, 1.0, 12) for seed in range(4)]

    def sampled() -> list[Completion]:
        engine = TransformersEngine(folder, EngineConfig(kind="transformers", max_model_len=128))
        return run(engine, wanted)

    expected = sampled()
    for given in GENERATION:
        path.write_text(json.dumps(plain | given))
        assert sampled() == expected, given
    path.write_text(json.dumps(plain | {"eos_token_id": [tiny.EOS, expected[0].token_ids[0]]}))
    assert sampled()[0].token_ids == expected[0].token_ids[:1]


OPTIONS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 1.1},
    "logit_bias": {"logit_bias": {tiny.EOS: -100, 65: 4.0}},
    "min_tokens": {"min_tokens": 9},
    "bad_words": {"bad_words": ["3", "x"]},
    "stop_token_ids": {"stop_token_ids": [18, 249]},
}


TOKENS_OF_WORDS = {"3": 18, "x": 87}


def changed_by_hand(logits_V: torch.Tensor, prompt: list[int], made: list[int], given: DecodingOptions) -> torch.Tensor:
    """What the options do to the logits, written out token by token."""
    for token in range(len(logits_V)):
        value = float(logits_V[token]) + given.logit_bias.get(token, 0.0)
        if token in prompt + made:
            value = value / given.repetition_penalty if value > 0 else value * given.repetition_penalty
        value -= given.frequency_penalty * made.count(token) + given.presence_penalty * (token in made)
        ends = token == tiny.EOS or token in given.stop_token_ids
        banned = token in (TOKENS_OF_WORDS[word] for word in given.bad_words)
        logits_V[token] = float("-inf") if banned or (ends and len(made) < given.min_tokens) else value
    return logits_V


@pytest.mark.parametrize("name", OPTIONS)
def test_options_change_the_logits_as_by_hand_and_log_probs_stay_the_models_own(
    make_engine: Callable[..., TransformersEngine], models: list[Path], name: str
) -> None:
    given = DecodingOptions(**OPTIONS[name])
    plain = requests(temperature=0)
    wanted = [replace(request, options=given) if i % 4 else request for i, request in enumerate(plain)]
    without, found = run(make_engine(batch=16), plain), run(make_engine(batch=16), wanted)
    model = AutoModelForCausalLM.from_pretrained(models[0], dtype=torch.float32)
    for place, prompt in enumerate(PROMPTS):
        assert found[4 * place] == without[4 * place], "a neighbour's options do not count"
        completion = found[4 * place + 1]
        made: list[int] = []
        for token, logprob in zip(completion.token_ids, completion.logprobs, strict=True):
            with torch.no_grad():
                logits_V = model(torch.tensor([[*prompt, *made]])).logits[0, -1]
            assert logprob == pytest.approx(float(torch.log_softmax(logits_V, -1)[token]), abs=1e-4)
            assert token == int(changed_by_hand(logits_V.clone(), prompt, made, given).argmax())
            made.append(token)
        stops = {tiny.EOS, *given.stop_token_ids}
        assert (completion.finish_reason == "stop") == (made[-1] in stops)
        assert stops.isdisjoint(made[:-1])
        assert len(made) == 10 or made[-1] in stops
    assert [c.token_ids for c in found] != [c.token_ids for c in without], "or the option does nothing here"


def test_a_stop_token_that_was_asked_for_stays_out_of_the_text(make_engine: Callable[..., TransformersEngine]) -> None:
    engine = make_engine()
    drawn = zip(requests(1.2), run(engine, requests(1.2)), strict=True)
    request, plain = next((r, c) for r, c in drawn if len({*c.token_ids[:5]}) == 5 and max(c.token_ids[:5]) < tiny.PAD)
    stop = plain.token_ids[3]
    found = run(engine, [replace(request, options=DecodingOptions(stop_token_ids=[stop]))])[0]
    assert found.token_ids == plain.token_ids[:4]
    assert (found.finish_reason, found.stop_reason) == ("stop", str(stop))
    assert found.text == engine.tokenizer.decode(plain.token_ids[:3]) != plain.text


@pytest.mark.parametrize("given", [{"top_k": 3}, {"min_p": 0.3}, {"top_k": 40, "min_p": 0.05}])
def test_cuts_leave_the_tokens_that_they_name(
    make_engine: Callable[..., TransformersEngine], models: list[Path], given: dict[str, Any]
) -> None:
    temperature = 1.4
    logprobs_V = logprobs_TV(models[0], list(PROMPTS[0]))[-1]
    scores = (logprobs_V / temperature).softmax(-1)
    left = set(range(len(scores))) if "top_k" not in given else set(scores.topk(given["top_k"]).indices.tolist())
    left &= {i for i, share in enumerate(scores.tolist()) if share >= given.get("min_p", 0) * float(scores.max())}
    options = DecodingOptions(**given)
    wanted = [Request(PROMPTS[0], seed, temperature, 1.0, 1, options=options) for seed in range(600)]
    found = {completion.token_ids[0] for completion in run(make_engine(batch=600), wanted)}
    assert found <= left
    assert len(found) > min(len(left), 12) / 2
