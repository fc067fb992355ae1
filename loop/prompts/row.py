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
    """A text as one turn of this role, chat messages as they are; an empty value as none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(map(_is_message, value)):
        raise UserError(
            f"{where}: expected a text or a list of messages such as {{role: user, content: …}}; got "
            f"{str(value)[:120]}."
        )
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


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
