"""Sample and pair browser of the report: turn a run's tables into pages of data.

A book is one prompt set of one iteration; its pages hold some prompts each, with every response, verdict, reason and
token. Pages are split the same way in every iteration, so a gate or test prompt is on the same page of each book.
Only one page and one shard's columns are kept in memory.
"""

import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from loop.format import CONTROLS
from loop.pairing.data_answers import read_answers
from loop.pairing.io import read_judged
from loop.pairing.one_prompt import NO_ANSWERS, build_prompt
from loop.pairing.records import Judged
from loop.prompts.row import PromptRow, read_table
from loop.report.data import SETS, RunData
from loop.store import tables
from loop.store.model_refs import model_of
from loop.store.run_records import Json
from loop.store.stage import is_further
from loop.store.thoughts import answer_start, thinking_in

FILE = "tokenizer.json"
PER_PAGE = 64
"""Prompts on a page."""
ESCAPED = {ord(letter): f"\\u{ord(letter):04x}" for letter in (*"<>&", *map(chr, CONTROLS))}
"""Characters that could end a script, begin markup or turn the direction of text, with their JSON escapes. In JSON
they occur only in strings."""
SAMPLED = ("prompt_id", "response_id", "temperature", "token_ids", "text", "finish_reason", "logprobs")
JUDGED = ("response_id", "kind", "score", "extracted", "why", "well_formed")
"""Columns of a response and of its verdict that a page shows."""
TokenTexts = Callable[[int], str]
Prompts = Callable[[str], Mapping[str, PromptRow]]
"""The prompts of a set by id; they are read when a page is made."""
Shard = list[tuple[Path, Path]]
"""Files of responses, each with its file of verdicts."""


def token_texts(data: RunData) -> TokenTexts:
    """A function from token id to text, by the tokenizer of the run, which is read at the first call."""

    @cache
    def tokenizer() -> Any:
        path = next((folder / FILE for folder in _folders(data) if (folder / FILE).exists()), None)
        if path is None:
            return None
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise tables.damaged(path, str(error)) from error

    @cache
    def text(token: int) -> str:
        found = tokenizer()
        shown = "" if found is None else str(found.decode([token], skip_special_tokens=False))
        return shown or f"[{token}]"

    return text


def _folders(data: RunData) -> list[Path]:
    """Folders of the run's models, the base model last."""
    own = [data.run.stage(it.number, "train").model for it in data.rounds]
    base = [model_of(data.run, it.policy).path for it in data.iterations if it.number == 0 and it.policy]
    return [*own, *base]


def to_script_json(value: object) -> str:
    """JSON that is safe inside a script element, whatever text it holds; browser.js shows control characters."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(ESCAPED)


@dataclass(frozen=True, slots=True)
class Page:
    """Some prompts of a book, as JSON that is safe in a script element."""

    name: str
    prompts: int
    responses: int
    text: str


class Book:
    """One prompt set of one iteration."""

    def __init__(self, data: RunData, iteration: int, which: str, prompts: Prompts, texts: TokenTexts):
        self.data, self.iteration, self.which, self.prompts, self.texts = data, iteration, which, prompts, texts

    @property
    def name(self) -> str:
        """Prefix of the names of its pages."""
        return f"{self.iteration:03d}-{self.which}"

    @property
    def fingerprint(self) -> str | None:
        """Identifies the pages' sources; None while they may change."""
        it = self.data.iteration(self.iteration)
        stages = ("sample", "judge", "pair") if self.which == "train" else ("eval",)
        if it is None or any(stage not in it.manifests for stage in stages):
            return None
        return tables.digest([PER_PAGE, *(it.manifests[stage].digest for stage in stages)])

    def pages(self) -> Iterator[Page]:
        """The pages, in the order of the shards."""
        number = 0
        for shard in self._shards():
            judged = _verdicts(shard)
            for groups, reasons in self._of_shard(shard):
                rows = [row for group in groups.values() for row in group]
                known = sorted({token for row in rows for token in row["token_ids"]})
                prompts = [self._prompt(id, group, judged, reasons) for id, group in groups.items()]
                whole = {"prompts": prompts, "tokens": {str(token): self.texts(token) for token in known}}
                yield Page(f"{self.name}-{number:03d}", len(prompts), len(rows), to_script_json(whole))
                number += 1

    def _shards(self) -> Iterator[Shard]:
        """The files of each shard, followed by those of the second sampling phase with responses to its prompts."""
        files = self.data.run.judged_shards(self.iteration, self.which)
        further = [(pair, _prompts_of(pair[0])) for pair in files if is_further(pair[0])]
        for pair in files:
            if not is_further(pair[0]):
                ids = _prompts_of(pair[0]) if further else set()
                yield [pair, *(more for more, held in further if held & ids)]

    def _of_shard(self, shard: Shard) -> Iterator[tuple[dict[str, list[Json]], dict[str, str]]]:
        """The shard's responses by prompt, of PER_PAGE prompts at a time, and the reasons of all responses."""
        table = pa.concat_tables(tables.read(responses, SAMPLED) for responses, _ in shard)
        ids = list(dict.fromkeys(tables.read(shard[0][0], ["prompt_id"])["prompt_id"].to_pylist()))
        rows: dict[str, list[int]] = {id: [] for id in ids}
        for row, prompt_id in enumerate(table["prompt_id"].to_pylist()):
            if prompt_id in rows:
                rows[prompt_id].append(row)
        reasons = self._reasons(shard, rows)
        for start in range(0, len(ids), PER_PAGE):
            wanted = ids[start : start + PER_PAGE]
            sampled = iter(table.take([row for id in wanted for row in rows[id]]).to_pylist())
            yield {id: [next(sampled) for _ in rows[id]] for id in wanted}, reasons

    def _prompt(self, id: str, group: Sequence[Json], judged: Mapping[str, Json], reasons: Mapping[str, str]) -> Json:
        """A prompt under short names for the script: q text, t target, r responses. In its pairs, -1 stands for a
        response that is not the prompt's own."""
        row = self.prompts(self.which).get(id)
        places = {response["response_id"]: place for place, response in enumerate(group)}
        trained = [(places.get(c, -1), places.get(r, -1)) for c, r in self._trained.pairs.get(id, [])]
        pairs = [pair for pair in trained if pair != (-1, -1)]  # those are replayed or from the data
        shown = [_response(one, judged.get(one["response_id"]), reasons.get(one["response_id"])) for one in group]
        return {"id": id, "q": prompt_text(row), "t": row.target if row else None, "pairs": pairs, "r": shown}

    def _reasons(self, shard: Shard, ids: Container[str]) -> dict[str, str]:
        """Why each response of a training shard was used or not; the pair stage's table decides what was used."""
        it = self.data.iteration(self.iteration)
        if self.which != "train" or it is None or "pair" not in it.manifests:
            return {}
        config = self.data.settings(self.iteration)
        found: dict[str, str] = {}
        path = self.data.run.stage(self.iteration, "pair").answers
        answers = read_answers(path, config.pairs) if path.exists() else {}
        groups: dict[str, list[Judged]] = {}
        for responses, verdicts in shard:
            for id, members in read_judged(responses, verdicts):
                groups.setdefault(id, []).extend(members)
        for id, judged in groups.items():
            if id not in ids:
                continue
            seed = f"{config.seed}|{self.iteration}"
            found |= build_prompt(id, judged, config.pairs, answers=answers.get(id, NO_ANSWERS), seed=seed).reasons
        used = self._trained.used
        return {id: "used" if id in used else "over_cap" if why == "used" else why for id, why in found.items()}

    @cached_property
    def _trained(self) -> "TrainedIds":
        return read_trained(self.data, self.iteration) if self.which == "train" else TrainedIds(frozenset(), {})


def _response(row: Json, verdict: Json | None, reason: str | None) -> Json:
    """A response under short names for the script: h thought, x text after it, g greedy, c cut off, p tokens, l
    log-probs (hundredths of a nat, negated), u why it was used in training or not, k kind, s score, e extracted, w why,
    f well formed."""
    found: Json = {
        "x": row["text"],
        "g": int(row["temperature"] == 0),
        "c": int(row["finish_reason"] == "length"),
        "p": row["token_ids"],
        "l": [round(-100 * value) if value == value and value > -1e6 else None for value in row["logprobs"] or []],
        "u": reason,
    }
    if verdict is not None:
        found |= {"k": verdict["kind"], "s": verdict["score"], "e": verdict["extracted"]}
        found |= {"w": verdict["why"], "f": verdict["well_formed"]}
        start = answer_start(row["text"] or "", verdict["thinking"])
        found |= {"x": row["text"][start:], "h": row["text"][:start]} if start else {}
    return {name: value for name, value in found.items() if value not in (None, "")} | {"x": found["x"] or ""}


def _verdicts(shard: Shard) -> dict[str, Json]:
    """The verdicts of a shard's files, by response."""
    read = [(thinking_in(path), tables.read(path, JUDGED).to_pylist()) for _, path in shard if path.exists()]
    return {row["response_id"]: row | {"thinking": thinking} for thinking, rows in read for row in rows}


def _prompts_of(responses: Path) -> set[str]:
    return set(tables.read(responses, ["prompt_id"])["prompt_id"].to_pylist())


@dataclass(frozen=True, slots=True)
class TrainedIds:
    """An iteration's training data: ids of responses, and by prompt the pairs (chosen, rejected)."""

    used: frozenset[str]
    pairs: dict[str, list[tuple[str, str]]]


def read_trained(data: RunData, iteration: int) -> TrainedIds:
    """Read whichever table the pair stage wrote; empty until it is finished."""
    folder = data.run.stage(iteration, "pair")
    if folder.pairs.exists():
        columns = tables.read(folder.pairs, ["prompt_id", "chosen_id", "rejected_id"]).to_pydict()
        pairs: dict[str, list[tuple[str, str]]] = {}
        for id, chosen, rejected in zip(*columns.values(), strict=True):
            pairs.setdefault(id, []).append((chosen, rejected))
        return TrainedIds(frozenset(columns["chosen_id"]) | frozenset(columns["rejected_id"]), pairs)
    if (path := folder.relations("singles")).exists():
        return TrainedIds(frozenset(tables.read(path, ["response_id"])["response_id"].to_pylist()), {})
    if (path := folder.relations("groups")).exists():
        rows = tables.read(path, ["response_ids"])["response_ids"].to_pylist()
        return TrainedIds(frozenset(id for row in rows for id in row), {})
    return TrainedIds(frozenset(), {})


def prompt_text(row: PromptRow | None) -> str:
    """A prompt as one text; if it has several messages, with their roles."""
    if row is None:
        return "(this prompt is not in the run's prompt sets)"
    if len(row.messages) == 1:
        return row.messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in row.messages)


def books(data: RunData) -> list[Book]:
    """A book for every set of every iteration that has responses, the training sets first."""
    texts, prompts = token_texts(data), cache(partial(_prompts, data))
    return [
        Book(data, it.number, which, prompts, texts)
        for which in SETS
        for it in data.iterations
        if which in it.sets or data.run.judged_shards(it.number, which)
    ]


def _prompts(data: RunData, which: str) -> dict[str, PromptRow]:
    path = data.run.prompts().path / f"{which}.parquet"
    return {row.id: row for row in read_table(tables.read(path))} if path.exists() else {}
