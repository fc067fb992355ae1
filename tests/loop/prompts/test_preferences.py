"""Preference data: which messages a row of any known format becomes, and what is refused with the formats by name."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.config.preferences_section import PairColumns
from loop.errors import UserError
from loop.prompts.preferences import Conversations, PairReader, is_transcript, split_transcripts, turns_of_transcript


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


READ = PairReader(PairColumns(), "prompts")
EMPTY = Conversations([], [], [])
ASKED = [user("2+2?")]
SAME = Conversations(ASKED, [assistant("4")], [assistant("5")])
FORMS: dict[str, dict[str, Any]] = {
    "TRL, texts": {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    "TRL, messages": {"prompt": ASKED, "chosen": [assistant("4")], "rejected": [assistant("5")]},
    "TRL, implicit prompt": {"chosen": [*ASKED, assistant("4")], "rejected": [*ASKED, assistant("5")]},
    "UltraFeedback binarized": {"prompt": "2+2?", "prompt_id": "x", "messages": [], "score_chosen": 8.0}
    | {"chosen": [*ASKED, assistant("4")], "rejected": [*ASKED, assistant("5")]},
    "HH": {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"},
    "HH with the prompt apart": {"prompt": "\n\nHuman: 2+2?\n\nAssistant:", "chosen": "4", "rejected": "5"},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_format_says_the_same_pair(form: str) -> None:
    assert READ.conversations(FORMS[form], "row 1") == SAME


def test_the_last_turn_of_a_transcript_is_the_answer_and_all_before_it_the_prompt() -> None:
    before = "\n\nHuman: Name a prime.\n\nAssistant: 7\n\nHuman: Another:\n\nnot 7"
    row = {"chosen": f"{before}\n\nAssistant: 11", "rejected": f"{before}\n\nAssistant: 12"}
    prompt = [user("Name a prime."), assistant("7"), user("Another:\n\nnot 7")]
    assert READ.conversations(row, "row 1") == Conversations(prompt, [assistant("11")], [assistant("12")])


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: c\n\nAssistant: d"),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "\n\nHuman: a\n\nAssistant: b\n\nHuman: d"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"),
        ("\n\nHuman: a\n\nAssistant:", "\n\nHuman: a\n\nAssistant: b"),
    ],
)
def test_transcripts_that_do_not_differ_in_one_answer_alone_give_nothing(chosen: str, rejected: str) -> None:
    assert READ.conversations({"chosen": chosen, "rejected": rejected}, "row 1") == EMPTY


words = st.text("abc :\n", min_size=1).map(str.strip).filter(bool).filter(lambda text: "\n\n" not in text)


@given(st.lists(st.tuples(words, words), min_size=1), words)
def test_a_transcript_is_read_back_turn_by_turn(talk: list[tuple[str, str]], last: str) -> None:
    turns = [turn for asked, said in talk for turn in (user(asked), assistant(said))]
    names = {"user": "Human", "assistant": "Assistant"}
    text = "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in turns)
    assert is_transcript(text)
    assert turns_of_transcript(text) == turns
    other = [*turns[:-1], assistant(last)]
    assert split_transcripts(turns, other) == (turns[:-1], [turns[-1:], other[-1:]])


def test_an_unknown_format_is_refused_with_the_known_ones_and_the_columns() -> None:
    with pytest.raises(UserError) as caught:
        READ.check("pairs.jsonl", ["question", "better", "worse"])
    text = str(caught.value)
    assert "pairs.jsonl has no column 'chosen' (prompts.chosen_column)" in text
    assert "Its columns: question, better, worse. Known formats: " in text
    assert all(name in text for name in ("TRL", "UltraFeedback", "HH"))


def test_answers_without_a_prompt_are_refused_with_the_known_formats() -> None:
    with pytest.raises(UserError, match=r"row 3: there is no column 'prompt'.*The columns: chosen, rejected\. Known f"):
        READ.conversations({"chosen": "4", "rejected": "5"}, "row 3")
