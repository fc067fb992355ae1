"""What is trained is the text of the data: templates that change answers, end tokens in texts, empty answers, turns of
other roles."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from loop.config.prompts_section import PromptsConfig
from loop.errors import UserError
from loop.prompts.chat_template import ChatFormat, Renderer, change_in, render
from loop.prompts.preferences import PAIRS
from loop.prompts.row import PromptRow, turns_of
from loop.prompts.sets import PromptSets, build_prompt_sets
from loop.prompts.supervised import read_mix
from tests.helpers import tiny

CONFIG: TypeAdapter[Any] = TypeAdapter(PromptsConfig)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{% if m['role'] == 'assistant' %}ANSWER<eos>{% else %}"
    "{{ m['content'] }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
"""ANSWER stands for how the template writes an answer."""
PLAIN = "{{ m['content'] }}"
THOUGHTLESS = "{{ m['content'].split('</think>')[-1] }}"
TRIMMED = "{{ m['content'] | trim }}"
EMPTY_THOUGHT = "<think>\n\n</think>\n\n{{ m['content'] }}"
BLANK_BEFORE = " {{ m['content'] }}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def tokenizer(plain: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def with_answers(written: str) -> Any:
        monkeypatch.setattr(plain, "chat_template", TEMPLATE.replace("ANSWER", written))
        return plain

    return with_answers


ASKED = [{"role": "user", "content": "q"}]


def answer(tokenizer: Any, text: str, **how: Any) -> tuple[str, Renderer]:
    renderer = Renderer(tokenizer, ChatFormat(**how))
    ids = renderer.answer(ASKED, [{"role": "assistant", "content": text}], "row 1")
    return str(tokenizer.decode(ids)), renderer


UNCHANGED = [
    (PLAIN, "x"),
    (PLAIN, "<think>a</think>b"),
    (TRIMMED, "x"),
    (BLANK_BEFORE, "x"),
    (THOUGHTLESS, "no thought"),
]
CHANGED = [
    (THOUGHTLESS, "<think>0 and one</think>1"),
    (THOUGHTLESS, "</think>"),
    (TRIMMED, "    return 0+1\n"),
    (TRIMMED, "x\n"),
    (EMPTY_THOUGHT, "1"),
    ("{{ m['content'] | upper }}", "ab"),
    ("{{ m['content'] | replace('\\n', ' ') }}", "a\nb"),
    ("{{ m['content'][:3] }}", "abcdef"),
    ("Answer: {{ m['content'] }}", "x"),
]


@pytest.mark.parametrize(("written", "text"), UNCHANGED)
def test_an_answer_that_stands_as_it_is_passes(tokenizer: Any, written: str, text: str) -> None:
    found, renderer = answer(tokenizer(written), text)
    assert found.strip() == f"{text}<eos>"
    assert renderer.note() is None


@pytest.mark.parametrize(("written", "text"), CHANGED)
def test_an_answer_that_the_template_changes_is_refused_dropped_or_allowed(
    tokenizer: Any, written: str, text: str
) -> None:
    with pytest.raises(
        UserError, match=r"chat template changes a given answer, so another text would be trained\. row"
    ):
        answer(tokenizer(written), text)
    assert answer(tokenizer(written), text, on_change="drop")[0] == ""
    found, renderer = answer(tokenizer(written), text, on_change="allow")
    assert found.endswith("<eos>")
    note = str(renderer.note())
    assert "changes 1 given answers, which are trained as the template writes them" in note
    assert repr(text)[1:4] in note


@pytest.mark.parametrize(
    "written", ["{{ range(1000000) | list }}", "{{ 1 / 0 }}", "{{ m['content'] + 1 }}", "{{ m.a.b }}"]
)
def test_whatever_a_template_raises_is_a_refusal(tokenizer: Any, written: str) -> None:
    with pytest.raises(UserError, match="The model's chat template refuses row 1"):
        answer(tokenizer(written), "x")


def test_a_header_that_the_policy_must_write_itself_is_no_change(tokenizer: Any) -> None:
    found = tokenizer(PLAIN)
    found.chat_template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<eos>{% endfor %}"
    assert answer(found, "x")[0] == "assistant:x<eos>"
    found.chat_template = found.chat_template.replace("{{ m['content'] }}", "{{ m['content'] | trim }}")
    with pytest.raises(UserError, match="changes a given answer"):
        answer(found, " x")


@given(st.text(min_size=1), st.text(alphabet=" \n"), st.text(alphabet=" \n"))
def test_blanks_around_an_answer_are_no_change(text: str, before: str, after: str) -> None:
    assert change_in(before + text + after, [text]) is None


@given(st.text(alphabet="ab ", min_size=1), st.text(alphabet="ab "))
def test_a_text_that_is_not_there_is_a_change(text: str, rendered: str) -> None:
    assert (change_in(rendered, [text]) is None) == (
        text in rendered and not rendered.replace(text, "", 1).strip() and not rendered[: rendered.find(text)].strip()
    )


@pytest.mark.parametrize("text", ["1<eos> and more", "<eos>", "<pad>", "a<pad><eos>b", "x <eos>"])
def test_the_name_of_a_special_token_is_text_unless_it_is_allowed(tokenizer: Any, text: str) -> None:
    renderer = Renderer(tokenizer(PLAIN))
    ids = renderer.answer(ASKED, [{"role": "assistant", "content": text}], "row 1")
    assert [i for i in ids if i in (tiny.PAD, tiny.EOS)] == [tiny.EOS]
    assert ids[-1] == tiny.EOS
    assert bytes(ids[:-1]) != b""
    asked = [{"role": "user", "content": text}]
    prompt = PromptRow("x", asked, None, {})
    assert not {tiny.PAD, tiny.EOS} & set(render(renderer.tokenizer, prompt, ChatFormat()))
    assert {tiny.PAD, tiny.EOS} & set(render(renderer.tokenizer, prompt, ChatFormat(special_tokens="token")))


def test_without_a_template_too(plain: Any) -> None:
    plain.chat_template = None
    prompt = PromptRow("x", [{"role": "user", "content": "a<eos>b"}], None, {})
    assert tiny.EOS not in render(plain, prompt, ChatFormat())
    assert tiny.EOS in render(plain, prompt, ChatFormat(special_tokens="token"))


# ---- rows ----


def save(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


GOOD = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(4)]


def preferences(tmp_path: Path, rows: Sequence[Any], **keys: Any) -> PromptSets:
    given = {"source": "preferences", "path": save(tmp_path / "p.jsonl", [*GOOD, *rows]), "gate": 1, "test": 1, **keys}
    return build_prompt_sets(CONFIG.validate_python(given), 0)


CALL = [{"function": {"name": "f", "arguments": "{}"}}]
EMPTY = [
    {"prompt": "q", "chosen": [turn("assistant", "")], "rejected": [turn("assistant", "bad")]},
    {"prompt": "q", "chosen": [turn("assistant", " \n")], "rejected": [turn("assistant", "bad")]},
    {"prompt": "q", "chosen": [turn("assistant", None, tool_calls=CALL)], "rejected": [turn("assistant", "no")]},
    {"prompt": "q", "chosen": [turn("assistant", "", tool_calls=CALL)], "rejected": [turn("assistant", "no")]},
    {"prompt": "q", "chosen": [turn("user", "q"), turn("assistant", "")], "rejected": [turn("assistant", "b")]},
    {"prompt": "q", "chosen": "  ", "rejected": "bad"},
    {"prompt": "q", "chosen": [], "rejected": "bad"},
    {"prompt": [turn("user", "")], "chosen": "good", "rejected": "bad"},
]


@pytest.mark.parametrize("row", EMPTY)
def test_an_answer_without_text_is_empty_whatever_its_shape(tmp_path: Path, row: dict[str, Any]) -> None:
    counts = preferences(tmp_path, [row]).counts
    assert (counts["pairs"], counts["pairs_empty"]) == (4, 1)


def test_examples_of_a_mix_without_text_are_empty(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"messages": [turn("user", "q"), turn("assistant", "")]}, {"messages": [turn("user", "q")] * 0}]
    data = read_mix(save(tmp_path / "mix.jsonl", rows), Renderer(tokenizer(PLAIN)))
    assert [group.responses[0].token_ids for group in data.groups] == [[], []]
    rows = [{"prompt": "q", "response": "  "}, {"prompt": "q", "response": None}]
    data = read_mix(save(tmp_path / "mix2.jsonl", rows), Renderer(tokenizer(PLAIN)))
    assert [group.responses[0].token_ids for group in data.groups] == [[], []]


OTHERS = [
    ([turn("assistant", "good"), turn("user", "thanks")], [turn("assistant", "bad"), turn("user", "hm")]),
    ([turn("assistant", "good"), turn("user", "more"), turn("assistant", "x")], [turn("assistant", "bad")]),
    ([turn("assistant", "good"), turn("tool", "3"), turn("assistant", "x")], [turn("assistant", "bad")]),
]


@pytest.mark.parametrize(("chosen", "rejected"), OTHERS)
def test_only_turns_of_the_assistant_are_trained(tmp_path: Path, chosen: Any, rejected: Any) -> None:
    sets = preferences(tmp_path, [{"prompt": "q", "chosen": chosen, "rejected": rejected}])
    assert sets.counts["pairs_with_other_turns"] == 1
    assert sets.counts["pairs"] == 4


def test_pairs_that_repeat_or_contradict_each_other_are_counted(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "g", "rejected": "b"}
    counts = preferences(tmp_path, [row, row, {"prompt": "q", "chosen": "b", "rejected": "g"}]).counts
    assert (counts["pairs"], counts["pairs_repeated"], counts["pairs_both_ways"]) == (7, 1, 1)
    assert "pairs_both_ways" not in preferences(tmp_path, []).counts


def test_a_conversation_as_json_text_is_read_as_one(tmp_path: Path) -> None:
    talks = [json.dumps([turn("user", "q"), turn("assistant", text)]) for text in ("good", "bad")]
    sets = preferences(tmp_path, [{"prompt": "q", "chosen": talks[0], "rejected": talks[1]}])
    (found,) = [row for row in (*sets.train, *sets.gate, *sets.test) if row.messages == [turn("user", "q")]]
    assert found.columns[PAIRS][0]["chosen"] == [turn("assistant", "good")]
    for text in ("[{not json", '[{"a": 1}]', '["role"]', "[]"):
        assert turns_of(text, "assistant", "here") == [turn("assistant", text)]


MEANT = [
    ({"system": "be nice"}, {}, "the column 'system' is not used"),
    ({"tools": [{"name": "f"}]}, {}, "the column 'tools' is not used"),
    ({"reasoning_content": "because"}, {}, "the column 'reasoning_content' is not used"),
    ({"system": ""}, {}, None),
    ({"idx": 3}, {}, None),
    ({}, {"reasoning_content": "because"}, "'reasoning_content' of the messages in 'chosen' is not used"),
    ({}, {"tool_calls": CALL}, "'tool_calls' of the messages in 'chosen' is not used"),
]


@pytest.mark.parametrize(("columns", "keys", "note"), MEANT)
def test_what_looks_meant_but_is_not_used_is_named(
    tmp_path: Path, columns: dict[str, Any], keys: dict[str, Any], note: str | None
) -> None:
    row = {"prompt": "q", "chosen": [turn("assistant", "42", **keys)], "rejected": [turn("assistant", "41")], **columns}
    notes = preferences(tmp_path, [row]).notes
    assert [one.rpartition("p.jsonl: ")[2] for one in notes] == ([note] if note else [])


def test_a_column_in_the_template_is_used(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "system": "be nice"} for i in range(4)]
    given = {"source": "file", "path": save(tmp_path / "p.jsonl", rows), "gate": 1, "test": 1}
    assert build_prompt_sets(CONFIG.validate_python(given), 0).notes
    used = {**given, "template": "{system}: {prompt}"}
    assert build_prompt_sets(CONFIG.validate_python(used), 0).notes == ()
