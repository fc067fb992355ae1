"""Read single prompts of an iteration with their responses, verdicts and pairs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from loop.errors import UserError
from loop.pairing.data_answers import given_pairs
from loop.prompts.row import PromptRow, read_table
from loop.store import tables
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json
from loop.store.stage import is_further

PairIds = tuple[str, str]
"""Ids of the chosen and the rejected response."""


@dataclass(frozen=True, slots=True)
class VerdictRecord:
    """One row of a verdict table."""

    prompt_id: str
    response_id: str
    judge: str
    version: str
    kind: str
    """score, abstain or error."""
    score: float | None
    extracted: str | None
    """The part of the response that was scored."""
    why: str | None
    well_formed: bool | None
    parts: str | None
    """Scores of the parts of a combined judge, or games of a pairwise one, as JSON."""


@dataclass(frozen=True, slots=True)
class ResponseRecord:
    """A response to a prompt. One that comes from the data has neither temperature nor verdict."""

    prompt_id: str
    response_id: str
    temperature: float | None
    """0: greedy."""
    text: str
    finish_reason: str
    verdict: VerdictRecord | None


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """A prompt with everything that one iteration made of it."""

    prompt_id: str
    prompt: str
    """Text of the last message."""
    target: str | None
    responses: list[ResponseRecord]
    pairs: list[PairIds]


@dataclass(frozen=True, slots=True)
class GreedyAnswer:
    """The greedy response to a test prompt, with its score."""

    prompt: str
    target: str | None
    text: str
    right: bool
    score: float
    extracted: str | None
    why: str | None

    def as_json(self) -> Json:
        """Plain values without the prompt."""
        verdict = {"score": self.score, "extracted": self.extracted, "why": self.why}
        return {"text": self.text, "right": self.right, "verdict": verdict}


def collect_prompts(
    run: RunFolder, k: int, which: str, containing: str | None = None, limit: int | None = None
) -> list[PromptRecord]:
    """Up to `limit` prompts of a set with the text in id or last message; answers from the data come last."""
    pairs = _pairs(run, k) if which == "train" else {}
    sampled, given = _sampled_prompts(run, k, which, pairs), _given_prompts(run, k, which, pairs)
    wanted = (
        one
        for one in chain(sampled, given)
        if containing is None or containing in one.prompt_id or containing in one.prompt
    )
    return list(islice(wanted, limit))


def greedy_answers(run: RunFolder, k: int, correct_at: float) -> dict[str, GreedyAnswer]:
    """The scored greedy responses to the test prompts, by prompt id; right from a score of `correct_at` on."""
    found = {}
    for one in _sampled_prompts(run, k, "test", {}):
        for response in one.responses:
            verdict = response.verdict
            if response.temperature == 0 and verdict is not None and verdict.kind == "score":
                assert verdict.score is not None, response.response_id
                right, why = verdict.score >= correct_at, verdict.why
                found[one.prompt_id] = GreedyAnswer(
                    one.prompt, one.target, response.text, right, verdict.score, verdict.extracted, why
                )
    return found


def _sampled_prompts(run: RunFolder, k: int, which: str, pairs: Mapping[str, list[PairIds]]) -> Iterator[PromptRecord]:
    """The prompts of the first phase of sampling, each with its responses of both phases, shard by shard."""
    rows = {row.id: row for row in read_table(tables.read(_prompt_file(run, which)))}
    shards = run.judged_shards(k, which)
    further = [_groups(*shard) for shard in shards if is_further(shard[0])]
    for shard in shards:
        if is_further(shard[0]):
            continue
        for prompt_id, responses in _groups(*shard).items():
            responses += [one for groups in further for one in groups.get(prompt_id, [])]
            yield _record(rows[prompt_id], responses, pairs.get(prompt_id, []))


def _record(row: PromptRow, responses: list[ResponseRecord], pairs: list[PairIds]) -> PromptRecord:
    return PromptRecord(row.id, row.messages[-1]["content"], row.target, responses, pairs)


def _given_prompts(run: RunFolder, k: int, which: str, pairs: Mapping[str, list[PairIds]]) -> Iterator[PromptRecord]:
    """Prompts whose answers come from the data: those of the iteration's pairs, or held-out pairs without a judge."""
    offline = run.stage(k, "pair").offline_prompts
    files = [_prompt_file(run, which), *([offline] if which == "train" and offline.exists() else [])]
    rows = {row.id: row for path in files for row in read_table(tables.read(path))}
    answers: dict[str, dict[str, ResponseRecord]] = {}
    for path in _files_of_given_answers(run, k, which):
        for prompt_id, response_id, text in _columns(path, "prompt_id", "response_id", "text"):
            answer = ResponseRecord(prompt_id, response_id, None, text, "stop", None)
            answers.setdefault(prompt_id, {})[response_id] = answer
    for prompt_id, members in answers.items():
        row, ids = rows[prompt_id], pairs.get(prompt_id, [])
        if which != "train":
            ids = [(pair.chosen.response_id, pair.rejected.response_id) for pair in given_pairs(row)]
        if any(set(pair) <= members.keys() for pair in ids):
            yield _record(row, list(members.values()), ids)


def _files_of_given_answers(run: RunFolder, k: int, which: str) -> list[Path]:
    """Files of answers that make pairs among themselves."""
    if which != "train":
        held_out = run.stage(0, "eval").held_out(which)
        return [held_out] if held_out.exists() else []
    folder = run.stage(k, "pair")
    known = manifest.outputs if (manifest := folder.manifest()) else ()
    return [path for path in (folder.answers, folder.offline) if path.name in known]


def _groups(responses: Path, verdicts: Path) -> dict[str, list[ResponseRecord]]:
    """The responses of one shard with their verdicts, by prompt."""
    judged: dict[str, VerdictRecord] = {}
    if verdicts.exists():
        records = (VerdictRecord(*row) for row in _columns(verdicts, *tables.VERDICTS.names))
        judged = {record.response_id: record for record in records}
    groups: dict[str, list[ResponseRecord]] = {}
    columns = ("prompt_id", "response_id", "temperature", "text", "finish_reason")
    for prompt_id, id, temperature, text, finish in _columns(responses, *columns):
        response = ResponseRecord(prompt_id, id, temperature, text, finish, judged.get(id))
        groups.setdefault(prompt_id, []).append(response)
    return groups


def _columns(path: Path, *names: str) -> Iterator[tuple[Any, ...]]:
    """The rows of a table, with these columns in this order."""
    table = tables.read(path, names)
    return zip(*(table[name].to_pylist() for name in names), strict=True)


def _prompt_file(run: RunFolder, which: str) -> Path:
    if which not in ("train", "gate", "test"):
        raise UserError(f"--set is train, gate or test, not {which!r}.")
    return run.prompts().path / f"{which}.parquet"


def _pairs(run: RunFolder, k: int) -> dict[str, list[PairIds]]:
    path = run.stage(k, "pair").pairs
    pairs: dict[str, list[PairIds]] = {}
    for prompt_id, chosen, rejected in _columns(path, "prompt_id", "chosen_id", "rejected_id") if path.exists() else ():
        pairs.setdefault(prompt_id, []).append((chosen, rejected))
    return pairs
