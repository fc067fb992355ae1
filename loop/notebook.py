"""Room loop, a campaign in a notebook: a run comes in, its numbers, samples, verdicts and pairs go out as tables.

    from loop.notebook import Campaign
    campaign = Campaign.open("runs/quickstart")
    campaign.metrics().to_pandas()

It only reads, so it also works while the campaign runs. (`loop.context.Campaign` is the one that works.)
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from loop.config import Config
from loop.config_load import load_config
from loop.files import read_json, read_lines
from loop.frame import time_left
from loop.locate import find_run
from loop.metric_names import ITERATION, iteration_metrics, step_metrics
from loop.notebook_rows import Rows, of_dicts, pair_batches, sample_batches, verdict_batches
from loop.progress import look
from loop.runfolder import RunFolder
from loop.status import iteration_state

Which = Literal["train", "gate", "test"]


class Campaign:
    """A run, to look at. Rows are read when they are asked for, iteration by iteration."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run

    @classmethod
    def open(cls, run: str | Path, runs: str | Path = "runs") -> "Campaign":
        """A run by its folder, or by its name in the folder `runs`. UserError if there is none."""
        return cls(find_run(str(run), Path(runs)))

    def __repr__(self) -> str:
        snapshot = look(self._run, load_config(self._run.config))
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
        return load_config(self._run.config).at(iteration)

    def decision(self, iteration: int) -> dict[str, Any] | None:
        """What was decided at the end of an iteration and why; None while it is not."""
        path = self._run.promotion(iteration)
        return dict(read_json(path)) if path.exists() else None

    def model(self, iteration: int) -> Path:
        """The folder of the model that an iteration has trained; of iteration 0 the base model's."""
        if iteration == 0:
            return self.path / read_json(self._run.promotion(0))["policy"]["path"]  # absolute, if it lies elsewhere
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
        yield of_dicts([iteration_metrics(state) | {"reason": state["reason"]}])

    @staticmethod
    def _steps(run: RunFolder, k: int) -> Iterator[pa.Table]:
        for attempt in range(1, run.attempts(k) + 1):
            lines = read_lines(run.stage(k, "train", attempt).step_log)
            place = {ITERATION: k, "attempt": attempt}
            yield of_dicts([place | {"step": line["step"]} | step_metrics(line) for line in lines])
