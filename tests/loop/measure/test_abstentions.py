"""A model gains nothing by answers on which the judge abstains, and lengths are those of answers without thoughts."""

from pathlib import Path

import pytest

from loop.measure.evaluation import Answer, compare, measure, read_answers
from loop.report.set_numbers import set_numbers
from loop.store import tables
from loop.store.run_records import SetMetrics

KINDS = {"r": "score", "w": "score", "a": "abstain", "e": "error"}
"""Right, wrong, abstained, failed."""


def answer(prompt: int, kind: str, *, greedy: bool = False, well_formed: bool | None = None) -> Answer:
    return Answer(f"p{prompt}", greedy, 3, False, KINDS[kind], kind == "r", None, well_formed)


def measured(*prompts: str, greedy: bool = False, well_formed: bool | None = None) -> SetMetrics:
    answers = [answer(i, k, greedy=greedy, well_formed=well_formed) for i, row in enumerate(prompts) for k in row]
    return measure(answers, 0.95)


@pytest.mark.parametrize(
    ("prompts", "accuracy"),
    [
        (["rw", "rr"], 3 / 4),
        (["ra", "rr"], 3 / 4),
        (["re", "rr"], 1.0),
        (["aa", "rr"], 1 / 2),
        (["aaaa"], 0.0),
        (["ee", "ra"], 1 / 2),
        (["ee"], None),
    ],
)
def test_an_abstention_is_not_right_and_an_error_is_no_trial(prompts: list[str], accuracy: float | None) -> None:
    found = measured(*prompts)
    assert found.sampled_accuracy.value == accuracy
    assert measured(*prompts, greedy=True).greedy_accuracy.value == accuracy
    letters = "".join(prompts)
    assert found.abstained_share == letters.count("a") / len(letters)
    assert found.error_share == letters.count("e") / len(letters)


@pytest.mark.parametrize("candidate", [["ra"] * 20, ["raa"] * 20, ["aa"] * 10 + ["rr"] * 10])
def test_a_candidate_does_not_gain_by_abstentions(candidate: list[str]) -> None:
    gain = compare(measured(*["rw"] * 20), measured(*candidate), "sampled_accuracy", 0.95)
    assert gain.value is not None
    assert gain.value <= 0.0
    assert gain.n == 20


def test_nor_among_the_well_formed() -> None:
    found = measured("raaa", well_formed=True)
    assert (found.well_formed_share.value, found.accuracy_among_well_formed.value) == (1.0, 0.25)
    unread = measured("raaa", well_formed=False)
    assert (unread.well_formed_share.value, unread.accuracy_among_well_formed.value) == (0.0, None)
    assert measured("raaa").well_formed_share.value is None


def shard(folder: Path, texts: list[str], kinds: str, thinking: object = None) -> tuple[Path, Path]:
    responses = [
        {"prompt_id": "p", "response_id": str(i), "temperature": 1.0, "text": text, "finish_reason": "stop"}
        | {"token_ids": [0] * len(text)}
        for i, text in enumerate(texts)
    ]
    verdicts = [
        {"response_id": str(i), "kind": KINDS[kind], "parts": "{}"}
        | {"score": {"r": 1.0, "w": 0.0}.get(kind), "extracted": kind}
        for i, kind in enumerate(kinds)
    ]
    notes = {"judge": {"name": "x"} | ({} if thinking is None else {"thinking": thinking})}
    paths = folder / "responses.parquet", folder / "verdicts.parquet"
    paths[0].write_bytes(tables.to_bytes(responses, tables.RESPONSES, {}))
    paths[1].write_bytes(tables.to_bytes(verdicts, tables.VERDICTS, notes))
    return paths


def test_the_report_counts_them_as_the_evaluation_does(tmp_path: Path) -> None:
    responses, verdicts = shard(tmp_path, ["18", "20", "?", "!"], "rwae")
    numbers = set_numbers([(responses, verdicts)], 1.0, 0.95)
    found = measure(read_answers([responses], [verdicts], 1.0), 0.95)
    assert numbers is not None
    assert numbers.passed[1] == pytest.approx(1 / 3)
    assert found.sampled_accuracy.value == pytest.approx(1 / 3)
    assert numbers.kinds == {"score": 2, "abstain": 1, "error": 1}


TEXTS = ["twelve chars", "<think>aaa</think>four", "[THINK]aa[/THINK]four", "<think>open"]


@pytest.mark.parametrize(
    ("thinking", "lengths"),
    [
        (None, [12, 4, 21, 11]),
        ("none", [12, 22, 21, 11]),
        ({"open": "[THINK]", "close": "[/THINK]", "opened": False}, [12, 22, 4, 11]),
        ({"open": "<think>", "close": "</think>", "opened": True}, [12, 4, 21, 11]),
    ],
)
def test_a_length_is_that_of_the_answer(tmp_path: Path, thinking: object, lengths: list[int]) -> None:
    from loop.pairing.io import read_judged

    responses, verdicts = shard(tmp_path, TEXTS, "rrrr", thinking)
    assert [answer.tokens for answer in read_answers([responses], [verdicts], 1.0)] == lengths
    assert [judged.length for judged in dict(read_judged(responses, verdicts))["p"]] == lengths
    numbers = set_numbers([(responses, verdicts)], 1.0, 0.95)
    assert numbers is not None
    assert numbers.mean_length == sum(lengths) / 4
