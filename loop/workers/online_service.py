"""Trainer service of an online iteration: a round stays open between jobs, trains on one slice's pairs at a time and
publishes its weights in between. Every job describes the whole round, so a replacement worker can reopen it at its last
checkpoint; the reply names the slice to continue with."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loop.workers.entry import Report
from loop.workers.train_service import TrainResult, TrainService, check_models, finished_round, read_preferences
from trainer.data import PreferenceData
from trainer.spec import RoundSpec

if TYPE_CHECKING:
    from trainer.online.sliced_round import SlicedRound


@dataclass(frozen=True, slots=True)
class OnlineTask:
    """A round in slices."""

    spec: RoundSpec
    steps: Path
    slices: int
    number_format: str
    """Number format of the sampler's weights."""


@dataclass(frozen=True, slots=True)
class SliceData:
    """The training data of one slice."""

    number: int
    responses: Path
    pairs: Path | None
    """None: it has no pairs."""
    answers: Path | None


@dataclass(frozen=True, slots=True)
class RoundProgress:
    """How far the round is."""

    next: int
    """The slice to train on next; the number of slices if there is none."""
    trained: int
    """Slices that were trained on, at least in part: their files must not change any more."""
    steps: int


class OnlineTrainService(TrainService):
    """Trainer service of a campaign; `round` is the open one."""

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(threads)
        self.round: SlicedRound | None = None

    def open_round(self, task: OnlineTask, report: Report) -> RoundProgress:
        """Begin a round, or resume it at its last checkpoint."""
        from trainer.online.sliced_round import SlicedRound

        self.round = None  # frees what an earlier one holds before the next is loaded
        check_models(task.spec)
        self.round = SlicedRound(task.spec, task.slices, report=lambda progress: report(**progress))
        return progress_of(self.round)

    def train_slice(self, task: OnlineTask, part: SliceData, report: Report) -> RoundProgress:
        """Train on one slice if it is the next one."""
        here = self._opened(task, report)
        if here.next == part.number:
            here.train(
                PreferenceData((), ())
                if part.pairs is None
                else read_preferences([part.responses], part.pairs, [part.answers] if part.answers else [])
            )
        return progress_of(here)

    def publish_weights(self, task: OnlineTask, number: int, folder: Path, report: Report) -> RoundProgress:
        """Write the weights that will sample slice `number` to `folder` if that slice is the next one."""
        here = self._opened(task, report)
        if here.next == number:
            here.publish(folder, number_format=task.number_format)  # type: ignore[arg-type]
        return progress_of(here)

    def close_round(self, task: OnlineTask, report: Report) -> RoundProgress | TrainResult:
        """Save the candidate; if slices are missing, return the progress instead."""
        here = self._opened(task, report)
        if here.next < task.slices:
            return progress_of(here)
        summary = here.close()
        self.round = None
        return finished_round(task.spec, summary, task.steps)

    def _opened(self, task: OnlineTask, report: Report) -> "SlicedRound":
        """The round with its report callback; reopened in a replacement worker."""
        if self.round is None:
            self.open_round(task, report)
        assert self.round is not None
        self.round.running.report = lambda progress: report(**progress)
        return self.round


def progress_of(here: "SlicedRound") -> RoundProgress:
    """The round's progress, for the driver."""
    return RoundProgress(here.next, here.trained, here.steps)
