"""Local files are read as they are: numbers, missing values, encodings, shapes, odd names."""

import csv
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from loop.config.prompts_section import PromptsConfig
from loop.errors import UserError
from loop.prompts.data_files import read_rows
from loop.prompts.sets import PromptSets, build_prompt_sets

CONFIG: TypeAdapter[Any] = TypeAdapter(PromptsConfig)


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def build(path: Path, **keys: Any) -> PromptSets:
    return build_prompt_sets(
        CONFIG.validate_python({"source": "file", "path": str(path), "gate": 1, "test": 1, **keys}), 0
    )


def targets(sets: PromptSets) -> dict[str, str | None]:
    return {row.messages[-1]["content"]: row.target for row in (*sets.train, *sets.gate, *sets.test)}


def refusal(path: Path, **keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(path, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


NUMBERS = [
    (18, "18"),
    (0.5, "0.5"),
    (-3, "-3"),
    (1e20, "1e+20"),
    (18.0, "18"),
    (True, "true"),
    ([1.0, 2.5], "[1, 2.5]"),
    ("007", "007"),
    (float("nan"), None),
    (None, None),
    ("", None),
]


def test_values_of_targets_keep_their_form(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "target": value} for i, (value, _) in enumerate(NUMBERS)]
    found = targets(build(lines(tmp_path / "a.jsonl", rows), target_column="target"))
    assert found == {f"q{i}": said for i, (_, said) in enumerate(NUMBERS)}


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_whole_number_in_a_float_column_stays_whole(tmp_path: Path, name: str) -> None:
    values = [0.0, 18.0, None, float("nan"), 2.5]
    rows = [{"prompt": f"q{i}", "target": value} for i, value in enumerate(values)]
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(
            pa.table({"prompt": [r["prompt"] for r in rows], "target": pa.array(values, pa.float64())}), path
        )
    else:
        lines(path, rows)
    sets = build(path, target_column="target", template="{prompt} {target}")
    assert {*targets(sets).items()} == {
        *(("q0 0", "0"), ("q1 18", "18"), ("q2 ", None), ("q3 ", None), ("q4 2.5", "2.5")),
    }
    assert all(row.columns["target"] is None for row in (*sets.train, *sets.gate, *sets.test) if row.target is None)


def test_numbers_of_parquet_are_those_that_it_shows(tmp_path: Path) -> None:
    columns = {
        "prompt": pa.array([f"q{i}" for i in range(4)]),
        "target": pa.array([Decimal("18.00"), Decimal("0.50"), None, Decimal("-3.00")], pa.decimal128(10, 2)),
        "short": pa.array([0.1, 2.0, None, float("nan")], pa.float32()),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = targets(build(tmp_path / "a.parquet", target_column="target"))
    assert found == {"q0": "18", "q1": "0.5", "q2": None, "q3": "-3"}
    found = targets(build(tmp_path / "a.parquet", target_column="short"))
    assert found == {"q0": "0.1", "q1": "2", "q2": None, "q3": None}


def test_a_message_alone_is_a_prompt_and_other_objects_are_refused(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": {"role": "user", "content": f"q{i}"}} for i in range(4)]
    assert set(targets(build(lines(tmp_path / "a.jsonl", rows)))) == {"q0", "q1", "q2", "q3"}
    rows[2] = {"prompt": {"text": "q2"}}
    assert "row 3, column 'prompt': expected a text or chat messages, got {'text': 'q2'}" in refusal(
        lines(tmp_path / "b.jsonl", rows)
    )


SHAPES = [
    ('{"data": [{"prompt": "q"}]}', "holds the rows under 'data'; write that list alone, e.g. with jq .data"),
    ('{"train": [{"prompt": "q"}], "test": []}', "holds the rows under 'train'"),
    ('{"prompt": ["q0", "q1"], "target": ["0", "1"]}', "with a list or an object for each column"),
    ('{"prompt": {"0": "q0"}, "target": {"0": "0"}}', "orient='records', lines=True"),
    ('{\n "data": [{"prompt": "q"}]\n}', "under 'data'"),
    ('{\n "prompt": "q"\n}', "one object over several lines"),
    ('["a", "b"]', 'entry 1 holds "a", expected an object'),
    ('{"prompt": "q"}\n7\n', "line 2 holds 7, expected an object"),
    ('{"prompt": "q"}\n{"prompt": \n', "line 2: Expecting value"),
    ("[" * 100000, "recursion"),
]


@pytest.mark.parametrize(("text", "words"), SHAPES)
def test_json_of_another_shape_is_refused_by_its_shape(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert words in refusal(tmp_path / "a.json")


ENCODINGS = [
    ("a.jsonl", '{"prompt": "a"}\n{"prompt": "é"}\n'.encode("latin-1"), "line 2 is not UTF-8 (byte 0xe9)"),
    ("a.csv", "prompt\na\né\n".encode("latin-1"), "line 3 is not UTF-8"),
    ("a.jsonl", '{"prompt": "a"}'.encode("utf-16"), "it is in UTF-16"),
    ("a.csv", "prompt\na\n".encode("utf-16"), "it is in UTF-16"),
    ("a.csv", "prompt\na\n".encode("utf-16-be"), "it is in UTF-16"),
    ("a.jsonl", '{"prompt": "a"}'.encode("utf-16-le"), "it is in UTF-16"),
    ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "a\\uD800"}\n', r"line 2 holds \ud800, half of a character"),
    ("a.json", b'[{"prompt": "a\\udfff"}]', r"holds \udfff, half of a character"),
]


@pytest.mark.parametrize(("name", "raw", "words"), ENCODINGS)
def test_another_encoding_is_named_with_the_line(tmp_path: Path, name: str, raw: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(raw)
    assert words in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, name: str) -> None:
    text = "prompt\nq0\nq1\nq2\n" if name.endswith("csv") else "".join(f'{{"prompt": "q{i}"}}\n' for i in range(3))
    (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
    assert set(targets(build(tmp_path / name))) == {"q0", "q1", "q2"}


def test_a_column_without_a_name_is_an_index_and_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",prompt,target\n" + "".join(f"{i},q{i},{i}\n" for i in range(4)))
    sets = build(tmp_path / "a.csv", target_column="target")
    assert targets(sets) == {f"q{i}": str(i) for i in range(4)}
    assert all(set(row.columns) == {"prompt", "target"} for row in sets.train)


@pytest.mark.parametrize(
    "name", ["a*.jsonl", "a[1].jsonl", "a b.jsonl", "a?.jsonl", "a::b.jsonl", "ä#%20.jsonl", "{x}.csv"]
)
def test_a_path_is_that_file_whatever_its_name(tmp_path: Path, name: str) -> None:
    for other in ("a1.jsonl", "ab.jsonl", "a.jsonl"):
        lines(tmp_path / other, [{"prompt": f"wrong {i}"} for i in range(4)])
    text = "prompt\nq0\nq1\nq2\n" if name.endswith("csv") else "".join(f'{{"prompt": "q{i}"}}\n' for i in range(3))
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert set(targets(build(tmp_path / name))) == {"q0", "q1", "q2"}


def test_a_file_is_read_as_it_is_now(tmp_path: Path) -> None:
    import os

    path = lines(tmp_path / "a.jsonl", [{"prompt": f"a{i}"} for i in range(3)])
    before = path.stat()
    assert set(targets(build(path))) == {"a0", "a1", "a2"}
    lines(path, [{"prompt": f"b{i}"} for i in range(3)])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert set(targets(build(path))) == {"b0", "b1", "b2"}


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.lists(st.text()))
ROWS = st.lists(st.dictionaries(st.text(min_size=1), VALUES, min_size=1), min_size=2, max_size=5)


@given(rows=ROWS)
def test_json_rows_come_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("data") / "a.jsonl"
    names = {name for row in rows for name in row}
    _, found = read_rows(str(lines(path, rows)), "prompts.path")
    assert list(found) == [{name: row.get(name) for name in names} for row in rows]
    assert [found[i] for i in range(len(found))] == list(found)


CELLS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1)


@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_csv_cells_come_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("data") / "a.csv"
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    path.write_bytes(out.getvalue().encode())
    assert list(read_rows(str(path), "prompts.path")[1]) == [{"a": a, "b": b} for a, b in rows]


def test_rows_of_a_long_table_are_read_in_any_order(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"prompt": [str(i) for i in range(3000)], "__index_level_0__": range(3000)}), tmp_path / "a.parquet"
    )
    _, rows = read_rows(str(tmp_path / "a.parquet"), "prompts.path")
    assert [rows[i]["prompt"] for i in (2999, 0, 1500)] == ["2999", "0", "1500"]
    assert [row["prompt"] for row in rows] == [str(i) for i in range(3000)]
    assert rows.column_names == ["prompt"]
