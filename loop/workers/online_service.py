"""The trainer's worker in an online iteration: a round stays open between jobs, trains on one slice's pairs at a time,
and hands over its weights in between.

Every job describes the whole round, so a replacement worker can reopen it at its last checkpoint; the reply says which
slice it wants, and the driver goes back to that one.
"""

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
    """In which the sampler holds the weights."""


@dataclass(frozen=True, slots=True)
class SliceData:
    """What one slice gives to train on."""

    number: int
    responses: Path
    pairs: Path | None
    """None: nothing came of it."""
    answers: Path | None


@dataclass(frozen=True, slots=True)
class Stand:
    """Where the round stands."""

    next: int
    """The slice it wants; as many as there are if it wants none."""
    trained: int
    """Slices of which it has trained something: their files must not change any more."""
    steps: int


class OnlineTrainService(TrainService):
    """The trainer of a campaign; `round` is the one that is open."""

    def __init__(self) -> None:
        self.round: SlicedRound | None = None

    def open_round(self, task: OnlineTask, report: Report) -> Stand:
        """Begin a round, or go on with it at its last checkpoint."""
        from trainer.online.sliced_round import SlicedRound

        self.round = None  # frees what an earlier one holds before the next is loaded
        check_models(task.spec)
        self.round = SlicedRound(task.spec, task.slices, report=lambda progress: report(**progress))
        return stand_of(self.round)

    def train_slice(self, task: OnlineTask, part: SliceData, report: Report) -> Stand:
        """Train on one slice, if it is the one that is wanted."""
        here = self._opened(task, report)
        if here.next == part.number:
            here.train(
                PreferenceData((), ())
                if part.pairs is None
                else read_preferences([part.responses], part.pairs, [part.answers] if part.answers else [])
            )
        return stand_of(here)

    def hand_over(self, task: OnlineTask, number: int, folder: Path, report: Report) -> Stand:
        """Put the weights that are to sample slice `number` into `folder`, if that is the slice that is wanted."""
        here = self._opened(task, report)
        if here.next == number:
            here.publish(folder, number_format=task.number_format)  # type: ignore[arg-type]
        return stand_of(here)

    def close_round(self, task: OnlineTask, report: Report) -> Stand | TrainResult:
        """Save the candidate; or return where the round stands, if slices are missing."""
        here = self._opened(task, report)
        if here.next < task.slices:
            return stand_of(here)
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


def stand_of(here: "SlicedRound") -> Stand:
    """Where it stands, for the driver."""
    return Stand(here.next, here.trained, here.steps)
