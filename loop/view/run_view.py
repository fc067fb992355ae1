"""Read access to a run from Python: its numbers, responses, verdicts and pairs, by iteration."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow as pa

from loop.config.settings import Config
from loop.errors import UserError
from loop.measure.metric_names import ITERATION, iteration_metrics, step_metrics
from loop.store.files import read_lines
from loop.store.lineage import settings_of
from loop.store.locate import find_run
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json, plain
from loop.view.frame import time_left
from loop.view.progress import look
from loop.view.rows import Rows, of_dicts, pair_batches, response_batches, verdict_batches
from loop.view.status import iteration_state

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
    def iterations(self) -> "Iterations":
        """The iterations that have begun, by number; 0 is the base model."""
        return Iterations({k: IterationView(self, k) for k in self._run.iterations()})

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

    def responses(self, which: Which = "train") -> Rows:
        """Responses with their prompts and verdicts: to the training prompts, or to those of the evaluation."""
        return self._rows(f"{which} responses", self._sampled(which), partial(response_batches, which=which))

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


@dataclass(frozen=True, slots=True)
class IterationView:
    """Read access to one iteration of a run."""

    run: RunView = field(repr=False)
    number: int

    @property
    def settings(self) -> Config:
        """Its settings; the base model has those of the first iteration."""
        return self.run.settings(max(self.number, 1))

    @property
    def decision(self) -> Json | None:
        """The decision on its model and the reason; None until it is made."""
        return self.run.decision(self.number)

    @property
    def model(self) -> Path:
        """The folder of the model that it has trained; of iteration 0 the base model's."""
        return self.run.model(self.number)

    def metrics(self) -> Rows:
        """One row with the numbers of its evaluation, under the names of docs/watch.md."""
        return self.run.metrics()[self.number]

    def steps(self) -> Rows:
        """One row per optimizer step."""
        return self.run.steps()[self.number]

    def responses(self, which: Which = "train") -> Rows:
        """Responses with their prompts and verdicts."""
        return self.run.responses(which)[self.number]

    def verdicts(self, which: Which = "train") -> Rows:
        """Verdicts with the texts that were judged."""
        return self.run.verdicts(which)[self.number]

    def pairs(self) -> Rows:
        """Pairs with their texts and scores."""
        return self.run.pairs()[self.number]


class Iterations(dict[int, IterationView]):
    """Iterations by number."""

    def __missing__(self, number: int) -> IterationView:
        raise UserError(f"There is no iteration {number}; there are {', '.join(map(str, self)) or 'none yet'}.")
