"""Turns a row of columns into a prompt: chat messages from the template, or the row's own messages, and the answer."""

import json
import math
import string
from collections.abc import Mapping
from datetime import date, time
from typing import Any

from loop.config.prompts_section import PromptsBase
from loop.errors import UserError
from loop.prompts.row import messages_in
from loop.prompts.sources import Source


def messages_of(
    config: PromptsBase, source: Source, row: Mapping[str, Any], number: int
) -> list[dict[str, str]] | None:
    """Chat messages of a row: system, solved examples, the user's turn; None if there is no question."""
    value = messages_in(row[source.prompt_column])
    if value is None or value == [] or not str(value).strip() or _is_nan(value):
        return None
    if isinstance(value, Mapping | bytes):
        raise UserError(
            f"{source.name}, row {number + 1}, column {source.prompt_column!r}: expected a text or chat messages, got "
            f"{str(value)[:120]}. Name a text column in prompts.prompt_column."
        )
    if isinstance(value, list):
        turns = _checked_turns(config, source, value, number)
    else:
        turns = [{"role": "user", "content": _fill(config.template, source, row, number)}]
    if not turns[-1]["content"].strip():
        return None
    head = [turns.pop(0)] if turns[0]["role"] == "system" else []
    if config.system is not None:
        if head:
            raise UserError(
                f"{source.name}, row {number + 1}: the messages begin with a system message, and prompts.system is set "
                f"too; set prompts.system to null or remove the system messages from the data."
            )
        head = [{"role": "system", "content": config.system}]
    shown = [
        {"role": role, "content": content}
        for example in config.few_shot
        for role, content in (("user", example.prompt), ("assistant", example.response))
    ]
    return [*head, *shown, *turns]


def _checked_turns(config: PromptsBase, source: Source, value: list[Any], number: int) -> list[dict[str, str]]:
    where = f"{source.name}, row {number + 1}, column {source.prompt_column!r}"
    if config.changes("template"):
        raise UserError(
            f"{where} holds chat messages, which are taken as they are; prompts.template makes a message out of text "
            f"columns. Remove prompts.template, or name a text column in prompts.prompt_column."
        )
    turns = []
    for turn in value:
        role, content = (turn.get("role"), turn.get("content") or "") if isinstance(turn, Mapping) else (None, None)
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise UserError(
                f"{where}: expected a text or a list of messages such as {{role: user, content: …}} with the roles "
                f"system, user and assistant; got {str(turn)[:120]}."
            )
        turns.append({"role": str(role), "content": content})
    if turns[-1]["role"] != "user":
        raise UserError(
            f"{where}: the messages end with the role {turns[-1]['role']!r}; a prompt ends with the user's."
        )
    return turns


def check_template(template: str, source: Source) -> set[str]:
    """The columns that the template names. UserError for a name that is neither a column nor `prompt`."""
    advice = "Columns go in braces, e.g. {question}; a brace of the text itself is written twice, {{ or }}."
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"prompts.template {template!r} cannot be read: {error}. {advice}") from error
    columns = {name.split(".")[0].split("[")[0] for name in names}
    for column in sorted(columns):
        if column not in source.columns and column != "prompt":
            what = f"names {{{column}}}, which is no column of" if column else "has empty braces; name a column of"
            raise UserError(
                f"prompts.template {template!r} {what} {source.name}. "
                f"Its columns: {', '.join(source.columns)}. {advice}"
            )
    return columns


class _Columns(dict[str, Any]):
    """A row as a template sees it: a missing value reads as an empty text, 18.0 as 18."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return "" if value is None or _is_nan(value) else whole(value)


def _fill(template: str, source: Source, row: Mapping[str, Any], number: int) -> str:
    columns = _Columns(row, prompt=row[source.prompt_column])
    try:
        return template.format_map(columns)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"prompts.template {template!r} does not fit row {number + 1} of {source.name}: "
            f"{type(error).__name__}: {error}. The row: {str(dict(row))[:300]}."
        ) from error


def target_of(source: Source, row: Mapping[str, Any]) -> str | None:
    """The known answer as text; an empty one is none."""
    value = row[source.target_column] if source.target_column else None
    if value is None or value == "" or _is_nan(value):
        return None
    return value if isinstance(value, str) else json.dumps(whole(value), default=str, ensure_ascii=False)


def whole(value: Any) -> Any:
    """A whole number without its .0: a table with 18 and 0.5 in one column stores 18.0."""
    if isinstance(value, list):
        return [whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def plain_columns(source: Source, row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The row's columns, dates as text; UserError if one of them cannot be stored as JSON."""
    columns: dict[str, Any] = {}
    for name, value in row.items():
        try:
            columns[str(name)] = _plain(value)
        except TypeError as error:
            raise UserError(
                f"{source.name}, row {number + 1}, column {name!r}: {error}; prefloop works with texts, numbers, lists "
                f"and mappings. Remove that column from the data."
            ) from error
    return columns


def _plain(value: Any) -> Any:
    if value is None or _is_nan(value):
        return None
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, date | time):
        return value.isoformat()
    raise TypeError(f"it holds a {type(value).__name__}")
