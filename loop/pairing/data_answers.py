"""Gold and bad answers from the prompts' data columns: collect the texts to tokenise, then read them back as answers
that pairing rules can use."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa

from loop.config.pairs_section import PairsConfig
from loop.config.rule_table import RULES
from loop.errors import UserError
from loop.pairing.io import keys_of
from loop.pairing.iteration import quotas
from loop.pairing.records import Answers, Judged
from loop.prompts.chat_template import Renderer
from loop.prompts.preferences import PAIRS
from loop.prompts.row import Message, PromptRow, turns_of
from loop.store import tables
from trainer.data import Pair

GOLD, NEGATIVE = "gold", "negative"


@dataclass(frozen=True, slots=True)
class AnswerText:
    """An answer from a data row; `role` is gold or negative, or names a given answer."""

    prompt: PromptRow
    role: str
    text: str
    turns: tuple[Message, ...] = ()
    """The answer as messages, if it is more than one text."""

    @property
    def response_id(self) -> str:
        """Its id among the prompt's responses."""
        return f"{self.prompt.id}/{self.role}"


def wanted(settings: PairsConfig) -> bool:
    """Whether the rule uses answers from the data."""
    return RULES[settings.rule].gold or settings.gold_fallback or settings.negative_column is not None


def texts_of(rows: Iterable[PromptRow], settings: PairsConfig) -> list[AnswerText]:
    """The non-empty answers of the prompts. UserError for a missing column."""
    found = []
    for row in rows:
        if RULES[settings.rule].gold or settings.gold_fallback:
            gold = row.target if settings.gold_column is None else _cell(row, settings.gold_column, "gold_column")
            found.append(AnswerText(row, GOLD, _text(gold, row, "gold_column")))
        if settings.negative_column is not None:
            bad = _cell(row, settings.negative_column, "negative_column")
            found.append(AnswerText(row, NEGATIVE, _text(bad, row, "negative_column")))
    return [answer for answer in found if answer.text.strip()]


def _cell(row: PromptRow, column: str, key: str) -> Any:
    if column not in row.columns:
        raise UserError(
            f"pairs.{key}: the prompts have no column {column!r}; they have {', '.join(row.columns) or 'none'}."
        )
    return row.columns[column]


def _text(value: Any, row: PromptRow, key: str) -> str:
    """The answer's text; of a conversation the assistant's reply to the prompt."""
    if value is None or value == []:
        return ""
    if not isinstance(value, list):
        return str(value)
    turns = turns_of(value, "assistant", f"pairs.{key} of prompt {row.id}")
    asked = [at for at, turn in enumerate(turns[:-1]) if turn == row.messages[-1]]
    reply = turns[asked[-1] + 1] if asked else None
    if reply is None or reply["role"] != "assistant":
        raise UserError(
            f"pairs.{key}: the conversation in the data row of prompt {row.id} has no answer to its prompt "
            f"({row.messages[-1]['content'][:80]!r}); name a column with answers to these prompts."
        )
    return reply["content"]


def render_answers(texts: Sequence[AnswerText], renderer: Renderer) -> pa.Table:
    """Prompts and answers in the policy's tokens, each answer with its end token; without those that are dropped."""
    rows = []
    for one in texts:
        where = f"The {one.role} answer of prompt {one.prompt.id}"
        turns = one.turns or turns_of(one.text, "assistant", where)
        if ids := renderer.answer(one.prompt.messages, turns, where):
            asked = renderer.prompt(one.prompt.messages, where)
            given = {"prompt_id": one.prompt.id, "response_id": one.response_id, "text": one.text}
            rows.append({**given, "prompt_token_ids": asked, "token_ids": ids})
    return pa.Table.from_pylist(rows, schema=tables.ANSWERS)


def read_answers(path: Path, settings: PairsConfig) -> dict[str, Answers]:
    """The answers of each prompt as rules see them."""
    table = tables.read(path, ["prompt_id", "response_id", "token_ids"])
    score = None if RULES[settings.rule].unscored else settings.score_of_gold
    found: dict[str, dict[str, Judged]] = {}
    ids = zip(table["prompt_id"].to_pylist(), table["response_id"].to_pylist(), strict=True)
    for (prompt_id, id), key in zip(ids, keys_of(table["token_ids"]), strict=True):
        role = id.removeprefix(f"{prompt_id}/")
        judged = Judged(id, key, "given", score if role == GOLD else None, "stop", len(key) // 4)
        found.setdefault(prompt_id, {})[role] = judged
    return {prompt_id: Answers(of.get(GOLD), of.get(NEGATIVE)) for prompt_id, of in found.items()}


RULE = "given"
"""Rule name of pairs that come from the data."""


@dataclass(frozen=True, slots=True)
class GivenPair:
    """One pair of the data."""

    chosen: AnswerText
    rejected: AnswerText
    margin: float | None

    @property
    def made(self) -> Pair:
        """The pair as rules make them."""
        return Pair(self.chosen.prompt.id, self.chosen.response_id, self.rejected.response_id, margin=self.margin)


def given_pairs(row: PromptRow) -> Iterator[GivenPair]:
    """The pairs of a prompt, in the order of the data."""
    for pair in row.columns[PAIRS]:
        yield GivenPair(_answer(row, pair["chosen"]), _answer(row, pair["rejected"]), pair["margin"])


def _answer(row: PromptRow, turns: Sequence[Message]) -> AnswerText:
    digest = sha256(json.dumps(list(turns), sort_keys=True).encode()).hexdigest()[:12]
    text = "\n\n".join(turn["content"] for turn in turns)
    return AnswerText(row, f"given-{digest}", text, tuple(turns))


@dataclass(frozen=True, slots=True)
class Tokenised:
    """What became of given answers when they were tokenised."""

    dropped: frozenset[str]
    """Ids of the answers that are left out."""
    changed: int
    """Answers that the chat template changes."""
    note: str | None
    """The same for a person; None if it changes none."""

    def without_dropped(self, pairs: Iterable[GivenPair]) -> list[GivenPair]:
        """The pairs of which both answers are there."""
        return [pair for pair in pairs if not {pair.chosen.response_id, pair.rejected.response_id} & self.dropped]


def answers_of(pairs: Iterable[GivenPair]) -> list[AnswerText]:
    """The distinct answers of the pairs."""
    return list({one.response_id: one for pair in pairs for one in (pair.chosen, pair.rejected)}.values())


def within_cap(rows: Sequence[PromptRow], most: int | None, iteration: int) -> list[GivenPair]:
    """The pairs of the prompts, at most `most` in total, evenly over the prompts."""
    pairs = {row.id: list(given_pairs(row)) for row in rows}
    kept = quotas({id: len(of_prompt) for id, of_prompt in pairs.items()}, most, iteration)
    return [pair for id, of_prompt in pairs.items() for pair in of_prompt[: kept[id]]]
