"""Numbers of a row or step for the log: named sums and their counts, added up over rows and processes and divided once.

`margin` is the implicit reward margin β(a - b), `reward_accuracy` the share of pairs with a positive one (a tie counts
half), `ranking_accuracy` the share with `logp_w > logp_l`, `displacement_rate` the share whose chosen response fell
below the reference (arXiv:2404.19733, figure 3), `loss_weight` the mean of σ(-βΔ), the weight of a pair in DPO's
gradient (arXiv:2305.18290), `log10_gradient_ratio` the mean of -Δ / ln 10 (arXiv:2404.04626).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.losses.batch import Groups, Pairs, Responses, Singles
from trainer.objective import Value
from trainer.parallel.team import Team
from trainer.relations import Batch, take

DIGITS = 3
"""Decimal places of a single pair's log-ratio in the log."""
Sums = dict[str, tuple[float, float]]
Terms = dict[str, Tensor]
"""By name, the values [N] that the number averages."""


def describe(batch: Batch, beta: float) -> Sums:
    """All diagnostics of the batch; those that compare with the reference only if there is one."""
    with torch.no_grad():
        if isinstance(batch, Pairs):
            terms = _of_pairs(batch, beta)
        else:
            terms = _of_singles(batch) if isinstance(batch, Singles) else _of_groups(batch)
        totals = torch.stack([values.float().sum() for values in terms.values()]).tolist()
    return {name: (total, float(len(terms[name]))) for name, total in zip(terms, totals, strict=True)}


def log_ratios_of(batch: Batch) -> list[tuple[float, float]]:
    """(a, b) of each pair: chosen and rejected log-ratio to the reference; none without pairs or reference."""
    if not isinstance(batch, Pairs) or batch.w.ref is None or batch.l.ref is None:
        return []
    both = torch.stack([batch.w.gap, batch.l.gap], dim=1).detach().float().tolist()
    return [(round(a, DIGITS), round(b, DIGITS)) for a, b in both]


def _of_pairs(pairs: Pairs, beta: float) -> Terms:
    values = _of_responses("chosen", pairs.w) | _of_responses("rejected", pairs.l)
    values["ranking_accuracy"] = _share(pairs.w.logp - pairs.l.logp)
    values["length_gap"] = pairs.w.length - pairs.l.length
    if pairs.w.ref is None or pairs.l.ref is None:
        return values
    delta = pairs.delta
    return values | {
        "margin": beta * delta,
        "reward_accuracy": _share(delta),
        "displacement_rate": pairs.w.gap < 0,
        "both_displaced_rate": (pairs.w.gap < 0) & (pairs.l.gap < 0) & (delta > 0),
        "loss_weight": torch.sigmoid(-beta * delta),
        "log10_gradient_ratio": -delta / math.log(10),
        "reference_gap": pairs.w.ref - pairs.l.ref,
    }


def _of_singles(singles: Singles) -> Terms:
    if singles.good is None:
        return _of_responses("response", singles.y)
    values: Terms = {}
    for name, chosen in (("chosen", singles.good), ("rejected", ~singles.good)):
        if chosen.any():
            values |= _of_responses(name, take(singles.y, chosen))
    return values


def _of_groups(groups: Groups) -> Terms:
    worst = groups.present.sum(dim=1) - 1
    at = torch.arange(len(worst), device=worst.device)
    first, last = take(groups.y, (at, torch.zeros_like(worst))), take(groups.y, (at, worst))
    return _of_responses("chosen", first) | _of_responses("rejected", last)


def _of_responses(name: str, responses: Responses) -> Terms:
    values = {
        f"{name}_logp": responses.logp,
        f"{name}_logp_per_token": responses.mean,
        f"{name}_length": responses.length,
    }
    if responses.ref is not None:
        values[f"{name}_log_ratio"] = responses.gap
    return values


def _share(values: Tensor) -> Tensor:
    """1 above 0, a half at 0."""
    return (values > 0).float() + 0.5 * (values == 0).float()


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
