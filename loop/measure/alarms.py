"""Alarms of a campaign: what is wrong in its latest iteration, with the number, the threshold and what to do."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from loop.config.settings import AlarmsConfig
from loop.store.run_state import Alarm

Numbers = Mapping[str, float | None]
"""One iteration's, by name; what was not measured is missing or None."""
Stage = Literal["pair", "train"]

RAISE = "raise sampling.temperature or sampling.n, or set sampling.widen"


class Rule(NamedTuple):
    """What an alarm looks at (`number`, as a multiple of iteration 1's if `relative`) and what it says."""

    side: Literal["below", "above"]
    problem: str
    """What is wrong, with {value} for the number."""
    advice: str
    number: str = ""
    """Empty: the number has the alarm's name."""
    stage: Stage = "pair"
    relative: bool = False


RULES: dict[str, Rule] = {
    "mixed": Rule(
        "below",
        "only {value:.0%} of the prompts have both right and wrong responses",
        f"{RAISE}, or use prompts of another difficulty",
    ),
    "solved": Rule(
        "above",
        "nearly everything is solved: {value:.0%} on average over prompts",
        f"use harder prompts; {RAISE} to find what still goes wrong",
        number="solve_rate",
    ),
    "unsolved": Rule(
        "below",
        "nearly nothing is solved: {value:.1%} on average over prompts",
        "use easier prompts, show prompts.few_shot examples, raise sampling.n, or lower pairs.correct_at if the judge "
        "gives partial credit",
        number="solve_rate",
    ),
    "unique": Rule(
        "below",
        "responses repeat: only {value:.0%} of those to a prompt are different",
        "raise sampling.temperature; if it began with an iteration, lower train.learning_rate or raise train.beta",
    ),
    "entropy": Rule(
        "below",
        "the policy has become narrow: {value:.0%} of iteration 1's entropy per token",
        "raise sampling.temperature, lower train.learning_rate, or raise train.beta",
        relative=True,
    ),
    "length": Rule(
        "above",
        "responses have grown to {value:.2f} times those of iteration 1",
        "set promote.limits.length_ratio, pairs.max_length_gap or pairs.length_penalty, or use a loss that normalises "
        "by length",
        relative=True,
    ),
    "truncated": Rule(
        "above",
        "{value:.0%} of the responses were cut off at sampling.max_tokens",
        "raise sampling.max_tokens, or ask for shorter answers",
    ),
    "abstained": Rule(
        "above",
        "the judge could not tell about {value:.0%} of the responses",
        "look at them with `prefloop show`; mend the judge, or the form that the prompts ask for",
    ),
    "displacement": Rule(
        "above",
        "late in the round {value:.0%} of the pairs had a chosen response that is less likely than under the reference",
        "raise train.nll_weight, lower train.learning_rate, or use a loss against it (docs/methods.md)",
        stage="train",
    ),
    "sampler_gap": Rule(
        "above",
        "sampler and trainer disagree by {value:.3f} nat per token, as if they did not hold the same model",
        "look at engine.dtype and at the model's chat template (`prefloop doctor`)",
        stage="train",
    ),
}
"""Every alarm; the keys are those of AlarmsConfig."""


def alarms(history: Sequence[Numbers], settings: AlarmsConfig) -> list[Alarm]:
    """What is wrong in the last iteration of `history`, which begins with iteration 1."""
    found = [_alarm(name, rule, history, getattr(settings, name)) for name, rule in RULES.items()]
    return [alarm for alarm in found if alarm is not None]


def _alarm(name: str, rule: Rule, history: Sequence[Numbers], threshold: float | None) -> Alarm | None:
    number = rule.number or name
    value = _relative(number, history) if rule.relative else history[-1].get(number)
    if value is None or threshold is None or not _crossed(rule, value, threshold):
        return None
    problem = rule.problem.format(value=value)
    text = f"{problem} (alarms.{name} is {threshold:g}); {rule.advice}"
    return Alarm(name, rule.stage, value, threshold, text)


def _crossed(rule: Rule, value: float, threshold: float) -> bool:
    compare: Callable[[float, float], bool] = float.__lt__ if rule.side == "below" else float.__gt__
    return compare(float(value), float(threshold))


def _relative(number: str, history: Sequence[Numbers]) -> float | None:
    """The last iteration's number over the first one's; None if either is unknown, or for iteration 1 itself."""
    first, last = history[0].get(number), history[-1].get(number)
    return last / first if len(history) > 1 and first and last is not None else None
