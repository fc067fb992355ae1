"""What a gate can see, before anything is sampled: the width of its interval, and how often a candidate will pass, by
the formulas of `paired_difference` and `decide`. Numpy only."""

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from loop.config.load import LoadedConfig
from loop.config.settings import Config
from loop.measure.promotion import bound_of, deciding_confidence
from loop.measure.stats import least_error, t_quantile

SPREAD = 0.12
"""Assumed mean over prompts of p (1 - p), p being a prompt's solve rate: most prompts are nearly always or nearly never
solved, as a Beta(0.46, 0.46) has them, whose mean is one half. It is the variance of a response around its prompt's
mean."""
AIMS = {"equal": 0.9, "better": 0.8}
"""How often a gate should pass an equal candidate (`not_worse`), and one that is better (`better`)."""
MOST_PROMPTS = 100_000
QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / 200) for i in range(200)])


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate with the interval that decides; changes and widths are shares, not points."""

    prompts: int
    samples: int
    bound: float
    """What the lower end of the interval must exceed."""
    confidence: float
    first: int = 0
    """Samples of the first look, if `samples` is what the last look has."""

    def error(self, change: float = 0.0) -> float:
        """Standard error of the difference to a candidate that is truly better by `change`, and has learned an equal
        share of what each prompt's solve rate lacks (or has lost an equal share of it)."""
        kept = 1 - 2 * abs(change)
        theirs = kept / 2 - kept**2 * (0.5 - SPREAD)  # the candidate's mean p (1 - p)
        between = 4 * change**2 * (0.25 - SPREAD)
        return math.sqrt(((SPREAD + theirs) / self.samples + between) / self.prompts)

    @property
    def half_width(self) -> float:
        """Expected distance between the difference and the lower end of its interval; 1 for a single prompt."""
        if self.prompts < 2:
            return 1.0
        error = max(self.error(), least_error(self.prompts, self.samples))
        return min(1.0, t_quantile(self.confidence, self.prompts - 1) * error)

    def passes(self, change: float) -> float:
        """How often a candidate passes that is truly better by `change`: the difference is normal, and its estimated
        variance has a chi-square distribution (by the approximation of Wilson and Hilferty)."""
        if self.prompts < 2:
            return 0.0
        spread, error = 2 / (9 * (self.prompts - 1)), self.error(change)
        found = error * np.maximum(1 - spread + QUANTILES * math.sqrt(spread), 0.0) ** 1.5
        reach = t_quantile(self.confidence, self.prompts - 1) * np.maximum(
            found, least_error(self.prompts, self.samples)
        )
        return float(np.mean([NormalDist().cdf(z) for z in (change - self.bound - reach) / error]))

    def prompts_for(self, aim: float) -> int | None:
        """The fewest prompts with which an equal candidate passes with probability `aim`; None if there are none."""
        sizes = range(2, MOST_PROMPTS)
        place = bisect_left(sizes, aim, key=lambda prompts: replace(self, prompts=prompts).passes(0.0))
        return sizes[place] if place < len(sizes) else None

    def gain_for(self, aim: float) -> float:
        """The true gain with which a candidate passes with probability `aim`."""
        place = bisect_left(range(500), aim, key=lambda gain: self.passes(gain / 1000))
        return place / 1000


def gate_of(loaded: LoadedConfig) -> Gate | None:
    """The gate of the last planned iteration, which gets the smallest part of the error, at its last look; None if it
    decides nothing."""
    config, k = loaded.at(loaded.iterations), loaded.iterations
    bound = bound_of(config.promote)
    if bound is None:
        return None
    counts = config.eval_judge is not None and config.promote.metric != "greedy_accuracy"
    samples = config.eval.samples if counts else 1
    planned = {"k": k, "iterations": k, "checkpoints": _checkpoints(config), "samples": samples}
    confidence = deciding_confidence(config.promote, **planned, look=config.promote.looks)
    if (more := config.promote.more_samples) is None:
        return Gate(config.prompts.gate, samples, bound, confidence)
    return Gate(config.prompts.gate, samples + more.looks * more.samples, bound, confidence, samples)


def _checkpoints(config: Config) -> int:
    """The most checkpoints that `train.select: best` may look at; 1 where the number of steps is open."""
    train = config.train
    if train.select != "best" or not train.max_steps:
        return 1
    return -(-train.max_steps // train.checkpoint_every)


def describe_gate(gate: Gate) -> str:
    """What the gate can see, in a line."""
    several = f"{gate.first} to {gate.samples}" if gate.first else str(gate.samples)
    size = f"{gate.prompts} prompts x {several} sample{'s' if gate.samples != 1 else ''}"
    width = f"{size}: half-width about {100 * gate.half_width:.2g} points"
    if gate.bound == 0:
        gain, aim = gate.gain_for(AIMS["better"]), AIMS["better"]
        return f"{width}: a candidate that is {100 * gain:.2g} points better passes {100 * aim:.0f} % of the time"
    equal, aim = gate.passes(0.0), AIMS["equal"]
    often = f"passes {100 * equal:.0f} % of the time" if equal >= 0.005 else "never passes"
    said = f"{width}, limit {-100 * gate.bound:g}: an equal candidate {often}"
    needed = gate.prompts_for(aim)
    if equal >= aim or needed is None:
        return said
    samples = next((k for k in range(gate.samples + 1, 65) if replace(gate, samples=k).passes(0.0) >= aim), None)
    more = f" or {gate.prompts} x {samples}" if samples and gate.samples > 1 else ""
    return f"{said}; {-(-needed // 10) * 10} x {gate.samples}{more} would make it {100 * aim:.0f} %"
