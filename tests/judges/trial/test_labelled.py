"""Labelled examples: three formats read alike, and every mistake is named by file, row and column."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from judges import JudgeError
from judges.trial.labelled import Case, read_cases

LABELLED = [
    {"prompt": "2 + 2", "target": "4", "response": "4", "label": "right", "level": "easy"},
    {"prompt": "2 + 3", "target": "5", "response": "6, because\n2 + 4", "label": "0", "level": "hard"},
    {"prompt": "?", "response": "no idea, really", "label": "abstain"},
]
PAIRS = [{"prompt": "2 + 2", "chosen": "4", "rejected": "5"}]
SCORED = [{"prompt": "Why?", "response": "Because.", "score": 0.25}]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def csv_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in rows[0]} for row in rows]), path)
    return path


def content(case: Case) -> tuple[Any, ...]:
    """A case without its place, which depends on the format."""
    texts = [(response.text, response.finish_reason) for response in case.responses]
    return case.kind, case.wanted, case.prompt.messages, case.prompt.target, case.prompt.columns, texts


@pytest.mark.parametrize("rows", [LABELLED, PAIRS, SCORED], ids=["labels", "pairs", "scores"])
def test_three_formats_hold_the_same_cases(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    files = [
        jsonl(tmp_path / "a.jsonl", rows),
        csv_file(tmp_path / "a.csv", rows),
        parquet(tmp_path / "a.parquet", rows),
    ]
    first, *others = ([content(case) for case in read_cases(file)] for file in files)
    assert others == [first, first]


def test_a_case_holds_what_a_judge_may_see_and_what_it_may_not(tmp_path: Path) -> None:
    right, wrong, abstain = read_cases(jsonl(tmp_path / "a.jsonl", LABELLED))
    assert (right.wanted, wrong.wanted, abstain.wanted) == ("right", "wrong", "abstain")
    assert right.where == "line 1"
    assert right.prompt.text == "2 + 2"
    assert right.prompt.columns == {"prompt": "2 + 2", "target": "4", "level": "easy"}
    (pair,) = read_cases(jsonl(tmp_path / "b.jsonl", PAIRS))
    assert [response.text for response in pair.responses] == ["4", "5"]


def test_chat_messages_and_numbers_are_read_as_in_preference_data(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "2 + 2"}
    answers = {
        who: [turn, {"role": "assistant", "content": text}] for who, text in (("chosen", "4"), ("rejected", "5"))
    }
    (case,) = read_cases(jsonl(tmp_path / "a.jsonl", [{"prompt": [turn], "target": 4, **answers}]))
    assert case.prompt.messages == (turn,)
    assert case.prompt.target == "4"
    assert [response.text for response in case.responses] == ["4", "5"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (
            {"prompt": "?", "label": "right"},
            r"line 2: response missing \(the row has: prompt, label\). Every row needs",
        ),
        ({"response": "!", "label": "right"}, "prompt missing"),
        ({"prompt": "?", "chosen": "!"}, "rejected missing"),
        ({"prompt": "?", "response": "!"}, "neither label nor score is given"),
        ({"prompt": "?", "response": "!", "label": "right", "score": 1}, "both label and score are given"),
        ({"prompt": "?", "chosen": "!", "rejected": ".", "label": "right"}, "chosen and rejected exclude label"),
        ({"prompt": "?", "response": "!", "label": "good"}, "the label 'good' is not one of right, wrong, abstain"),
        ({"prompt": "?", "response": "!", "score": "high"}, "the score 'high' is not a finite number"),
        ({"prompt": "?", "response": "!", "score": float("nan")}, "the score nan is not a finite number"),
        ({"prompt": 5, "response": "!", "label": "right"}, "prompt is '5', expected a text or chat messages"),
        ({"prompt": "?", "response": ["!"], "label": "right"}, r"response is \"\['!'\]\", expected a text"),
        (
            {"prompt": "?", "response": "!", "label": "right", "finish_reason": "eos"},
            "finish_reason is 'eos', expected",
        ),
    ],
)
def test_a_row_that_is_no_case_is_named(row: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [LABELLED[0], row])
    with pytest.raises(JudgeError, match=complaint) as caught:
        read_cases(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.jsonl", "", "holds no labelled example. Every row needs `prompt`"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.jsonl", "[]", r"line 1 holds \[\], expected an object"),
        ("a.txt", "x", r"has an unknown format; labelled examples must be .jsonl, .csv, .parquet"),
        ("a.csv", "prompt,response,label\na,b\n", "line 2 does not have as many cells as the header"),
        ("a.csv", "prompt,response,label\na,b,right,c\n", "line 2 does not have as many cells as the header"),
        ("a.csv", 'prompt,response,label\na,"b"c,right\n', "line 2 cannot be read as CSV"),
        ("a.parquet", "no parquet", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_holds_no_cases_is_named(name: str, text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(JudgeError, match=complaint) as caught:
        read_cases(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"nowhere.csv cannot be read: No such file"):
        read_cases(tmp_path / "nowhere.csv")
    (tmp_path / "a.jsonl").write_bytes(b"\xff")
    with pytest.raises(JudgeError, match="not a text file in UTF-8"):
        read_cases(tmp_path / "a.jsonl")
