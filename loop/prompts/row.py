"""A prompt with its messages, target and columns, and its table on disk."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loop.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

Message = dict[str, str]
"""`role` and `content`."""


def turns_of(value: Any, role: str, where: str) -> list[Message]:
    """A text as one turn of this role, chat messages as they are; none if the last of them has no text."""
    value = messages_in(value)
    turns = [{"role": role, "content": value}] if isinstance(value, str) else value
    if value is None or value == []:
        return []
    if not isinstance(turns, list) or not all(map(_is_message, turns)):
        raise UserError(
            f"{where}: expected a text or a list of messages such as {{role: user, content: …}}; got "
            f"{str(value)[:120]}."
        )
    turns = [{"role": turn["role"], "content": turn.get("content") or ""} for turn in turns]
    return turns if turns[-1]["content"].strip() else []


def messages_in(value: Any) -> Any:
    """A single message, or a conversation as JSON text, as a list of messages; anything else as it is."""
    if isinstance(value, dict) and _is_message(value):
        return [value]
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            found = json.loads(value)
        except ValueError:
            return value
        return found if all(map(_is_message, found)) else value
    return value


def _is_message(value: Any) -> bool:
    """Whether the value has a role and a text; a message that only calls tools has none."""
    content = value.get("content", "") if isinstance(value, dict) else 0
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(content or "", str)


TUPLE = "__tuple__"
"""Key that marks a tuple in the stored columns."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt: chat messages (role, content), the known answer, and every column of its data row."""

    id: str
    messages: list[dict[str, str]]
    target: str | None
    columns: dict[str, Any]


def prompt_id(messages: Sequence[Mapping[str, str]]) -> str:
    """16 hex digits of the sha256 of the messages as canonical JSON."""
    text = json.dumps(list(messages), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def write_table(rows: Sequence[PromptRow]) -> "pa.Table":
    """Arrow table of prompts: id, target, and messages and columns as JSON texts (tuples marked)."""
    import pyarrow as pa

    return pa.table(
        {
            "id": pa.array([row.id for row in rows], pa.string()),
            "messages": pa.array([json.dumps(row.messages, ensure_ascii=False) for row in rows], pa.string()),
            "target": pa.array([row.target for row in rows], pa.string()),
            "columns": pa.array([json.dumps(_marked(row.columns), ensure_ascii=False) for row in rows], pa.string()),
        }
    )


def read_table(table: "pa.Table") -> list[PromptRow]:
    """The prompts of a table that `write_table` made."""
    return [
        PromptRow(row["id"], json.loads(row["messages"]), row["target"], _unmarked(json.loads(row["columns"])))
        for row in table.to_pylist()
    ]


def _marked(value: Any) -> Any:
    """JSON has no tuples, but some reasoning-gym verifiers compare with the ones in their metadata."""
    if isinstance(value, tuple):
        return {TUPLE: [_marked(item) for item in value]}
    if isinstance(value, list):
        return [_marked(item) for item in value]
    return {key: _marked(item) for key, item in value.items()} if isinstance(value, dict) else value


def _unmarked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {TUPLE}:
        return tuple(_unmarked(item) for item in value[TUPLE])
    return {key: _unmarked(item) for key, item in value.items()}
