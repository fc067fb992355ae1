"""Read judged responses from shards, and turn pairs, singles or groups into a table. Works column by column, so a
million responses take little memory."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from loop.pairing.records import Judged, Made
from loop.store import tables
from loop.store.stage import is_further
from loop.store.thoughts import answer_lengths
from trainer.losses.method import Kind

SCHEMAS: dict[Kind, pa.Schema] = {"pairs": tables.PAIRS, "singles": tables.SINGLES, "groups": tables.GROUPS}


def judged_groups(shards: Sequence[tuple[Path, Path]]) -> Iterator[tuple[str, Sequence[Judged]]]:
    """The groups of all shards (responses and verdicts), one shard in memory at a time. A second phase of sampling has
    shards after those of the first: its prompts are some of theirs, in the same order."""
    first = [(path, judged) for path, judged in shards if not is_further(path)]
    further = (group for path, judged in shards if is_further(path) for group in read_judged(path, judged))
    waiting = next(further, None)
    for path, judged in first:
        for prompt_id, responses in read_judged(path, judged):
            if waiting is not None and waiting[0] == prompt_id:
                responses += waiting[1]
                waiting = next(further, None)
            yield prompt_id, responses
    assert waiting is None, waiting[0]


def read_judged(responses: Path, verdicts: Path) -> list[tuple[str, list[Judged]]]:
    """A shard's groups as rules need them, in shard order."""
    table = tables.read(responses, ["prompt_id", "response_id", "index", "token_ids", "finish_reason", "text"])
    first_of_reference = tables.notes_of(responses).get("spec", {}).get("reference_from")
    words = _words(tables.read(verdicts, ["response_id", "kind", "score", "parts"]))
    prompts, ids = table["prompt_id"].to_pylist(), table["response_id"].to_pylist()
    members: dict[str, list[str]] = {}
    for prompt_id, id in zip(prompts, ids, strict=True):
        members.setdefault(prompt_id, []).append(id)
    groups: dict[str, list[Judged]] = {prompt_id: [] for prompt_id in members}
    indices, finishes = table["index"].to_pylist(), table["finish_reason"].to_pylist()
    lengths = answer_lengths(table, verdicts)
    rows = zip(prompts, ids, indices, keys_of(table["token_ids"]), finishes, lengths, strict=True)
    for prompt_id, id, index, key, finish, length in rows:
        kind, score, parts = words[id]
        beats = beats_of(parts, members[prompt_id])
        origin = None if first_of_reference is None else index >= first_of_reference
        not_asked = kind == "abstain" and tables.says_not_asked(parts)
        groups[prompt_id].append(Judged(id, key, kind, score, finish, length, beats, not_asked, origin))
    return list(groups.items())


def _words(table: pa.Table) -> dict[str, tuple[str, float | None, str | None]]:
    """The verdicts by response: kind, score and parts."""
    ids, *rest = (table[name].to_pylist() for name in ("response_id", "kind", "score", "parts"))
    return dict(zip(ids, zip(*rest, strict=True), strict=True))


def keys_of(column: pa.ChunkedArray) -> Iterator[bytes]:
    """Each row's token ids as the bytes of int32."""
    for chunk in column.chunks:
        starts = chunk.offsets.to_numpy().astype(np.int64)
        values = chunk.values.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            yield values[start:end].tobytes()


def beats_of(parts: str | None, members: Sequence[str]) -> dict[str, float] | None:
    """The games of one response, by its opponents' ids, as a pairwise judge leaves them in a verdict's parts."""
    if parts is None or '"beats ' not in parts:
        return None
    games = {name: won for name, won in json.loads(parts).items() if name.startswith("beats ")}
    return {members[int(name.removeprefix("beats "))]: won for name, won in games.items()}


def table_of(relations: Sequence[Made], kind: Kind, iteration: int, rule: str) -> pa.Table:
    """Relations that `rule` made as a table, by column, as rows of dicts are slow and large."""
    schema, same = SCHEMAS[kind], {"source_iteration": iteration, "rule": rule}
    columns = {
        name: [same[name]] * len(relations) if name in same else [getattr(one, name) for one in relations]
        for name in schema.names
    }
    return pa.table(columns, schema=schema)
