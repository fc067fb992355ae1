"""How often does the gate err, in a decision and over a campaign, and does `prefloop plan` say so beforehand?

In: the sizes below. Out: a table for each question. Nothing is sampled from a model: solve rates are drawn, responses
are drawn from them, and the gate's own functions compare and decide.

    power     an equal candidate, and what `plan` prints for the same gate
    walk      ten iterations whose candidates are each truly worse by one point (`not_worse`)
    better    ten iterations of equal candidates: how many campaigns promote one (`better`, by alpha_spending)
    select    a candidate that is worse by the margin, chosen as the best of several equal checkpoints
    equal     ten iterations of equal candidates: how often each passes, held against the best so far
    looks     `promote.more_samples`: how often equal and worse candidates pass, and after how many samples
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from loop.config.promote_section import PromoteConfig
from loop.measure.power import SPREAD, Gate
from loop.measure.promotion import Decision, bound_of, decide, deciding_confidence, is_open
from loop.measure.stats import paired_difference
from loop.store.run_records import AttemptRecord, BestSoFar

SHAPE = 2 * SPREAD / (1 - 4 * SPREAD)
"""Beta(SHAPE, SHAPE) has a mean p (1 - p) of SPREAD."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Right responses of one model, by gate prompt, out of `samples` each."""

    right: Any
    samples: int

    @property
    def accuracy(self) -> float:
        """Share of right responses."""
        return float(self.right.mean()) / self.samples

    def add(self, later: "Answers") -> "Answers":
        """With the same model's further responses."""
        return Answers(self.right + later.right, self.samples + later.samples)


class World:
    """Gate prompts with solve rates; a model is as good as `change` says of it, compared with the base model."""

    def __init__(self, seed: int, prompts: int, samples: int) -> None:
        self.random = np.random.default_rng(seed)
        self.rates = self.random.beta(SHAPE, SHAPE, prompts)
        self.samples = samples

    def answers(self, change: float = 0.0) -> Answers:
        """Fresh responses of a model whose expected accuracy is `change` above the base model's one half."""
        p = self.rates * (1 + 2 * change) if change < 0 else 1 - (1 - self.rates) * (1 - 2 * change)
        return Answers(self.random.binomial(self.samples, np.clip(p, 0, 1)), self.samples)


def compared(settings: PromoteConfig, before: Answers, after: Answers, confidence: float, best: Any = None) -> Decision:
    """The gate's decision on a candidate; `best` is an iteration and its answers."""

    def gain(other: Answers) -> Any:
        trials = np.full(other.right.size, other.samples)
        return paired_difference(other.right, trials, after.right, trials, confidence)

    held = None if best is None else BestSoFar(best[0], gain(best[1]))
    return decide(settings, gain(before), best=held, confidence=confidence)


def campaign(
    settings: PromoteConfig, world: World, step: float, iterations: int, *, hold: bool = True
) -> tuple[float, list[bool]]:
    """True change of the last incumbent against the base model, and each decision; a candidate is better than its
    incumbent by `step`. Without `hold`, candidates are compared with their incumbent only."""
    level, incumbent, passed = 0.0, 0, []
    promoted = {0: world.answers()}
    for k in range(1, iterations + 1):
        candidate = world.answers(level + step)
        best = max(promoted, key=lambda i: (promoted[i].accuracy, i == incumbent))
        held = (best, promoted[best]) if hold and best != incumbent else None
        confidence = deciding_confidence(settings, k=k, iterations=iterations)
        made = compared(settings, promoted[incumbent], candidate, confidence, held)
        passed.append(made.promote)
        if made.promote:
            level, incumbent, promoted[k] = level + step, k, candidate
    return level, passed


def walks(prompts: int, samples: int, repeats: int, *, hold: bool = True, iterations: int = 10) -> float:
    """Share of campaigns that end with a model worse than the base by more than the margin, if each candidate is worse
    than its incumbent by one point."""
    settings = PromoteConfig(rule="not_worse")
    ends = [
        campaign(settings, World(seed, prompts, samples), -0.01, iterations, hold=hold)[0] for seed in range(repeats)
    ]
    return share(end < -settings.margin - 1e-9 for end in ends)


def false_promotions(spending: str, prompts: int, samples: int, repeats: int, iterations: int = 10) -> float:
    """Share of campaigns of equal candidates in which `better` promotes one."""
    settings = PromoteConfig.model_validate({"rule": "better", "alpha_spending": spending})
    return share(any(campaign(settings, World(seed, prompts, samples), 0.0, iterations)[1]) for seed in range(repeats))


def passes(rule: str, prompts: int, samples: int, repeats: int, change: float = 0.0, confidence: float = 0.95) -> float:
    """How often a candidate passes that is truly better by `change`."""
    settings = PromoteConfig.model_validate({"rule": rule, "confidence": confidence})
    worlds = (World(seed, prompts, samples) for seed in range(repeats))
    return share(compared(settings, one.answers(), one.answers(change), confidence).promote for one in worlds)


def predicted(rule: str, prompts: int, samples: int, change: float = 0.0, confidence: float = 0.95) -> float:
    """The same as `prefloop plan` computes it."""
    bound = bound_of(PromoteConfig.model_validate({"rule": rule}))
    assert bound is not None
    return Gate(prompts, samples, bound, confidence).passes(change)


def selected(prompts: int, samples: int, checkpoints: int, repeats: int, *, corrected: bool = True) -> float:
    """How often the best of several checkpoints passes `not_worse`, if all are worse by exactly the margin."""
    settings = PromoteConfig(rule="not_worse")
    looked_at = checkpoints if corrected else 1
    confidence = deciding_confidence(settings, k=1, iterations=1, checkpoints=looked_at)

    def once(seed: int) -> bool:
        world = World(seed, prompts, samples)
        before = world.answers()
        best = max((world.answers(-settings.margin) for _ in range(checkpoints)), key=lambda one: one.accuracy)
        return compared(settings, before, best, confidence).promote

    return share(map(once, range(repeats)))


def equal_passes(prompts: int, samples: int, repeats: int, iterations: int = 10) -> list[float]:
    """How often an equal candidate passes in each iteration of a campaign."""
    settings = PromoteConfig(rule="not_worse")
    decided = [campaign(settings, World(seed, prompts, samples), 0.0, iterations)[1] for seed in range(repeats)]
    return [share(column) for column in zip(*decided, strict=True)]


def looked_at(
    prompts: int, samples: int, more: dict[str, int] | None, change: float, repeats: int, rule: str = "not_worse"
) -> tuple[float, float]:
    """How often a candidate passes with further looks, and the mean number of samples per prompt that it takes."""
    settings = PromoteConfig.model_validate({"rule": rule, "more_samples": more})

    def once(seed: int) -> tuple[bool, int]:
        world = World(seed, prompts, samples)
        before, after = world.answers(), world.answers(change)
        for look in range(1, settings.looks + 1):
            confidence = deciding_confidence(settings, k=1, iterations=1, samples=samples, look=look)
            trials = np.full(prompts, after.samples)
            gain = paired_difference(before.right, trials, after.right, trials, confidence)
            made = decide(settings, gain, confidence=confidence)
            record = AttemptRecord({}, made.promote, "", gain, (), {}, "")
            if look == settings.looks or not is_open(settings, record):
                break
            world.samples = settings.more_samples.samples if settings.more_samples else 0
            before, after = before.add(world.answers()), after.add(world.answers(change))
        return made.promote, after.samples

    ends = [once(seed) for seed in range(repeats)]
    return share(passed for passed, _ in ends), share(taken for _, taken in ends)


def false_looks(prompts: int, samples: int, more: dict[str, int], repeats: int) -> float:
    """How often a candidate passes that is worse by exactly the margin."""
    return looked_at(prompts, samples, more, -PromoteConfig().margin, repeats)[0]


def share(values: Any) -> float:
    """Share of true values."""
    known = list(values)
    return sum(known) / len(known)


# ---- tables ----


def power_table(repeats: int) -> Iterator[str]:
    """Simulated and predicted power."""
    yield "equal candidate, not_worse: prompts x samples, simulated, as plan prints it"
    for prompts, samples in ((16, 4), (38, 1), (38, 16), (64, 4), (128, 2), (128, 4), (256, 4), (250, 4), (128, 16)):
        found, told = passes("not_worse", prompts, samples, repeats), predicted("not_worse", prompts, samples)
        yield f"  {prompts:4} x {samples:2}  {100 * found:5.1f} %  {100 * told:5.1f} %"
    yield "candidate better by 6 points, better"
    for prompts, samples in ((128, 2), (128, 4), (256, 4)):
        found, told = passes("better", prompts, samples, repeats, 0.06), predicted("better", prompts, samples, 0.06)
        yield f"  {prompts:4} x {samples:2}  {100 * found:5.1f} %  {100 * told:5.1f} %"


def walk_table(repeats: int) -> Iterator[str]:
    """Campaigns that walk down."""
    yield "ten candidates, each worse by 1 point: ends below the base model by more than the margin of 5"
    for prompts, samples in ((128, 16), (256, 4), (128, 2)):
        without, found = (100 * walks(prompts, samples, repeats, hold=hold) for hold in (False, True))
        yield f"  {prompts:4} x {samples:2}  against the incumbent {without:5.1f} %  and the best so far {found:5.1f} %"


def better_table(repeats: int) -> Iterator[str]:
    """False promotions by alpha_spending."""
    yield "ten equal candidates, better: campaigns with a false promotion"
    for prompts, samples in ((128, 2), (256, 4), (128, 16)):
        found = (false_promotions(spending, prompts, samples, repeats) for spending in ("none", "bonferroni", "pocock"))
        rates = "  ".join(
            f"{name} {100 * one:4.1f} %" for name, one in zip(("none", "bonferroni", "pocock"), found, strict=True)
        )
        yield f"  {prompts:4} x {samples:2}  {rates}"


def select_table(repeats: int) -> Iterator[str]:
    """The best of several checkpoints."""
    yield "best of several checkpoints, all worse by the margin (nominal error 2.5 %): passes"
    for checkpoints in (1, 2, 4, 8):
        plainly = selected(256, 4, checkpoints, repeats, corrected=False)
        found = selected(256, 4, checkpoints, repeats)
        yield f"  {checkpoints} checkpoints  uncorrected {100 * plainly:4.1f} %  corrected {100 * found:4.1f} %"


def equal_table(repeats: int) -> Iterator[str]:
    """Equal candidates over a campaign."""
    yield "ten equal candidates, not_worse: passes in iteration 1, 2, …"
    for prompts, samples in ((256, 4), (128, 16)):
        rates = " ".join(f"{100 * one:3.0f}" for one in equal_passes(prompts, samples, repeats))
        yield f"  {prompts:4} x {samples:2}  {rates} %"


def looks_table(repeats: int) -> Iterator[str]:
    """Further looks against a single one."""
    yield "looks at the gate prompts, not_worse: samples, equal passes (samples taken), worse by the margin passes"
    for prompts, samples, more in (
        (128, 2, None),
        (128, 18, None),
        (128, 2, {"looks": 2, "samples": 8}),
        (256, 4, None),
        (256, 12, None),
        (256, 4, {"looks": 1, "samples": 8}),
        (256, 4, {"looks": 2, "samples": 4}),
        (256, 2, {"looks": 4, "samples": 2}),
    ):
        (equal, taken), worse = (looked_at(prompts, samples, more, change, repeats) for change in (0.0, -0.05))
        named = f"{samples}" if more is None else f"{samples} + {more['looks']} x {more['samples']}"
        yield f"  {prompts:4} x {named:10}  {100 * equal:5.1f} % ({taken:4.1f})  {100 * worse[0]:5.1f} %"


TABLES: dict[str, Callable[[int], Iterator[str]]] = {
    "power": power_table,
    "walk": walk_table,
    "better": better_table,
    "select": select_table,
    "equal": equal_table,
    "looks": looks_table,
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("questions", nargs="*", help=f"{', '.join(TABLES)}; default: all")
    parser.add_argument("--repeats", type=int, default=2000, help="simulated decisions or campaigns")
    told = parser.parse_args()
    for name in told.questions or TABLES:
        for line in TABLES[name](told.repeats):
            print(line, flush=True)


if __name__ == "__main__":
    main()
