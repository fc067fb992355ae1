"""How a step's rows are dealt out to processes, without starting any."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainer.diagnostics import StepTotals
from trainer.errors import TrainerError
from trainer.parallel.processes import run_together
from trainer.parallel.team import ALONE, Team
from trainer.settings import TrainSettings

SIZES = st.integers(1, 9)
ROWS = st.integers(1, 40)


@dataclass(frozen=True, slots=True)
class Scripted(Team):
    """A process whose partners say what is known beforehand."""

    said: tuple[Any, ...] = ()

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value."""
        assert value == self.said[self.rank]
        return list(self.said)


@given(SIZES, ROWS)
def test_every_row_counts_once_and_all_make_the_same_number_of_passes(size: int, rows: int) -> None:
    turns = [list(Team(rank, size).turns(rows)) for rank in range(size)]
    counted = [turn.row for mine in turns for turn in mine if not turn.idle]
    assert sorted(counted) == list(range(rows))
    assert {len(mine) for mine in turns} == {-(-rows // size)}
    assert all(turn.row < rows for mine in turns for turn in mine)


def test_three_rows_for_two_processes_by_hand() -> None:
    assert list(Team(0, 2).turns(3)) == [(0, False), (2, False)]
    assert list(Team(1, 2).turns(3)) == [(1, False), (2, True)]
    assert list(ALONE.turns(3)) == [(0, False), (1, False), (2, False)]


@given(SIZES, ROWS)
def test_what_was_made_in_turns_comes_back_in_the_order_of_the_rows(size: int, rows: int) -> None:
    made = tuple([turn.row for turn in Team(rank, size).turns(rows)] for rank in range(size))
    for rank, mine in enumerate(made):
        assert Scripted(rank, size, said=made).in_order(mine, rows) == list(range(rows))


def test_the_log_divides_by_the_counts_of_the_whole_step() -> None:
    """Two rows with losses 3 and 5 of 4 relations in one process, a row with 1 of 2 relations in the other."""
    first = StepTotals(
        {"dpo": 6}, torch.zeros(()), 8 / 6, 30, 70, {"dpo": 8.0, "entropy": 5.0}, {"dpo": 6, "entropy": 2}
    )
    second = StepTotals(
        {"dpo": 6}, torch.zeros(()), 1 / 6, 10, 20, {"dpo": 1.0, "entropy": 4.0}, {"dpo": 6, "entropy": 1}
    )
    first.log_ratios, second.log_ratios = [(0.5, -1.0)], [(2.0, 1.0)]
    said = tuple(
        (part.loss, part.tokens, part.plain_tokens, part.sums, part.weights, part.log_ratios)
        for part in (first, second)
    )
    whole = first.of_all(Scripted(0, 2, said=said))
    assert whole.means() == pytest.approx({"loss": 1.5, "dpo": 1.5, "entropy": 3.0})
    assert (whole.tokens, whole.plain_tokens) == (40, 90)
    assert whole.log_ratios == [(0.5, -1.0), (2.0, 1.0)]


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(TrainerError, match=r"train\.processes is 4, but this machine has 2 GPUs.*=2 or fewer"):
        run_together(4, print, sharded=False, logs=tmp_path, report=print)


def test_sharded_weights_in_bf16_are_refused() -> None:
    with pytest.raises(ValidationError, match="precision bf16 cannot be used with distribute fsdp"):
        TrainSettings(precision="bf16", distribute="fsdp")
