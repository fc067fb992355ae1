"""Judges that hold a classification model: a score is what the model says of the text alone, whatever its neighbours,
and what cannot be scored is an error, never a number."""

import json
import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from judges import Group, JudgeError, Prompt, Response, Verdict, build_judge, fingerprint, judge_groups, self_test
from judges.context import InMemory, JudgeContext, Usage
from judges.models.classification import batches
from judges.models.scores import probability_of
from tests.helpers.classifiers import save_classifier
from tests.helpers.tiny import EOS, PAD

KINDS = ("Llama", "Qwen2", "GPT2", "Bert", "Roberta")


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return lambda *args, **changes: save_classifier(tmp_path_factory.mktemp("model"), *args, **changes)


@pytest.fixture(scope="module")
def reward(make: Callable[..., Path]) -> Path:
    return make("Llama")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def group(*texts: str, prompt: str = "Why?") -> Group:
    responses = tuple(Response(f"{prompt}/{i}", text, "stop") for i, text in enumerate(texts))
    return Group(Prompt(prompt, ({"role": "user", "content": prompt},), None, {}), responses)


def texts(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices("abc \n", k=rng.randint(1, 60))) for _ in range(count)]


def scores(rows: list[list[Verdict]]) -> list[float]:
    return [verdict.score for row in rows for verdict in row if verdict.score is not None]


def alone(folder: Path, ids: list[int]) -> list[float]:
    """What transformers give for one text, unpadded."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return [float(x) for x in model(torch.tensor([ids])).logits[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_does_not_depend_on_batch_and_padding(kind: str, make: Callable[..., Path]) -> None:
    folder = make(kind)
    groups = [group(*texts(12)), group(*texts(3), prompt="And why is that?")]
    found = []
    for batch_tokens in (1, 150, 10_000):
        args = {"model": str(folder), "template": "plain", "batch_tokens": batch_tokens}
        found.append(scores(judge_groups(build_judge("reward-model", args), groups)))
    assert len(found[0]) == 15
    assert max(found[0]) - min(found[0]) > 0.01
    for one, other in pairwise(found):
        assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("pad", [None, EOS, PAD])
def test_a_score_is_what_transformers_give_for_the_text_alone(make: Callable[..., Path], pad: int | None) -> None:
    """Also where the pad token is missing, or is the token with which every text ends."""
    folder = make("Llama", pad_token_id=pad)
    template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}<eos>{% endfor %}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    judge = build_judge("reward-model", {"model": str(folder)})
    said = scores(judge_groups(judge, [group("short", "a longer response", "b")]))
    tokenizer = judge._network.tokenizer  # type: ignore[attr-defined]
    for text, score in zip(("short", "a longer response", "b"), said, strict=True):
        ids = tokenizer(f"user Why?<eos>assistant {text}<eos>")["input_ids"]
        assert ids[-1] == EOS
        assert score == pytest.approx(alone(folder, ids)[0], abs=1e-5)


def test_a_text_pair_keeps_its_two_kinds_of_tokens(make: Callable[..., Path]) -> None:
    judge = build_judge("reward-model", {"model": str(make("Bert")), "template": "pair"})
    network = judge._network  # type: ignore[attr-defined]
    encoded = network.encode_text("ab", "cde")
    assert len(encoded.ids) == 5
    typed = [encoded._replace(kinds=[0, 0, 1, 1, 1]), encoded._replace(kinds=[0] * 5)]
    pair, plain = (next(network.logits([one], 100))[0] for one in typed)
    assert pair != plain
    both = next(network.logits(typed, 100))
    assert [both[0], both[1]] == [pytest.approx(pair, abs=1e-5), pytest.approx(plain, abs=1e-5)]


def test_what_is_longer_than_the_window_is_an_error_and_is_never_cut(make: Callable[..., Path]) -> None:
    for kind, window in (("Llama", 96), ("GPT2", 96), ("Roberta", 94)):  # positions of RoBERTa begin after its pad id
        folder = make(kind)
        args = {"model": str(folder), "template": "plain"}
        row = judge_groups(build_judge("reward-model", args), [group("x" * (window - 4), "x" * (window - 3))])[0]
        assert row[0].kind == "score"
        assert row[1] == Verdict.error(f"{window + 1} tokens are more than the model's window of {window}")


def test_a_score_that_is_no_number_is_an_error_of_that_response_alone(
    reward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = build_judge("reward-model", {"model": str(reward), "template": "plain"})
    network = judge._network  # type: ignore[attr-defined]
    real = network._forward
    monkeypatch.setattr(
        network, "_forward", lambda batch: [[math.nan] if len(t.ids) == 7 else real([t])[0] for t in batch]
    )
    row = judge_groups(judge, [group("abc", "abcd")])[0]
    assert [v.kind for v in row] == ["error", "score"]
    assert "finite" in row[0].why


def test_a_template_that_refuses_a_prompt_is_an_error_of_its_responses(make: Callable[..., Path]) -> None:
    folder = make("Llama")
    refusing = "{% if messages[0]['content'] == 'no' %}{{ raise_exception('not that') }}{% endif %}a"
    (folder / "chat_template.jinja").write_text(refusing, encoding="utf-8")
    rows = judge_groups(build_judge("reward-model", {"model": str(folder)}), [group("a", prompt="no"), group("a")])
    assert [row[0].kind for row in rows] == ["error", "score"]
    assert "not that" in rows[0][0].why


# ---- what is refused ----


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    from tests.helpers.tiny import save_model

    judge = build_judge("reward-model", {"model": str(save_model(tmp_path / "causal"))})
    with pytest.raises(JudgeError, match=r"no weights for score.weight: it is not a trained classification model"):
        self_test(judge)


def test_other_models_are_refused_with_the_way_out(make: Callable[..., Path], tmp_path: Path) -> None:
    two = make("Llama", num_labels=2, id2label={0: "BAD", 1: "GOOD"}, label2id={"BAD": 0, "GOOD": 1})
    with pytest.raises(JudgeError, match=r"2 outputs \(BAD, GOOD\).*Use the judge classifier"):
        self_test(build_judge("reward-model", {"model": str(two)}))
    with pytest.raises(JudgeError, match=r"no label 'FINE'. Its labels: BAD, GOOD"):
        self_test(build_judge("classifier", {"model": str(two), "label": "FINE"}))
    with pytest.raises(JudgeError, match=r"'x/y' is not a folder"):
        self_test(build_judge("reward-model", {"model": "x/y"}))
    with pytest.raises(JudgeError, match=r"'gpu' is not a device"):
        self_test(build_judge("reward-model", {"model": str(two), "device": "gpu"}))
    silent = make("Llama")
    (silent / "chat_template.jinja").unlink()
    with pytest.raises(JudgeError, match=r"no chat template. Set judge.args.template"):
        self_test(build_judge("reward-model", {"model": str(silent)}))
    assert self_test(build_judge("reward-model", {"model": str(silent), "template": "plain"})) == 0
    (silent / "config.json").write_text(json.dumps({"model_type": "nothing"}), encoding="utf-8")
    with pytest.raises(JudgeError, match=r"cannot be loaded as a sequence-classification model"):
        self_test(build_judge("reward-model", {"model": str(silent), "template": "plain"}))


# ---- identity and the store ----


def test_the_version_is_that_of_the_weights(make: Callable[..., Path], reward: Path) -> None:
    def version(folder: Path, **args: Any) -> str:
        return str(fingerprint(build_judge("reward-model", {"model": str(folder), **args}), "r")["version"])

    assert version(reward) == version(make("Llama")) != version(make("Llama", seed=1))
    assert version(reward, batch_tokens=7, device="cpu") == version(reward)


def test_known_verdicts_are_not_made_again_and_new_ones_are_kept_by_the_batch(reward: Path) -> None:
    notes: list[tuple[int, bool]] = []
    store = InMemory()

    def judged(*asked: str) -> list[float]:
        notes.clear()
        judge = build_judge("reward-model", {"model": str(reward), "batch_tokens": 40, "template": "plain"})
        judge.bind(JudgeContext(store, on_usage=lambda usage, known: notes.append((usage.calls, known))))
        return scores(judge_groups(judge, [group(*asked)]))

    first = judged("aa", "bbbbbbbbbbbb", "aa")  # 6 and 16 tokens: both fit into one batch of 40
    assert notes == [(1, True), (2, False)]  # equal content is one
    assert first[0] == first[2]
    assert judged("aa", "c", "bbbbbbbbbbbb") == [first[0], pytest.approx(judged("c")[0]), first[1]]
    judged("aa", "c")
    assert notes == [(2, True)]
    assert sum(store.usage.values(), Usage()).calls == 3


def test_what_stops_in_the_middle_has_kept_every_batch_before(reward: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = InMemory()
    judge = build_judge("reward-model", {"model": str(reward), "batch_tokens": 1, "template": "plain"})
    judge.bind(JudgeContext(store))
    network = judge._network  # type: ignore[attr-defined]
    real, sizes = network._forward, []

    def second_fails(batch: list[Any]) -> Any:
        sizes.append(len(batch))
        if len(sizes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(batch)

    monkeypatch.setattr(network, "_forward", second_fails)
    with pytest.raises(
        JudgeError, match=r"ran out of memory on cpu with 1 texts.* Lower judge\.args\.batch_tokens \(1\)"
    ):
        judge_groups(judge, [group("a", "bb", "ccc")])
    assert len(store.values) == 1  # the longest comes first
    assert [v.kind for v in judge_groups(judge, [group("a", "bb", "ccc")])[0]] == ["score"] * 3
    assert sizes == [1] * 4


def test_resting_reaches_the_parts_of_a_combination_and_loads_nothing(reward: Path) -> None:
    part = {"judge": "reward-model", "args": {"model": str(reward)}}
    judge = build_judge("combine", {"parts": [part]})
    (member,) = judge.members()
    judge.rest()
    assert "_network" not in vars(member)
    before = judge_groups(judge, [group("a")])[0][0].score
    judge.rest()
    assert "_network" in vars(member)
    assert judge_groups(judge, [group("a", "b")])[0][0].score == pytest.approx(before, abs=1e-5)


def test_bf16_keeps_the_head_in_fp32(make: Callable[..., Path]) -> None:
    judge = build_judge("reward-model", {"model": str(make("Llama")), "dtype": "bfloat16"})
    row = judge_groups(judge, [group(*texts(4))])[0]
    network = judge._network.model  # type: ignore[attr-defined]
    assert (network.model.layers[0].mlp.up_proj.weight.dtype, network.score.weight.dtype) == (
        torch.bfloat16,
        torch.float32,
    )
    exact = scores(judge_groups(build_judge("reward-model", {"model": judge.model}), [group(*texts(4))]))  # type: ignore[attr-defined]
    assert scores([row]) == pytest.approx(exact, abs=0.3)
    assert any(torch.tensor(s).bfloat16().item() != s for s in scores([row]))  # not rounded to bf16's steps


# ---- batches and probabilities ----


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200))
def test_batches_hold_everything_once_within_the_budget(lengths: list[int], budget: int) -> None:
    found = list(batches(lengths, budget))
    assert sorted(place for batch in found for place in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget for batch in found)
    assert [lengths[i] for batch in found for i in batch] == sorted(lengths, reverse=True)


@given(st.lists(st.floats(-500, 500), min_size=2, max_size=5))
def test_probabilities_of_all_labels_add_up_to_one(logits: list[float]) -> None:
    found = [probability_of(label, logits, each=False) for label in range(len(logits))]
    assert math.fsum(found) == pytest.approx(1.0)
    assert all(0 <= p <= 1 for p in found)


def test_probabilities_by_hand() -> None:
    assert probability_of(0, [0.0, math.log(3)], each=False) == pytest.approx(0.25)
    assert probability_of(1, [0.0, math.log(3)], each=True) == pytest.approx(0.75)
    assert probability_of(0, [math.log(3)], each=False) == pytest.approx(0.75)
    assert probability_of(0, [-1e4], each=False) == 0.0
    assert math.isnan(probability_of(0, [math.inf, 0.0], each=False))


def test_a_classifier_reads_the_response_alone_or_with_its_prompt(make: Callable[..., Path]) -> None:
    labels = {"num_labels": 2, "id2label": {0: "BAD", 1: "GOOD"}, "label2id": {"BAD": 0, "GOOD": 1}}
    args = {"model": str(make("Bert", **labels))}
    groups = [group("fine", "so"), group("fine", prompt="How?")]

    def judged(**more: Any) -> list[list[Verdict]]:
        return judge_groups(build_judge("classifier", {**args, **more}), groups)

    good, bad, both = judged(label="GOOD"), judged(label="BAD"), judged(label="GOOD", reads="both")
    assert [a + b for a, b in zip(scores(good), scores(bad), strict=True)] == pytest.approx([1.0] * 3)
    assert good[0][0].score == pytest.approx(good[1][0].score, abs=1e-6)
    assert abs((both[0][0].score or 0) - (both[1][0].score or 0)) > 1e-6
    assert good[0][0].extracted == ("GOOD" if (good[0][0].score or 0) > 0.5 else "BAD")


# ---- preferences ----


def test_scores_become_bradley_terry_probabilities_and_each_response_is_scored_once(reward: Path) -> None:
    args = {"model": str(reward), "template": "plain"}
    asked = group("aa", "bcbc", "c c c")
    rewards = scores(judge_groups(build_judge("reward-model", args), [asked]))
    calls: list[int] = []
    judge = build_judge("preference-model", {**args, "temperature": 2.0})
    judge.bind(JudgeContext(on_usage=lambda usage, known: calls.extend([] if known else [usage.calls])))
    row = judge_groups(judge, [asked])[0]
    for i, verdict in enumerate(row):
        chances = [1 / (1 + math.exp((rewards[j] - rewards[i]) / 2.0)) for j in range(3) if j != i]
        assert verdict.score == pytest.approx(sum(chances) / 2, abs=1e-6)
    assert sum(calls) == 3


def test_a_model_that_reads_both_is_asked_in_both_orders(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make("Bert")
    (tmp_path / "pair.txt").write_text("{question}|{first}|{second}", encoding="utf-8")
    args = {"model": str(folder), "of": "texts", "text": str(tmp_path / "pair.txt")}
    judge = build_judge("preference-model", args)
    assert self_test(judge) == 0
    row = judge_groups(judge, [group("a{second}", "b")])[0]
    asks = build_judge("classifier", {"model": str(folder), "label": "LABEL_0"})
    first, second = scores(judge_groups(asks, [group("Why?|a{second}|b", "Why?|b|a{second}")]))
    expected = 0.5 if (first - 0.5) * (1 - second - 0.5) < 0 else (first + 1 - second) / 2
    assert row[0].score == pytest.approx(expected, abs=1e-5)
    assert "order_consistent" in row[0].parts
    other = build_judge("preference-model", {**args, "text": "{question}|{first}|{second}!"})
    assert fingerprint(other, "p")["version"] != fingerprint(judge, "p")["version"]


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"of": "texts"}, "of: texts needs text"),
        ({"of": "texts", "text": "{question} {first}"}, r"text lacks \{second\}"),
        ({"of": "texts", "text": "nowhere.txt"}, "not a readable file"),
        ({"text": "{question}{first}{second}"}, "of: scores takes none"),
    ],
)
def test_a_pair_text_is_checked_with_the_arguments(args: dict[str, Any], why: str) -> None:
    with pytest.raises(JudgeError, match=why):
        build_judge("preference-model", {"model": "m", **args})


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("reward-model", {}),
        ("reward-model", {"template": "plain"}),
        ("classifier", {"label": "LABEL_0"}),
        ("classifier", {"label": "LABEL_0", "reads": "both", "template": "plain"}),
        ("preference-model", {}),
        ("preference-model", {"of": "texts", "text": "{question}\n{first}\n{second}"}),
    ],
)
def test_models_read_answers_without_their_thoughts(name: str, args: dict[str, Any], reward: Path) -> None:
    judge = build_judge(name, {"model": str(reward), "dtype": "float32", **args})
    thinking, plain = group("<think>a b</think>ab", "<think>c</think>\n\ncd e"), group("ab", "cd e")
    assert scores(judge_groups(judge, [thinking])) == pytest.approx(scores(judge_groups(judge, [plain])))
    (row,) = judge_groups(judge, [group("<think>ab", "cd", "<think>a</think><think>")])
    verdict = (row[0].kind, row[0].score, row[0].well_formed)
    assert verdict == (("score", 0.25, False) if name == "preference-model" else ("abstain", None, False))
    assert row[1].score is not None
