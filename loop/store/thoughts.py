"""The thoughts in a run's responses: how a shard's judge saw them marked, and how long the answers after them are."""

from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from judges.types import USUAL, Thinking
from loop.store import tables
from loop.store.run_records import Json

NONE = "none"
"""Recorded for a judge that takes the whole response as the answer."""


def recorded(thinking: Thinking | None) -> Json:
    """What a judge's fingerprint says of thoughts: nothing for the usual tags."""
    if thinking == USUAL:
        return {}
    return {"thinking": NONE if thinking is None else asdict(thinking)}


def thinking_of(fingerprint: Json) -> Thinking | None:
    """How the judge with this fingerprint sees thoughts marked."""
    found = fingerprint.get("thinking", {})
    return None if found == NONE else Thinking(**found)


def thinking_in(verdicts: Path) -> Thinking | None:
    """How the judge of this shard saw thoughts marked."""
    return thinking_of(tables.notes_of(verdicts).get("judge", {}))


def answer_start(text: str, thinking: Thinking | None) -> int:
    """Where the answer begins in a text; its end if a thought is not closed."""
    answer = text if thinking is None else thinking.answer(text)
    return len(text) - len(answer or "")


def answer_lengths(responses: pa.Table, verdicts: Path) -> list[int]:
    """Tokens of each answer in a shard (columns `text` and `token_ids`): of the response's tokens as large a share as
    of its characters. A response without a thought, or with one that is not closed, counts in full."""
    thinking, tokens = thinking_in(verdicts), pc.list_value_length(responses["token_ids"]).to_pylist()
    if thinking is None:
        return list(tokens)
    texts = responses["text"].to_pylist()
    return [_length(text or "", n, thinking) for text, n in zip(texts, tokens, strict=True)]


def _length(text: str, tokens: int, thinking: Thinking) -> int:
    answer = thinking.answer(text)
    return tokens if answer is None or answer == text else round(tokens * len(answer) / len(text))
