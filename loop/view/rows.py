"""Rows of a run as Arrow tables, with texts as well as ids, one per shard, read on demand."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from loop.errors import UserError
from loop.prompts.row import read_table
from loop.store import tables
from loop.store.run_folder import RunFolder
from loop.store.run_state import PairCounts

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset


Parts = Callable[[], Iterator[pa.Table]]
SAMPLED = ("index", "seed", "temperature", "finish_reason", "policy_hash")
JUDGED = tuple(name for name in tables.VERDICTS.names if not name.endswith("_id"))


class Rows:
    """Rows of some iterations. Rows are read on demand, and only for the requested iterations."""

    def __init__(self, what: str, parts: Mapping[int, Parts]) -> None:
        self._what, self._parts = what, dict(sorted(parts.items()))

    def __repr__(self) -> str:
        of = ", ".join(map(str, self._parts)) or "none"
        return f"{self._what} of iterations {of} (not read yet: to_arrow(), to_pandas(), to_dataset(), or [iteration])"

    @property
    def iterations(self) -> list[int]:
        """The iterations that have such rows."""
        return list(self._parts)

    def __getitem__(self, iterations: int | Sequence[int]) -> "Rows":
        """The rows of one iteration, or of some."""
        wanted = [iterations] if isinstance(iterations, int) else list(iterations)
        if missing := [k for k in wanted if k not in self._parts]:
            raise UserError(
                f"There are no {self._what} of iteration {missing[0]}; there are some of {self.iterations}."
            )
        return Rows(self._what, {k: self._parts[k] for k in wanted})

    def batches(self) -> Iterator[pa.Table]:
        """One table after the other, shard by shard: a campaign that is larger than memory can be walked through."""
        for part in self._parts.values():
            yield from part()

    def to_arrow(self) -> pa.Table:
        """All rows in one Arrow table; without any, a table without columns."""
        found = [batch for batch in self.batches() if batch.num_columns]
        return pa.concat_tables(found, promote_options="default") if found else pa.table({})

    def to_pandas(self) -> "pd.DataFrame":
        """All rows as a pandas frame."""
        return self.to_arrow().to_pandas()

    def to_dataset(self) -> "Dataset":
        """All rows as a Dataset of the library datasets."""
        from datasets import Dataset
        from datasets.table import InMemoryTable

        return Dataset(InMemoryTable(self.to_arrow()))


def of_dicts(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table of rows with different keys; missing values are null."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def look_up(table: pa.Table, key: str, ids: pa.ChunkedArray) -> pa.Table:
    """The row of each id, in the order of `ids`; nulls for an unknown id."""
    return table.take(pc.index_in(ids, value_set=table[key].combine_chunks()))


def _asked(path: Path) -> pa.Table:
    """Per prompt of a set: prompt_id, the last message as `prompt`, all messages as JSON, and the known answer."""
    table = tables.read(path, ["id", "messages", "target", "columns"])
    asked = pa.array([row.messages[-1]["content"] for row in read_table(table)], pa.string())
    return pa.table({"prompt_id": table["id"], "prompt": asked} | {n: table[n] for n in ("messages", "target")})


def response_batches(run: RunFolder, k: int, which: str) -> Iterator[pa.Table]:
    """Responses with their prompts and verdicts; of a shard that is not judged yet the verdicts are null."""
    prompts = _asked(run.prompts().path / f"{which}.parquet")
    for responses, verdicts in run.judged_shards(k, which):
        sampled = tables.read(responses, ["prompt_id", "response_id", "text", "token_ids", *SAMPLED])
        asked = look_up(prompts, "prompt_id", sampled["prompt_id"])
        judged = look_up(_verdicts(verdicts), "response_id", sampled["response_id"])
        rows = sampled.num_rows
        yield pa.table(
            {"iteration": pa.array([k] * rows, pa.int32()), "set": pa.array([which] * rows, pa.string())}
            | {name: sampled[name] for name in ("prompt_id", "response_id")}
            | {name: asked[name] for name in ("prompt", "messages", "target")}
            | {"response": sampled["text"], "tokens": pc.list_value_length(sampled["token_ids"])}
            | {name: sampled[name] for name in SAMPLED}
            | {name: judged[name] for name in JUDGED}
        )


def verdict_batches(run: RunFolder, k: int, which: str) -> Iterator[pa.Table]:
    """Verdicts with the texts that were judged."""
    names = ["iteration", "set", "prompt_id", "response_id", *JUDGED, "prompt", "target", "response"]
    for batch in response_batches(run, k, which):
        yield batch.filter(pc.is_valid(batch["kind"])).select(names)


def pair_batches(run: RunFolder, k: int) -> Iterator[pa.Table]:
    """Pairs with prompt and both texts, each with the score that its verdict gave. UserError if the rule makes none."""
    folder = run.stage(k, "pair")
    if not folder.pairs.exists():
        manifest = folder.manifest()
        made = manifest.counted(PairCounts).kind if manifest else "pairs"
        raise UserError(f"Iteration {k} of {run} has no pairs: its rule makes {made}, in {folder.relations(made)}.")
    pairs = tables.read(folder.pairs)
    prompts, texts = _asked(run.prompts().path / "train.parquet"), _texts(run, k)
    if folder.offline_prompts.exists():
        prompts = pa.concat_tables([prompts, _asked(folder.offline_prompts)])
    asked = look_up(prompts, "prompt_id", pairs["prompt_id"])
    chosen, rejected = (look_up(texts, "response_id", pairs[f"{side}_id"]) for side in ("chosen", "rejected"))
    first = {"iteration": pa.array([k] * pairs.num_rows, pa.int32()), "prompt_id": pairs["prompt_id"]}
    first |= {name: asked[name] for name in ("prompt", "messages", "target")}
    first |= {"chosen": chosen["text"], "rejected": rejected["text"]}
    first |= {"chosen_score": chosen["score"], "rejected_score": rejected["score"]}
    yield pa.table(first | {name: pairs[name] for name in pairs.column_names if name != "prompt_id"})


def _texts(run: RunFolder, k: int) -> pa.Table:
    """Texts and scores of the responses that pairs of iteration `k` may name; answers from the data have no score."""
    own, others = run.response_files(k)
    return pa.concat_tables([_scored(path) for path in (*own, *others)])


def _scored(path: Path) -> pa.Table:
    responses = tables.read(path, ["response_id", "text"]).select(["response_id", "text"])
    judged = look_up(_verdicts(RunFolder.verdicts_of(path)), "response_id", responses["response_id"])
    return responses.append_column("score", judged["score"])


def _verdicts(path: Path) -> pa.Table:
    return tables.read(path) if path.exists() else tables.VERDICTS.empty_table()
