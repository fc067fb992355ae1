"""Sum a step's log numbers over rows and processes, and divide once, for means over the whole step."""

from dataclasses import dataclass, field

from torch import Tensor

from trainer.objective import Value
from trainer.parallel.team import Team


@dataclass(slots=True)
class StepTotals:
    """Sums over the relations of a step; `means` divides them once."""

    counts: dict[str, int]
    """Relations that each loss term is averaged over."""
    mean_length: Tensor
    loss: float = 0.0
    """Sum of the loss values whose gradients were taken."""
    tokens: int = 0
    plain_tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    log_ratios: list[tuple[float, float]] = field(default_factory=list)
    """(a, b) of each pair, chosen and rejected log-ratio."""

    def add(self, values: dict[str, tuple[float, float]]) -> None:
        """Add sums and their counts."""
        for name, (total, count) in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + total
            self.weights[name] = self.weights.get(name, 0.0) + count

    def add_loss(self, value: Value) -> None:
        """Add a share of the loss and of its parts."""
        self.loss += float(value.total.detach())
        self.add({name: (total, 0.0) for name, total in value.parts.items()})
        self.weights |= {name: float(self.counts[name]) for name in value.parts}

    def of_all(self, team: Team) -> "StepTotals":
        """The totals of all processes."""
        if team.size == 1:
            return self
        whole = StepTotals(self.counts, self.mean_length)
        for part in team.gather((self.loss, self.tokens, self.plain_tokens, self.sums, self.weights, self.log_ratios)):
            loss, tokens, plain_tokens, sums, weights, log_ratios = part
            whole.loss += loss
            whole.tokens += tokens
            whole.plain_tokens += plain_tokens
            whole.log_ratios += log_ratios
            whole.add({name: (total, weights[name]) for name, total in sums.items()})
        whole.weights |= {name: float(count) for name, count in self.counts.items() if name in whole.sums}
        return whole

    def means(self) -> dict[str, float]:
        """Means over the step's relations, by their log names."""
        return {"loss": self.loss} | {name: total / self.weights[name] for name, total in self.sums.items()}
