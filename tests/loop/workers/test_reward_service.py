"""Pairs for reward models: which tokens a row of a file becomes, what a campaign gives, what is refused in words."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from loop.config.reward_settings import PairsSource, RunPairs
from loop.errors import UserError
from loop.prompts.chat_template import ChatFormat, Renderer
from loop.store import tables
from loop.store.files import to_json, write_file
from loop.store.run_folder import RunFolder
from loop.workers.reward_service import base_of, read_pairs, read_run
from tests.helpers import tiny
from trainer.data import PreferenceData

SOURCE: TypeAdapter[Any] = TypeAdapter(PairsSource)
EOS = tiny.EOS
CHATML = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture(autouse=True, scope="module")
def dataset_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `datasets` keeps of the files it has read stays out of the user's cache."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.save_tokenizer(folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    """Bytes as tokens, with a template of the usual form: the end token, then a new line."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


Read = Callable[..., PreferenceData]


@pytest.fixture
def read(tmp_path: Path, tokenizer: Any) -> Read:
    """Pairs of a file with these rows."""

    def reading(rows: Sequence[Any], name: str = "pairs.jsonl", **keys: Any) -> PreferenceData:
        path = tmp_path / name
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
        config = SOURCE.validate_python({"source": "file", "path": str(path), **keys})
        return read_pairs(config, Renderer(tokenizer, chat=config.chat), lambda *_: None).data

    return reading


def texts(tokenizer: Any, data: PreferenceData) -> list[tuple[str, str, str]]:
    """Prompt, chosen and rejected of each pair, decoded with all special tokens."""
    groups = {group.id: group for group in data.groups}
    found = []
    for pair in data.relations:
        group = groups[pair.prompt_id]
        responses = {response.id: response.token_ids for response in group.responses}
        ids = (group.token_ids, *(responses[id] for id in pair.responses))
        found.append(tuple(tokenizer.decode(list(each)) for each in ids))
    return found  # type: ignore[return-value]


ASKED = "<|start|>user\n2+2?<|end|>\n<|start|>assistant\n"
ANSWERED = (ASKED, "4<|end|>", "5<|end|>")
SAME_PAIR = {
    "texts": {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    "messages": {"prompt": [user("2+2?")], "chosen": [assistant("4")], "rejected": [assistant("5")]},
    "whole conversations": {
        "prompt": "2+2?",
        "chosen": [user("2+2?"), assistant("4")],
        "rejected": [user("2+2?"), assistant("5")],
    },
    "implicit prompt": {"chosen": [user("2+2?"), assistant("4")], "rejected": [user("2+2?"), assistant("5")]},
}


@pytest.mark.parametrize("row", SAME_PAIR.values(), ids=SAME_PAIR)
def test_every_format_of_trl_gives_the_tokens_that_the_policy_would_sample(
    read: Read, tokenizer: Any, row: dict[str, Any]
) -> None:
    """The prompt ends where an answer begins; the answer ends with the end of the turn, without the line after it."""
    assert texts(tokenizer, read([row])) == [ANSWERED]


def test_an_answer_may_take_several_turns(read: Read, tokenizer: Any) -> None:
    beginning = [user("hi"), assistant("ho")]
    row = {
        "chosen": [*beginning, user("2+2?"), assistant("4"), user("sure?"), assistant("yes")],
        "rejected": [*beginning, user("2+2?"), assistant("5")],
    }
    ((prompt, chosen, rejected),) = texts(tokenizer, read([row]))
    assert prompt == f"<|start|>user\nhi<|end|>\n<|start|>assistant\nho<|end|>\n{ASKED}"
    assert chosen == "4<|end|>\n<|start|>user\nsure?<|end|>\n<|start|>assistant\nyes<|end|>"
    assert rejected == "5<|end|>"


def test_texts_without_chat_are_joined_as_they_are(read: Read, tokenizer: Any) -> None:
    assert texts(tokenizer, read([SAME_PAIR["texts"]], chat=False)) == [("2+2?", "4<eos>", "5<eos>")]


def test_a_template_without_an_end_token_gets_the_tokenizers(read: Read, tokenizer: Any) -> None:
    tokenizer.chat_template = tiny.TEMPLATE.replace("{% endfor %}a:", "{% endfor %}{% if add_generation_prompt %}a:")
    tokenizer.chat_template += "{% endif %}"
    assert texts(tokenizer, read([SAME_PAIR["texts"]])) == [("u:2+2?\na:", "4<eos>", "5<eos>")]


@pytest.mark.parametrize(
    ("template", "end"), [(tiny.TEMPLATE, "<eos>"), (CHATML.replace("add_generation_prompt", "true"), "<|end|>")]
)
def test_a_template_that_always_asks_for_an_answer_puts_nothing_of_it_behind_one(
    read: Read, tokenizer: Any, template: str, end: str
) -> None:
    tokenizer.chat_template = template
    ((_, chosen, rejected),) = texts(tokenizer, read([SAME_PAIR["texts"]]))
    assert (chosen, rejected) == (f"4{end}", f"5{end}")


def test_a_template_that_rewrites_the_answer_is_refused(read: Read, tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    with pytest.raises(UserError, match=r"row 1: the model's chat template renders an answered .* enable_thinking"):
        read([SAME_PAIR["texts"]])


def test_a_template_that_refuses_a_role_is_quoted(read: Read, tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML + "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
    with pytest.raises(UserError, match=r"refuses .*, row 1 \(roles: user, assistant\): one turn only"):
        read([SAME_PAIR["texts"]])


def test_rows_with_the_same_prompt_share_a_group_and_equal_answers_are_one_response(read: Read) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": text} for text in ("b", "c", "a", "")]
    data = read(rows)
    (group,) = data.groups
    assert [response.id for response in group.responses] == [
        "row 1, chosen",
        "row 1, rejected",
        "row 2, rejected",
        "row 4, rejected",
    ]
    assert [pair.responses for pair in data.relations] == [
        ("row 1, chosen", "row 1, rejected"),
        ("row 1, chosen", "row 2, rejected"),
        ("row 1, chosen", "row 1, chosen"),
        ("row 1, chosen", "row 4, rejected"),
    ]
    assert group.responses[-1].token_ids == ()  # dropped and counted by the trainer


def test_what_is_probably_not_meant_is_noted(tmp_path: Path, tokenizer: Any) -> None:
    turns = [assistant("a"), user("thanks")]
    rows = [GOOD, GOOD, GOOD | {"chosen": GOOD["rejected"], "rejected": GOOD["chosen"], "system": "be nice"}]
    rows.append({"prompt": [user("q")], "chosen": turns, "rejected": [assistant("b")]})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = SOURCE.validate_python({"source": "file", "path": str(path)})
    assert read_pairs(config, Renderer(tokenizer), lambda *_: None).notes == (
        f"{path}: the column 'system' is not used",
        "1 pairs end with a turn of another role and count as empty",
        "1 pairs are repeated",
        "1 pairs are given in both directions",
    )


def test_answers_that_a_template_changes_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD) + "\n", encoding="utf-8")
    config = SOURCE.validate_python({"source": "file", "path": str(path)})
    tokenizer.chat_template = CHATML.replace("| trim", "| replace('4', 'four') | replace('5', 'five')")
    (note,) = read_pairs(config, Renderer(tokenizer, ChatFormat(on_change="drop")), lambda *_: None).notes
    assert "changes 2 given answers, which are dropped" in note


def test_csv_and_parquet_and_margins(read: Read, tokenizer: Any, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = read("prompt,chosen,rejected,by\n2+2?,4,5,0.5\n2+2?,4,6,\n", "pairs.csv", margin_column="by")
    assert texts(tokenizer, data)[0] == ANSWERED
    assert [pair.margin for pair in data.relations] == [0.5, None]
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"q": ["2+2?"], "good": ["4"], "bad": ["5"], "by": [2]}), path)
    names = {"prompt_column": "q", "chosen_column": "good", "rejected_column": "bad", "margin_column": "by"}
    config = SOURCE.validate_python({"source": "file", "path": str(path), **names})
    data = read_pairs(config, Renderer(tokenizer), lambda *_: None).data
    assert texts(tokenizer, data) == [ANSWERED]
    assert data.relations[0].margin == 2.0


GOOD = SAME_PAIR["texts"]
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "empty file": ("", {}, r"pairs\.jsonl is empty \(0 bytes\)"),
    "no chosen": ([{"prompt": "q", "choosen": "a", "rejected": "b"}], {}, r"no column 'chosen' .*mean choosen\?"),
    "no rejected": ([{"prompt": "q", "chosen": "a"}], {}, r"no column 'rejected' \(data\.rejected_column\)"),
    "no margin": ([GOOD], {"margin_column": "by"}, r"no column 'by' \(data\.margin_column\)"),
    "texts without prompt": ([{"chosen": "a", "rejected": "b"}], {}, r"row 1: there is no column 'prompt'"),
    "no common beginning": (
        [{"chosen": [user("p"), assistant("a")], "rejected": [user("q"), assistant("b")]}],
        {},
        r"row 1: chosen and rejected have no common beginning",
    ),
    "wrong role": (
        [GOOD | {"chosen": [user("me")], "rejected": [assistant("b")], "prompt": [user("q")]}],
        {},
        r"row 1, column 'chosen': the answer begins with the role 'user' after a prompt that ends with the role 'user'",
    ),
    "no message": ([GOOD | {"chosen": [{"text": "a"}], "rejected": [{"text": "b"}]}], {}, r"row 1, column 'chosen'"),
    "chat off": ([SAME_PAIR["messages"]], {"chat": False}, r"holds chat messages, but data\.chat is false"),
    "margin text": ([GOOD | {"by": "much"}], {"margin_column": "by"}, r"row 1, column 'by': the margin is 'much'"),
}


@pytest.mark.parametrize(("rows", "keys", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_by_row_and_column(
    read: Read, rows: Any, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        read(rows, **keys)


# ---- a campaign's pairs ----


def make_run(root: Path, base: Path, tokens: dict[int, dict[str, list[list[int]]]]) -> RunFolder:
    """What a campaign leaves of its pairs: by iteration and prompt the responses, of which the first is the best."""
    run = RunFolder(root)
    run.write_format()
    write_file(run.config, b"iterations: 2\n")
    write_file(run.promotion(0), to_json({"base": "x", "policy": {"path": str(base), "hash": "h", "iteration": 0}}))
    for k, prompts in tokens.items():
        rows, pairs = [], []
        for prompt, responses in prompts.items():
            ids = [f"{prompt}-{k}-{at}" for at in range(len(responses))]
            for at, (id, token_ids) in enumerate(zip(ids, responses, strict=True)):
                logprobs = [-1.0] * len(token_ids)
                row = {"prompt_id": prompt, "response_id": id, "index": at, "seed": 0, "temperature": 1.0}
                row |= {
                    "prompt_token_ids": list(prompt.encode()),
                    "token_ids": token_ids,
                    "text": "",
                    "stop_reason": "",
                }
                rows.append(row | {"finish_reason": "stop", "policy_hash": "h", "logprobs": logprobs})
            for other in ids[1:]:
                pair = {"prompt_id": prompt, "chosen_id": ids[0], "rejected_id": other, "rule": "best", "weight": 1.0}
                pairs.append(pair | {"source_iteration": k})
        write_file(run.stage(k, "sample").shard(0), tables.to_bytes(rows, tables.RESPONSES, {}))
        folder = run.stage(k, "pair")
        write_file(folder.pairs, tables.to_bytes(pairs, tables.PAIRS, {}))
        folder.finish([folder.pairs], inputs={}, counts={"pairs": 1}, seconds={}, versions={})
    return run


SAMPLED = {1: {"p": [[1, EOS], [2, EOS], [3]], "q": [[4, EOS], [5]]}, 2: {"q": [[6, EOS], [7, EOS]]}}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "base").mkdir()
    return make_run(tmp_path / "runs" / "toy", tmp_path / "base", SAMPLED)


def of(run: RunFolder, iterations: list[int] | None = None) -> RunPairs:
    return RunPairs(source="run", run=str(run), iterations=iterations)


def test_a_runs_pairs_keep_the_ids_that_were_sampled(run: RunFolder) -> None:
    data = read_run(of(run))
    sampled = {(group.id, tuple(r.token_ids)) for group in data.groups for r in group.responses}
    expected = {
        (prompt, tuple(ids)) for prompts in SAMPLED.values() for prompt, rows in prompts.items() for ids in rows
    }
    assert sampled == expected
    assert [group.id for group in data.groups] == ["p", "q"]  # one group per prompt, though two iterations sampled q
    assert [(pair.prompt_id, *pair.responses) for pair in data.relations] == [
        ("p", "p-1-0", "p-1-1"),
        ("p", "p-1-0", "p-1-2"),
        ("q", "q-1-0", "q-1-1"),
        ("q", "q-2-0", "q-2-1"),
    ]
    assert read_run(of(run, [2])).relations == data.relations[-1:]
    assert asdict(read_run(of(run, [2, 1]))) == asdict(data)


def test_runs_and_iterations_that_are_not_there_are_named(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"no finished pairs of iteration 3, 7; it has those of: 1, 2"):
        read_run(of(run, [1, 3, 7]))
    with pytest.raises(UserError, match=r"there is no run in .*/tov; did you mean toy\? The runs in .*: toy\."):
        read_run(of(RunFolder(run.root.with_name("tov"))))
    for k in SAMPLED:
        run.stage(k, "pair").manifest_path.unlink()
    with pytest.raises(UserError, match=r"toy has no finished pairs yet; continue it"):
        read_run(of(run))


def test_damaged_pairs_are_refused(run: RunFolder) -> None:
    pairs = run.stage(1, "pair").pairs
    pairs.write_bytes(pairs.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"pairs\.parquet is damaged"):
        read_run(of(run))


def test_the_base_is_the_runs_own_unless_it_is_gone(run: RunFolder, tmp_path: Path) -> None:
    assert base_of(run) == tmp_path / "base"
    (tmp_path / "base").rmdir()
    with pytest.raises(UserError, match=r"base model of .*toy is no longer in .*Put it back, or set base"):
        base_of(run)
    run.promotion(0).unlink()
    with pytest.raises(UserError, match=r"has no base model yet; continue it with `prefloop run"):
        base_of(run)
