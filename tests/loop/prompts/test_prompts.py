"""The prompt sets: known by content, disjoint, drawn by the seed alone; what cannot be read is refused in words."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from loop.campaign.stages.take_prompts import slice_for
from loop.config.prompts_section import PromptsConfig
from loop.errors import UserError
from loop.prompts import sets as module
from loop.prompts.chat_template import ChatFormat, render
from loop.prompts.row import PromptRow, prompt_id, read_table, write_table
from loop.prompts.sets import PromptSets, build_prompt_sets
from loop.prompts.sources import Source, open_sources

GSM8K = Path(__file__).resolve().parents[4] / "shared" / "data" / "gsm8k"
CONFIG: TypeAdapter[Any] = TypeAdapter(PromptsConfig)


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def written(rows: Sequence[Any], name: str = "data.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return written


def build(seed: int = 0, **keys: Any) -> PromptSets:
    small = {"source": "file", "gate": 2, "test": 3}
    return build_prompt_sets(CONFIG.validate_python({**small, **keys}), seed)


def refusal(**keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(**keys)
    return str(caught.value)


def numbered(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"question {i}", "answer": i} for i in range(start, start + count)]


def ids(rows: Sequence[PromptRow]) -> list[str]:
    return [row.id for row in rows]


def texts(sets: PromptSets) -> set[str]:
    return {row.messages[-1]["content"] for rows in (sets.train, sets.gate, sets.test) for row in rows}


# ---- ids and sets ----


def test_an_id_is_the_hash_of_the_messages() -> None:
    messages = [{"role": "user", "content": "What is 1 + 1?"}]
    assert prompt_id(messages) == prompt_id([{"content": "What is 1 + 1?", "role": "user"}])
    assert prompt_id(messages) == "03c9f81ec728d811"  # fixed: stored runs name prompts by it
    assert prompt_id([{"role": "system", "content": ""}, *messages]) != prompt_id(messages)


ROWS = st.lists(st.sampled_from(["", " ", *"abcdefghijklmnop"]), max_size=40)


def divided(contents: Sequence[str], seed: int, test_contents: Sequence[str] | None = None) -> PromptSets:
    """The sets of rows in memory, without a file."""

    def source(texts: Sequence[str]) -> Source:
        return Source(
            "rows", [{"prompt": text, "n": n} for n, text in enumerate(texts)], ("prompt", "n"), "prompt", "n"
        )

    with pytest.MonkeyPatch.context() as patch:
        test = None if test_contents is None else source(test_contents)
        patch.setattr(module, "open_sources", lambda *given: (source(contents), test))
        return build(seed, path="-")


@given(ROWS, st.none() | ROWS, st.integers(0, 3))
def test_the_sets_are_disjoint_and_every_row_is_accounted_for(
    contents: list[str], test_contents: list[str] | None, seed: int
) -> None:
    try:
        sets = divided(contents, seed, test_contents)
    except UserError:
        return
    train, gate, test = map(set, (ids(sets.train), ids(sets.gate), ids(sets.test)))
    assert not train & gate
    assert not (train | gate) & test
    assert (len(sets.train), len(sets.gate), len(sets.test)) == (len(train), len(gate), len(test))
    counts = sets.counts
    kept = ("empty", "duplicates", "also_in_test", "train", "gate", "test", "unused")
    assert counts["rows"] == sum(counts[name] for name in kept) == len(contents) + len(test_contents or [])
    if test_contents is not None:  # not even a test row that was not chosen is trained on
        assert not (train | gate) & {prompt_id([{"role": "user", "content": text}]) for text in test_contents}


@given(st.permutations([*"abcdefghijklmnop"]), st.integers(0, 3))
def test_the_order_of_rows_does_not_matter(contents: list[str], seed: int) -> None:
    shuffled, plain = divided(contents, seed), divided(sorted(contents), seed)
    for name in ("train", "gate", "test"):
        assert ids(getattr(shuffled, name)) == ids(getattr(plain, name))


def test_another_seed_draws_other_sets(file: Any) -> None:
    path = file(numbered(60))
    assert ids(build(0, path=path).test) == ids(build(0, path=path).test) != ids(build(1, path=path).test)


def test_a_larger_train_appends_and_changes_nothing_else(file: Any) -> None:
    path = file(numbered(60))
    small, large = build(path=path, train=10), build(path=path, train=30)
    assert small.train == large.train[:10]
    assert (small.gate, small.test) == (large.gate, large.test)


def test_empty_prompts_and_duplicates_are_dropped_and_counted(file: Any) -> None:
    odd = [{"prompt": "", "answer": 1}, {"prompt": "  \n", "answer": 1}, {"prompt": None, "answer": 1}]
    again = [{"prompt": "question 0", "answer": 0}, {"prompt": "question 1", "answer": 99}]
    sets = build(path=file([*numbered(10), *odd, *again]), target_column="answer")
    wanted = {"rows": 15, "empty": 3, "duplicates": 2, "conflicts": 1, "train": 5, "gate": 2, "test": 3, "unused": 0}
    assert {name: sets.counts[name] for name in wanted} == wanted
    kept = {row.messages[0]["content"]: row.target for row in [*sets.train, *sets.gate, *sets.test]}
    assert kept["question 1"] == "1"  # the first row read


def test_rows_of_the_test_file_are_never_trained_on(file: Any) -> None:
    train, test = file(numbered(20), "train.jsonl"), file(numbered(10, start=15), "test.jsonl")
    sets = build(path=train, test_path=test)
    assert sets.counts["also_in_test"] == 5
    assert {row.columns["answer"] for row in sets.test} <= set(range(15, 25))
    assert {row.columns["answer"] for row in [*sets.train, *sets.gate]} == set(range(15))


# ---- messages ----


def test_system_examples_and_template_make_the_messages(file: Any) -> None:
    rows = [{"q": f"{i} + {i}", "meta": {"unit": "kg"}, "extra": None} for i in range(8)]
    keys: dict[str, Any] = {
        "prompt_column": "q",
        "template": "What is {prompt} = {q} in {meta[unit]}?{extra} {{}}",
        "system": "Be brief.",
    }
    sets = build(path=file(rows), few_shot=[{"prompt": "1 + 1", "response": "2"}], **keys)
    row = next(row for row in [*sets.train, *sets.gate, *sets.test] if row.columns["q"] == "3 + 3")
    assert row.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "What is 3 + 3 = 3 + 3 in kg? {}"},
    ]
    assert row.columns == {"q": "3 + 3", "meta": {"unit": "kg"}, "extra": None}


def chat(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def test_chat_messages_are_taken_as_they_are(file: Any) -> None:
    talk = [chat(("user", "Hi"), ("assistant", "Hello"), ("user", f"Again {i}")) for i in range(6)]
    sets = build(path=file([{"prompt": turns} for turns in talk]))
    assert sorted(row.messages[-1]["content"] for row in [*sets.train, *sets.gate, *sets.test]) == [
        f"Again {i}" for i in range(6)
    ]
    assert all(len(row.messages) == 3 for row in sets.train)


def test_a_rows_own_system_message_comes_before_the_examples(file: Any) -> None:
    talk = [chat(("system", "S"), ("user", str(i))) for i in range(6)]
    sets = build(path=file([{"prompt": turns} for turns in talk]), few_shot=[{"prompt": "a", "response": "b"}])
    assert [turn["role"] for turn in sets.train[0].messages] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("turns", "keys", "said"),
    [
        (chat(("user", "a"), ("assistant", "b")), {}, "a prompt ends with the user's"),
        (chat(("tool", "a")), {}, "with the roles system, user and assistant"),
        ([{"text": "a"}], {}, "expected a text or a list of messages"),
        (chat(("system", "a"), ("user", "b")), {"system": "S"}, "set prompts.system to null"),
        (chat(("user", "b")), {"template": "Q: {prompt}"}, "Remove prompts.template"),
    ],
)
def test_messages_that_are_no_prompt_are_refused_with_the_row(
    file: Any, turns: list[Any], keys: dict[str, Any], said: str
) -> None:
    text = refusal(path=file([{"prompt": turns}] * 8), **keys)
    assert said in text
    assert "row 1" in text


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{questoin}", "names {questoin}, which is no column of"),
        ("{}", "has empty braces"),
        ("{prompt", "cannot be read"),
        ("{prompt} }", "cannot be read"),
        ("{answer[x]}", "does not fit row 1"),
        ("{prompt:d}", "does not fit row 1"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(file: Any, template: str, said: str) -> None:
    text = refusal(path=file(numbered(8)), template=template)
    assert said in text
    assert template in text


# ---- files ----


def test_every_format_gives_the_same_prompts(tmp_path: Path, file: Any) -> None:
    rows = numbered(12)
    (tmp_path / "list.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "data.csv").write_text("prompt,answer\n" + "".join(f"{r['prompt']},{r['answer']}\n" for r in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    expected = build(path=file(rows), target_column="answer")
    for name in ("list.json", "lines.json", "data.csv", "data.parquet"):
        sets = build(path=str(tmp_path / name), target_column="answer")
        assert (ids(sets.train), ids(sets.gate), ids(sets.test)) == tuple(
            ids(getattr(expected, part)) for part in ("train", "gate", "test")
        )
        assert [row.target for row in sets.train] == [row.target for row in expected.train]


def test_csv_cells_stay_texts(tmp_path: Path) -> None:
    cells = ["007", "NA", "1e5", "null", "1,200", "12"]
    (tmp_path / "a.csv").write_text("prompt,target\n" + "".join(f'p{i},"{c}"\n' for i, c in enumerate([*cells, ""])))
    sets = build(path=str(tmp_path / "a.csv"), target_column="target")
    targets = {row.messages[0]["content"]: row.target for row in [*sets.train, *sets.gate, *sets.test]}
    assert targets == {f"p{i}": cell for i, cell in enumerate([*cells, None])}


def test_dates_become_text_and_bytes_are_refused(tmp_path: Path) -> None:
    day = datetime.date(2026, 1, 2)
    table = {"prompt": [f"p{i}" for i in range(8)], "day": [day] * 8}
    pq.write_table(pa.table(table), tmp_path / "day.parquet")
    assert build(path=str(tmp_path / "day.parquet")).train[0].columns["day"] == "2026-01-02"
    pq.write_table(pa.table({**table, "image": [b"\x00\xff"] * 8}), tmp_path / "bytes.parquet")
    assert "column 'image': it holds a bytes" in refusal(path=str(tmp_path / "bytes.parquet"))


def test_files_that_cannot_be_read_are_refused_in_one_paragraph(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    (tmp_path / "broken.json").write_text('[{"prompt": "a"},\n{"prompt": }]')
    (tmp_path / "comma.csv").write_text("prompt,b\na,b\na, and more,b\n")
    (tmp_path / "twice.csv").write_text("prompt,prompt\na,b\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no parquet at all")
    (tmp_path / "ragged.csv").write_text('prompt,b\na,"b\n')
    expected = {
        "none.jsonl": "does not exist. Relative paths start at",
        "a.txt": "is not in a known format; expected a file named .json, .jsonl, .csv, .parquet",
        "empty.jsonl": "is empty (0 bytes)",
        "broken.jsonl": "cannot be read as jsonl: line 2: Expecting value",
        "broken.json": "cannot be read as json: line 2: Expecting value",
        "broken.parquet": "cannot be read as parquet",
        "ragged.csv": "unexpected end of data",
        "comma.csv": "line 3 has 3 cells, but the header has 2; put a cell that holds a comma in double quotes",
        "twice.csv": "its header names a column twice: prompt, prompt",
    }
    for name, said in expected.items():
        text = refusal(path=str(tmp_path / name))
        assert said in text
        assert name in text
        assert "\n" not in text
    assert "is a folder" in refusal(path=str(tmp_path))


def test_a_missing_column_is_named_with_its_neighbours(file: Any) -> None:
    text = refusal(path=file([{"promt": "a", "answer": "b"}] * 8))
    assert "has no column 'prompt' (prompts.prompt_column); did you mean promt? Its columns: promt, answer." in text
    assert "(prompts.target_column)" in refusal(path=file(numbered(8)), target_column="gold")


def test_too_few_rows_name_the_numbers_and_the_keys(file: Any) -> None:
    text = refusal(path=file([*numbered(5), *numbered(2)]), train=4)
    assert "gives 5 distinct prompts (7 rows; dropped: 2 duplicates)" in text
    assert "prompts.test=3 + prompts.gate=2 + prompts.train=4 need 9" in text
    assert "lower prompts.test, prompts.gate, prompts.train, or give more rows" in text
    assert "gives 0 distinct prompts" in refusal(path=file([{"prompt": ""}] * 9))
    test = file(numbered(2, start=50), "test.jsonl")
    assert "prompts.test is 3; lower prompts.test" in refusal(path=file(numbered(9)), test_path=test)


def test_a_hub_that_cannot_be_reached_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    text = refusal(source="hub", dataset="some-org/some-data", subset="main")
    assert "The hub dataset some-org/some-data (main), split train cannot be loaded" in text
    assert "prompts.source=file" in text
    assert "openai/gsm8k" in refusal(source="gsm8k")


# ---- real sources ----


def test_gsm8k_from_local_files(tmp_path: Path) -> None:
    rows = [{"question": f"How many is {i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(20)]
    made = tmp_path / "train.jsonl"
    made.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = GSM8K / "train.jsonl" if (GSM8K / "train.jsonl").is_file() else made
    sets = build(source="gsm8k", path=str(path), template="{question}\nEnd with #### and the number.")
    row = sets.train[0]
    assert row.messages[0]["content"] == row.columns["question"] + "\nEnd with #### and the number."
    assert row.target == row.columns["answer"]
    assert "#### " in row.columns["answer"]
    assert sets.counts["rows"] - sets.counts["duplicates"] == len(sets.train) + 5


def test_a_reasoning_gym_task_gives_the_same_distinct_prompts_every_time() -> None:
    keys: dict[str, Any] = {"source": "reasoning-gym", "task": "chain_sum", "args": {"min_terms": 2, "max_terms": 2}}
    keys |= {"template": "What is {metadata[expression]}?", "train": 40}
    sets = build(**keys)
    assert sets == build(**keys)
    assert len(texts(sets)) == 45
    row = sets.train[0]
    assert row.messages[0]["content"] == f"What is {row.columns['metadata']['expression']}?"
    assert row.target == row.columns["answer"] == str(eval(row.columns["metadata"]["expression"]))


def test_a_task_without_so_many_prompts_says_how_many_it_has() -> None:
    args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    text = refusal(source="reasoning-gym", task="chain_sum", args=args, train=500)
    assert "gives 200 distinct prompts" in text
    assert "widen prompts.args" in text


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"task": "chain_sun"}, "did you mean chain_sum?"),
        ({"task": "chain_sum", "args": {"foo": 1}}, "foo"),
        ({"task": "chain_sum", "args": {"min_terms": 9, "max_terms": 2}}, "max_terms must be >= min_terms"),
        ({"task": "chain_sum", "args": {"seed": 1}}, "seed cannot be given"),
        ({"task": "chain_sum", "template": "{metadata[foo]}"}, "does not fit row 1"),
    ],
)
def test_a_task_that_cannot_be_made_is_refused(keys: dict[str, Any], said: str) -> None:
    assert said in refusal(source="reasoning-gym", **keys)


def test_tuples_in_metadata_survive_storing() -> None:
    rows = [PromptRow("1", chat(("user", "ä")), None, {"grid": ((0, 1), (2, [3])), "d": {"x": None, "y": 1.5}})]
    assert read_table(write_table(rows)) == rows
    assert read_table(write_table([])) == []


# ---- slices ----


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 9), st.integers(0, 5))
def test_slices_are_disjoint_cover_the_front_and_stay_when_prompts_are_added(
    size: int, iterations: int, more: int, seed: int
) -> None:
    train = [f"id{i}" for i in range(size * iterations)]
    slices = [slice_for(k, train, size, seed) for k in range(1, iterations + 1)]
    assert sorted(index for part in slices for index in part) == list(range(len(train)))
    longer = [*train, *(f"new{i}" for i in range(more))]
    assert [slice_for(k, longer, size, seed) for k in range(1, iterations + 1)] == slices


@given(st.integers(1, 30), st.integers(0, 5))
def test_without_slices_every_iteration_takes_all_in_one_seeded_order(count: int, seed: int) -> None:
    train = [f"id{i}" for i in range(count)]
    first = slice_for(1, train, None, seed)
    assert sorted(first) == list(range(count))
    assert slice_for(7, train, None, seed) == first


def test_a_slice_past_the_end_names_the_numbers() -> None:
    with pytest.raises(UserError, match=r"Iteration 3 needs training prompts 9 to 12 .* there are 10; raise"):
        slice_for(3, [str(i) for i in range(10)], 4, 0)


# ---- tokens ----


class Letters:
    """A tokenizer of letters; with a chat template, turns are marked and the answer's turn is opened."""

    eos_token_id = 0
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def __init__(self, chat_template: str | None, ends: bool = False) -> None:
        self.chat_template, self.ends = chat_template, ends

    def apply_chat_template(self, messages: list[dict[str, str]], **kwargs: Any) -> str:
        assert not kwargs.pop("tokenize")
        text = "".join(f"<{m['role']}>{m['content']}" for m in messages)
        return text + ("<assistant>" if kwargs.pop("add_generation_prompt") else "") + str(kwargs)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text] + [0] * self.ends}


ROW = PromptRow("x", chat(("system", "s"), ("user", "u")), None, {})


def test_a_chat_template_is_applied_with_the_answers_turn_opened() -> None:
    assert (
        "".join(map(chr, render(Letters("x"), ROW, ChatFormat({"think": False}))))
        == "<system>s<user>u<assistant>{'think': False}"
    )


def test_a_base_model_gets_the_texts_and_no_end() -> None:
    assert "".join(map(chr, render(Letters(None), ROW, ChatFormat()))) == "s\n\nu"
    assert render(Letters(None, ends=True), ROW, ChatFormat()) == render(Letters(None), ROW, ChatFormat())


def test_a_template_that_refuses_a_role_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import jinja2

    def refuse(self: Letters, messages: Any, **kwargs: Any) -> str:
        raise jinja2.TemplateError("System role not supported")

    monkeypatch.setattr(Letters, "apply_chat_template", refuse)
    with pytest.raises(UserError, match=r"refuses prompt x \(roles: system, user\): System role not supported"):
        render(Letters("x"), ROW, ChatFormat())


def test_gsm8k_takes_its_test_rows_from_where_its_train_rows_are(tmp_path: Path, file: Any) -> None:
    path = file([{"question": f"q{i}", "answer": f"#### {i}"} for i in range(9)])
    config = CONFIG.validate_python({"source": "gsm8k", "path": path})
    assert open_sources(config, 0, {})[1] is None
    both = CONFIG.validate_python({"source": "gsm8k", "path": path, "test_path": path})
    assert open_sources(both, 0, {})[1] is not None
