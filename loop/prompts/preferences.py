"""Preference data in the known formats (FORMATS): turns each row into a prompt and two answers, as chat messages."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loop.config.preferences_section import PairColumns, PreferenceSource
from loop.config.prompts_section import PreferencePrompts
from loop.config.types import did_you_mean
from loop.errors import UserError
from loop.prompts.data_files import read_rows
from loop.prompts.row import Message, turns_of
from loop.prompts.sources import Opened, Source, read_hub, unused

TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(value: Any) -> bool:
    """Whether it is a text that begins with a Human turn, which an Assistant turn follows."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def turns_of_transcript(text: str) -> list[Message]:
    """The turns in order, without spaces around their texts. An empty last turn, which only asks for an answer, is
    dropped."""
    _, *parts = TURN.split("\n\n" + text.lstrip())
    turns = [
        {"role": ROLES[name], "content": content.strip()} for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    return turns if not turns or turns[-1]["content"] else turns[:-1]


def split_transcripts(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The prompt, up to where the two differ, and the two answers. All empty unless each answer is one turn of the
    assistant: some rows of the data end with a question, or differ earlier."""
    prompt, answers = chosen[:-1], [chosen[-1:], rejected[-1:]]
    asked = bool(prompt) and prompt[-1]["role"] == "user" and prompt == rejected[:-1]
    if not asked or any(answer[0]["role"] != "assistant" for answer in answers):
        return [], [[], []]
    return prompt, answers


FORMATS = (
    "Known formats: prompt, chosen and rejected as texts or lists of chat messages (TRL, UltraFeedback); chosen and "
    "rejected as whole conversations (lists of messages) without a prompt column; and as transcripts with Human: and "
    "Assistant: turns (HH)."
)


@dataclass(frozen=True, slots=True)
class Conversations:
    """A row: the prompt's messages, and the assistant's turns of either answer; empty where the row has nothing."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]

    @property
    def fault(self) -> str | None:
        """Why the row cannot be trained on, as the name of a count; None if it can."""
        if not (self.prompt and self.chosen and self.rejected):
            return "pairs_empty"
        if any(turn["role"] != "assistant" for turn in (*self.chosen, *self.rejected)):
            return "pairs_with_other_turns"
        return "pairs_identical" if self.chosen == self.rejected else None


@dataclass(frozen=True, slots=True)
class PairReader:
    """Reads rows by these columns; `section` is where the config names them. Without `chat`, texts are expected."""

    columns: PairColumns
    section: str
    chat: bool = True

    def check(self, name: str, present: Sequence[str]) -> None:
        """UserError if a column is missing."""
        columns = self.columns
        wanted = {"chosen_column": columns.chosen_column, "rejected_column": columns.rejected_column}
        if columns.margin_column is not None:
            wanted["margin_column"] = columns.margin_column
        for key, column in wanted.items():
            if column not in present:
                raise UserError(
                    f"{name} has no column {column!r} ({self.section}.{key}){did_you_mean(column, present) or '.'} "
                    f"Its columns: {', '.join(present) or 'none'}. {FORMATS}"
                )

    def conversations(self, row: dict[str, Any], where: str) -> Conversations:
        """What a row's columns mean. UserError if they do not fit together."""
        asked, names = self.columns.prompt_column, (self.columns.chosen_column, self.columns.rejected_column)
        if self.chat and asked not in row and all(is_transcript(row[name]) for name in names):
            prompt, answers = split_transcripts(*(turns_of_transcript(row[name]) for name in names))
            return Conversations(prompt, *answers)
        sides = {name: self._turns(row[name], "assistant", f"{where}, column {name!r}") for name in names}
        if asked in row:
            prompt = self._prompt(row[asked], f"{where}, column {asked!r}")
            answers = [turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns for turns in sides.values()]
        else:
            prompt, answers = self._common_beginning(row, list(sides.values()), where)
        for name, turns in zip(sides, answers, strict=True):
            if prompt and turns and (turns[0]["role"] != "assistant" or prompt[-1]["role"] == "assistant"):
                raise UserError(
                    f"{where}, column {name!r}: the answer begins with the role {turns[0]['role']!r} after a prompt "
                    f"that ends with the role {prompt[-1]['role']!r}, expected an assistant turn after another role's."
                )
        return Conversations(prompt, *answers)

    def _prompt(self, value: Any, where: str) -> list[Message]:
        if self.chat and is_transcript(value):
            return turns_of_transcript(value)
        return self._turns(value, "user", where)

    def _turns(self, value: Any, role: str, where: str) -> list[Message]:
        turns = turns_of(value, role, where)
        if isinstance(value, list) and turns and not self.chat:
            key = f"{self.section}.chat"
            raise UserError(f"{where} holds chat messages, but {key} is false: texts are expected. Set {key}=true.")
        return turns

    def _common_beginning(
        self, row: dict[str, Any], sides: Sequence[list[Message]], where: str
    ) -> tuple[list[Message], list[list[Message]]]:
        """Split two conversations into their common beginning, at most all turns but one, and the two answers."""
        columns = self.columns
        if any(isinstance(row[name], str) for name in (columns.chosen_column, columns.rejected_column)):
            raise UserError(
                f"{where}: there is no column {columns.prompt_column!r} ({self.section}.prompt_column)"
                f"{did_you_mean(columns.prompt_column, list(row)) or '.'} Only pairs of conversations bring their "
                f"prompt with them. The columns: {', '.join(row)}. {FORMATS}"
            )
        at, most = 0, min(map(len, sides)) - 1
        while at < most and sides[0][at] == sides[1][at]:
            at += 1
        if most >= 0 and at == 0:
            raise UserError(
                f"{where}: chosen and rejected have no common beginning that could be the prompt. Give whole "
                "conversations that differ in their answers only, or a prompt column."
            )
        return sides[0][:at], [side[at:] for side in sides]

    def margin(self, row: dict[str, Any], where: str) -> float | None:
        """Value of the margin column; None without one, or if it is empty. UserError if not a number."""
        name = self.columns.margin_column
        return None if name is None else number_in(row, name, where, "margin")


def number_in(row: dict[str, Any], column: str, where: str, what: str) -> float | None:
    """A column's number, None if the cell is empty. UserError if it is not a finite number."""
    value = row[column]
    if value in (None, ""):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}, column {column!r}: the {what} is {str(value)[:80]!r}, expected a finite number.")
    return number


PAIRS = "pairs"
"""The column of a prompt's row that holds its pairs."""
COUNTED = (
    *("pairs", "pairs_empty", "pairs_identical"),
    *("pairs_with_other_turns", "pairs_repeated", "pairs_both_ways"),
)
"""Counts of rows; the last three are shown if they occur. Repeated pairs, and pairs in both directions, are kept."""
TARGET = "target"
"""The column that holds its known answer."""
SCORES = ("score_chosen", "score_rejected")
"""Columns of UltraFeedback binarized; their difference is the margin if no column is named."""


def open_preferences(config: PreferencePrompts, seed: int, counts: dict[str, int]) -> Opened:
    """Prompts with their pairs; adds the numbers of pairs to `counts`."""
    main = read_pairs_of(config, "prompts", counts)
    if config.test_path is None and config.test_split is None:
        return main, None
    elsewhere = {"path": config.test_path, "split": config.test_split or config.split}
    return main, read_pairs_of(config.model_copy(update=elsewhere), "prompts", counts, key="test_path")


def read_pairs_of(data: PreferenceSource, section: str, counts: dict[str, int], *, key: str = "path") -> Source:
    """Every prompt with its pairs, in the order of the data. UserError names what cannot be read."""
    if data.path is not None:
        name, rows = read_rows(data.path, f"{section}.{key}")
    else:
        assert data.dataset is not None, "one of the two is given"
        otherwise = f"give a local copy in {section}.path"
        name, rows = read_hub(data.dataset, data.subset, data.split, section=section, otherwise=otherwise)
    reader = PairReader(data, section)
    reader.check(name, rows.column_names)
    found = Counter[str]()
    grouped = group_rows(reader, name, rows, found)
    if not grouped:
        dropped = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in found.items()) or "no rows"
        raise UserError(f"{section}: {name} holds no pair that can be trained on ({dropped}).")
    for what in COUNTED:
        if found[what] or what in COUNTED[:3]:
            counts[what] = counts.get(what, 0) + found[what]
    notes = unused(name, rows, {data.prompt_column, data.chosen_column, data.rejected_column})
    return Source(name, grouped, ("prompt", PAIRS, TARGET), "prompt", TARGET, notes)


def group_rows(
    reader: PairReader, name: str, rows: Iterable[dict[str, Any]], found: Counter[str]
) -> list[dict[str, Any]]:
    """Rows with the columns `prompt` (messages), `pairs` and `target`; `found` counts the pairs and those that were
    dropped."""
    prompts: dict[str, dict[str, Any]] = {}
    seen: set[tuple[str, str, str]] = set()
    for number, row in enumerate(rows, start=1):
        where = f"{name}, row {number}"
        talk = reader.conversations(row, where)
        found[talk.fault or "pairs"] += 1
        if talk.fault is None:
            key = json.dumps(talk.prompt), json.dumps(talk.chosen), json.dumps(talk.rejected)
            found["pairs_repeated"] += key in seen
            found["pairs_both_ways"] += (key[0], key[2], key[1]) in seen
            seen.add(key)
            pair = {"chosen": talk.chosen, "rejected": talk.rejected, "margin": margin_of(reader, row, where)}
            fresh = {"prompt": talk.prompt, PAIRS: [], TARGET: talk.chosen[-1]["content"]}
            prompts.setdefault(key[0], fresh)[PAIRS].append(pair)
    return list(prompts.values())


def margin_of(reader: PairReader, row: dict[str, Any], where: str) -> float | None:
    """How much better the chosen answer is: the margin column, or the difference of the scores; None if unknown."""
    if reader.columns.margin_column is not None or any(name not in row for name in SCORES):
        return reader.margin(row, where)
    chosen, rejected = (number_in(row, name, where, "score") for name in SCORES)
    return None if chosen is None or rejected is None else chosen - rejected
