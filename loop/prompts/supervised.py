"""Load the supervised examples of `train.mix`: a file of prompts with responses, tokenised for the policy."""

from pathlib import Path
from typing import Any

from loop.errors import UserError
from loop.prompts.chat_template import Renderer
from loop.prompts.data_files import read_rows
from loop.prompts.row import Message, turns_of
from loop.store.files import sha256_of
from trainer.data import PreferenceData, PromptGroup, Response, Single

KEY = "train.mix.path"


def mix_digest(path: str) -> str:
    """sha256 of the file. UserError if there is none."""
    return file_digest(path, KEY, "set train.mix to null")


def file_digest(path: str, key: str, otherwise: str) -> str:
    """sha256 of a file that the settings name under `key`. UserError if there is none."""
    if not Path(path).is_file():
        raise UserError(f"{key}: there is no file {path}. Put it there, or {otherwise}.")
    return sha256_of(Path(path))


def read_mix(path: str, renderer: Renderer) -> PreferenceData:
    """One example per row; the trainer drops and counts empty ones. UserError names the row that cannot be read."""
    name, rows = read_rows(path, KEY)
    columns = set(rows.column_names)
    if "messages" not in columns and not {"prompt", "response"} <= columns:
        raise UserError(
            f"{KEY}: {name} has the columns {', '.join(rows.column_names) or 'none'}, expected prompt and response, or "
            "messages."
        )
    groups, relations = [], []
    for number, row in enumerate(rows, start=1):
        id, where = f"mix row {number}", f"{name}, row {number}"
        prompt, answer = _conversation(row, where)
        whole = bool(prompt and answer)
        asked = renderer.prompt(prompt, where) if prompt else []
        groups.append(PromptGroup(id, asked, (Response(id, renderer.answer(prompt, answer, where) if whole else []),)))
        relations.append(Single(id, id, good=True))
    return PreferenceData(tuple(groups), tuple(relations))


def _conversation(row: dict[str, Any], where: str) -> tuple[list[Message], list[Message]]:
    """The prompt's messages and the assistant's turn that answers them."""
    if row.get("messages") is None and "prompt" in row:
        prompt = turns_of(row["prompt"], "user", f"{where}, column 'prompt'")
        return prompt, turns_of(row.get("response"), "assistant", f"{where}, column 'response'")
    turns = turns_of(row["messages"], "user", f"{where}, column 'messages'")
    if turns and (len(turns) == 1 or turns[-1]["role"] != "assistant"):
        raise UserError(
            f"{where}, column 'messages': the conversation ends with the role {turns[-1]['role']!r} after "
            f"{len(turns)} turn(s), expected a prompt and the assistant's answer."
        )
    return turns[:-1], turns[-1:]
