"""Tables of a run for notebooks: Arrow tables with texts as well as ids, one per shard, read on demand."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from loop.config.settings import Config
from loop.errors import UserError
from loop.measure.metric_names import ITERATION, iteration_metrics, step_metrics
from loop.prompts.row import read_table
from loop.store import tables
from loop.store.files import read_lines
from loop.store.lineage import settings_of
from loop.store.locate import find_run
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json, plain
from loop.store.run_state import PairCounts
from loop.view.frame import time_left
from loop.view.progress import look
from loop.view.status import iteration_state

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


def sample_batches(run: RunFolder, k: int, which: str) -> Iterator[pa.Table]:
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
    for batch in sample_batches(run, k, which):
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


Which = Literal["train", "gate", "test"]


class RunView:
    """Read access to a run. Rows are read on demand, iteration by iteration."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run

    @classmethod
    def open(cls, run: str | Path, runs: str | Path = "runs") -> "RunView":
        """A run by its folder, or by its name in the folder `runs`. UserError if there is none."""
        return cls(find_run(str(run), Path(runs)))

    def __repr__(self) -> str:
        snapshot = look(self._run, settings_of(self._run))
        lines = [f"Campaign {self.name} in {self.path}: {time_left(snapshot, None)}"]
        for k, scores in snapshot.scores:
            known = ", ".join(f"{name} {value:.1%}" for name, value in scores.items() if value is not None)
            lines.append(f"  iteration {k}: test {known}")
        return "\n".join(lines)

    @property
    def name(self) -> str:
        """The name of the run."""
        return self._run.name

    @property
    def path(self) -> Path:
        """Its folder."""
        return self._run.root

    @property
    def iterations(self) -> list[int]:
        """The iterations that have begun; 0 is the base model."""
        return self._run.iterations()

    def settings(self, iteration: int = 1) -> Config:
        """The settings of an iteration."""
        return settings_of(self._run).at(iteration)

    def decision(self, iteration: int) -> Json | None:
        """The decision on an iteration and the reason; None until it is made."""
        found = self._run.decision(iteration) if iteration else None
        return None if found is None else plain(found)

    def model(self, iteration: int) -> Path:
        """The folder of the model that an iteration has trained; of iteration 0 the base model's."""
        if iteration == 0:
            return self.path / self._run.base().policy.path  # absolute, if it lies elsewhere
        return self._run.latest(iteration, "train").model

    def metrics(self) -> Rows:
        """One row per evaluated iteration, under the names of docs/watch.md."""
        found = [k for k in self.iterations if self._run.latest(k, "eval").manifest()]
        return self._rows("metrics", found, self._metrics)

    def steps(self) -> Rows:
        """One row per optimizer step, of the round in progress too."""
        return self._rows("steps", [k for k in self.iterations if k], self._steps)

    def samples(self, which: Which = "train") -> Rows:
        """Responses with their prompts and verdicts: to the training prompts, or to those of the evaluation."""
        return self._rows(f"{which} samples", self._sampled(which), partial(sample_batches, which=which))

    def verdicts(self, which: Which = "train") -> Rows:
        """Verdicts with the texts that were judged."""
        return self._rows(f"{which} verdicts", self._sampled(which), partial(verdict_batches, which=which))

    def pairs(self) -> Rows:
        """Pairs with their texts and scores."""
        return self._rows("pairs", [k for k in self.iterations if self._run.stage(k, "pair").manifest()], pair_batches)

    def _rows(self, what: str, iterations: list[int], read: Callable[[RunFolder, int], Iterator[pa.Table]]) -> Rows:
        return Rows(what, {k: partial(read, self._run, k) for k in iterations})

    def _sampled(self, which: Which) -> list[int]:
        return [k for k in self.iterations if self._run.judged_shards(k, which)]

    @staticmethod
    def _metrics(run: RunFolder, k: int) -> Iterator[pa.Table]:
        state = iteration_state(run, k)
        yield of_dicts([iteration_metrics(state) | {"reason": state.reason}])

    @staticmethod
    def _steps(run: RunFolder, k: int) -> Iterator[pa.Table]:
        for attempt in range(1, run.attempts(k) + 1):
            lines = read_lines(run.stage(k, "train", attempt).step_log)
            place = {ITERATION: k, "attempt": attempt}
            yield of_dicts([place | {"step": line["step"]} | step_metrics(line) for line in lines])
