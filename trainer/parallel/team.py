"""The processes that train a round together; `Team` is a team of one. The plan of a step never depends on the team:
rows are assigned in turn, and gradients are summed over processes, never averaged."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

Anything = TypeVar("Anything")


class RowTurn(NamedTuple):
    """One row that a process reads."""

    row: int
    idle: bool
    """No row is left for this process: it reads the last one again, so that all make the same number of passes, and the
    result is ignored."""


@dataclass(frozen=True, slots=True)
class Team:
    """One of `size` processes; process 0 leads: it alone writes files and reports to users."""

    rank: int = 0
    size: int = 1
    sharded: bool = False
    """Each process holds only a part of every weight."""

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def turns(self, rows: int) -> Iterator[RowTurn]:
        """The rows that this process reads."""
        for first in range(0, rows, self.size):
            mine = first + self.rank
            yield RowTurn(min(mine, rows - 1), idle=mine >= rows)

    def in_order(self, mine: Sequence[Anything], rows: int) -> list[Anything]:
        """The results of all processes, in the order of the rows."""
        each = self.gather(list(mine))
        return [each[row % self.size][row // self.size] for row in range(rows)]

    def gather(self, value: Anything) -> list[Anything]:
        """The values of all processes, by rank. With several processes, tensors in them must be on the CPU."""
        return [value]

    def wait(self) -> None:
        """Wait for all processes."""
        self.gather(None)

    def place(self, model: Any) -> Any:
        """The model in the form in which this team trains it."""
        return model

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every gradient the sum over processes."""

    def collect(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors for the leader, nothing for the others. Every process must call it."""
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def part(self, whole: Tensor, *, like: Tensor) -> Tensor:
        """This process's part of a whole tensor, sharded like `like`."""
        return whole


ALONE = Team()
