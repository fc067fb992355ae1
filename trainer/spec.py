"""The specification of a round, which identifies it, and the state its parts share. Loads no torch: drivers use it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.settings import Identity, TrainSettings

if TYPE_CHECKING:
    from trainer.model import Arithmetic
    from trainer.objective import Objective
    from trainer.parallel.team import Team
    from trainer.summary import Clock, WarmStartSummary

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class RoundSpec:
    """Which weights are trained, against which reference, where. Hashes name the weights; paths only locate them."""

    policy: Path
    policy_hash: str
    reference: Path
    reference_hash: str
    work: Path
    """Checkpoints, reference log-probs and the step log of this round; nobody else writes here."""
    out: Path
    """The candidate folder; exists only when it is complete."""
    settings: TrainSettings
    seed: int
    threads: int | None
    whole: Identity | None = None
    """After a warm start: the identity of warm start and round together."""

    @property
    def same_weights(self) -> bool:
        """Whether the reference is the policy before the first step."""
        return self.policy_hash == self.reference_hash

    @property
    def identity(self) -> Identity:
        """What decides the candidate's weights, apart from the data."""
        if self.whole is not None:
            return self.whole
        settings = self.settings.deciding
        return {"policy": self.policy_hash, "reference": self.reference_hash, "seed": self.seed} | settings


@dataclass(slots=True)
class Running:
    """What the parts of a running round share."""

    spec: RoundSpec
    report: Report
    arithmetic: "Arithmetic"
    objective: "Objective"
    clock: "Clock"
    notes: list[str]
    team: "Team"
    warm_start: "WarmStartSummary | None" = None
    """What the supervised phase came to."""
