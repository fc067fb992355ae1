"""Room loop, the promote stage. In: the promotion rule and the candidate's paired gain on the gate prompts; out:
whether the candidate becomes the next policy, and why, in one sentence for a person."""

from dataclasses import dataclass

from loop.config_promote import PromoteConfig
from loop.stats import Difference


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the candidate is promoted, and the sentence that says why."""

    promote: bool
    reason: str


def decide(settings: PromoteConfig, difference: Difference) -> Decision:
    """Apply the rule to `difference`, candidate minus incumbent of `settings.metric` at `settings.confidence`."""
    if settings.rule == "always":
        return Decision(True, f"promoted, as the rule asks nothing: {_measured(settings, difference)}")
    if difference.low is None:
        return Decision(False, f"not promoted: {_measured(settings, difference)}")
    bound = 0.0 if settings.rule == "better" else -settings.margin
    promote = difference.low > bound
    verdict = "promoted" if promote else "not promoted"
    where = "lies above" if promote else "does not lie above"
    return Decision(
        promote, f"{verdict}: {_measured(settings, difference)}, which {where} {_points(bound)} ({settings.rule})"
    )


def _measured(settings: PromoteConfig, difference: Difference) -> str:
    """What was measured, as a clause that ends with the interval."""
    metric = settings.metric.replace("_", " ")
    if difference.value is None or difference.low is None or difference.high is None:
        return f"{metric} cannot be compared, one of the models has no response that counts for it"
    prompts = f"{difference.n} gate prompt{'s' if difference.n != 1 else ''}"
    interval = f"{100 * settings.confidence:g} % interval {_points(difference.low)} to {_points(difference.high)}"
    return f"{metric} changed by {_points(difference.value)} points on {prompts}, {interval}"


def _points(share: float) -> str:
    """Percentage points with their sign; two decimals, so that a bound and what it is compared with differ in print."""
    rounded = round(100 * share, 2)
    return f"{rounded:+.2f}" if rounded else "0"
