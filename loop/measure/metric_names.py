"""Flat metric names, listed in docs/watch.md, for the numbers of an iteration or a line of the step log. An unknown
number has no entry."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from loop.measure.alarms import RULES
from loop.store.run_records import SetMetrics
from loop.store.run_state import IterationState

ACCURACIES = {
    "sampled_accuracy": "sampled",
    "greedy_accuracy": "greedy",
    "well_formed_share": "well_formed",
    "accuracy_among_well_formed": "right_of_well_formed",
    "preference_accuracy": "preference",
}
"""Metrics with an interval: what the evaluation calls them, and their name here."""

SHARES = {
    "mean_length": "length",
    "pass_at_k": "pass_at_k",
    "maj_at_k": "majority_at_k",
    "truncated_share": "truncated",
    "abstained_share": "abstained",
    "error_share": "errors",
    "unparsable_share": "unparsable",
    "mean_margin": "margin",
    "likelihood_accuracy": "likelihood",
}
"""Metrics without an interval."""

COUNTED = {
    "sample": ("prompts", "prompts_too_long", "responses", "tokens", "truncated"),
    "judge": ("score", "abstain", "error", "unparsable", "well_formed"),
    "pair": ("pairs",),
}
"""What is counted before a round is trained."""

OUTCOME_LEVELS = {"worse": -1, "too_few_prompts": 0, "not_worse": 1, "better": 2}
"""An outcome of the gate as a number."""

STEP = "train/step"
"""Optimizer steps since the start of the campaign, counted from 0 over all rounds."""
ITERATION = "iteration"
GROUPS = ("eval", "sample", "judge", "pair", "signal", "alarms", "promote", "time")
"""First parts of the names that have one value per iteration; those of `train` have one per step."""


def labelled_metrics(state: IterationState) -> dict[str, float]:
    """Results of sampling, judging and pairing."""
    stages = {"sample": state.sampled, "judge": state.judged, "pair": state.paired}
    found = {
        f"{stage}/{name}": getattr(counts, name)
        for stage, counts in stages.items()
        for name in COUNTED[stage]
        if counts is not None
    }
    found["pair/prompts"] = state.paired.prompts.get("paired") if state.paired else None
    signal = state.paired.signal if state.paired else {}
    return _numbers(found | {f"signal/{name}": value for name, value in signal.items()})


def eval_metrics(metrics: SetMetrics, name: str) -> dict[str, float]:
    """The evaluation on the prompts `name` (gate or test), intervals as `_low` and `_high`."""
    found: dict[str, float | None] = {}
    for metric, short in ACCURACIES.items():
        interval = metrics.metric(metric)
        if interval is not None and interval.value is not None:
            found |= {short: interval.value, f"{short}_low": interval.low, f"{short}_high": interval.high}
    found |= {short: getattr(metrics, metric) for metric, short in SHARES.items()}
    return _numbers({f"eval/{name}/{short}": value for short, value in found.items()})


def decided_metrics(state: IterationState) -> dict[str, float]:
    """Evaluation, decision and times of an iteration, and the signal that training adds."""
    sets = [("gate", state.gate), ("test", state.test)]
    evaluated = [eval_metrics(metrics, name) for name, metrics in sets if metrics is not None]
    found: dict[str, float | None] = {}
    if state.gain is not None:
        gain = state.gain
        found |= {"promote/gain": gain.value, "promote/gain_low": gain.low, "promote/gain_high": gain.high}
    if state.iteration:
        found |= {"promote/promoted": state.promoted, "promote/attempts": state.attempts_begun}
    if state.outcome is not None:
        found["promote/outcome"] = OUTCOME_LEVELS[state.outcome]
    signal = state.paired.signal if state.paired else {}
    found |= {f"signal/{name}": value for name, value in state.signal.items() if name not in signal}
    found |= {f"time/{part}": seconds for part, seconds in asdict(state.time).items()}
    return {name: value for one in evaluated for name, value in one.items()} | _numbers(found)


def alarm_metrics(state: IterationState) -> dict[str, float]:
    """Which alarms an iteration raises; only of a state that `status.collect` returns, as the others have none."""
    raised = [alarm.name for alarm in state.alarms]
    found = {"raised": len(raised), **{name: name in raised for name in RULES}}
    return _numbers({f"alarms/{name}": value for name, value in found.items()}) if state.iteration else {}


def iteration_metrics(state: IterationState) -> dict[str, float]:
    """All numbers of an iteration, by name."""
    return {ITERATION: state.iteration, **labelled_metrics(state), **decided_metrics(state)}


def step_metrics(line: Mapping[str, Any], prefix: str = "train") -> dict[str, float]:
    """The numbers of a line of the step log; `step` itself counts within the round and is left out."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            found |= step_metrics(value, f"{prefix}/{name}")
        elif name != "step":
            found |= _numbers({f"{prefix}/{name}": value})
    return found


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those that are known; true is 1."""
    return {name: +value for name, value in values.items() if isinstance(value, (int, float))}
