"""What changes while a round runs: policy, value network, moving reference, running statistics of losses."""

from dataclasses import dataclass

from torch import nn

from trainer.live import LiveReference
from trainer.model import trained_parameters
from trainer.objective import Objective
from trainer.value import ValueNetwork


@dataclass(frozen=True, slots=True)
class Learner:
    """What is trained, and what a checkpoint must hold of it."""

    model: nn.Module
    objective: Objective
    """Without terms for a reward model, whose loss keeps nothing."""
    live: LiveReference | None = None
    value: ValueNetwork | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters that the optimizer changes, by name."""
        found = dict(trained_parameters(self.model))
        if self.value is not None:
            found |= {f"value.{name}": parameter for name, parameter in self.value.named_parameters()}
        return found
