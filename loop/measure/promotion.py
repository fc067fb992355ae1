"""Promote stage: decide whether the candidate becomes the next policy, and why, from the promotion rule, the paired
gain on the gate prompts and the measured limits."""

from collections.abc import Sequence
from dataclasses import dataclass

from loop.config.promote_section import LARGEST, LimitSettings, PromoteConfig
from loop.format import points
from loop.store.run_records import Difference, Limit, Numbers


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the candidate is promoted, and the sentences that say why."""

    promote: bool
    reason: str
    limits: tuple[Limit, ...] = ()


def check_limits(settings: LimitSettings, measured: Numbers) -> tuple[Limit, ...]:
    """Check every limit that is set against `measured`, by name; a missing value is not within its limit."""
    limits = [
        Limit(name, measured.get(name), most, _known(measured.get(name)) <= most)
        for name in LARGEST
        if (most := getattr(settings, name)) is not None
    ]
    if settings.shadow is not None:
        change = measured.get("shadow")
        within = change is not None and change >= -settings.shadow_fall
        limits.append(Limit("shadow", change, 0.0 - settings.shadow_fall, within))
    return tuple(limits)


def _known(value: float | None) -> float:
    """A value that compares as too large if there is none, or if it is no number."""
    return value if value is not None and value == value else float("inf")


def decide(settings: PromoteConfig, difference: Difference, limits: Sequence[Limit] = ()) -> Decision:
    """Apply the rule to `difference`, candidate minus incumbent of `settings.metric` at `settings.confidence`; a
    candidate beyond a limit is not promoted, whatever it gained."""
    ruled = _rule(settings, difference)
    beyond = [limit for limit in limits if not limit.within]
    if not beyond:
        kept = f"; within its limits: {', '.join(_short(limit) for limit in limits)}" if limits else ""
        return Decision(ruled.promote, ruled.reason + kept, tuple(limits))
    reason = ruled.reason if not ruled.promote else f"not promoted for its limits: {_measured(settings, difference)}"
    return Decision(False, f"{reason}; {'; '.join(map(_too_much, beyond))}", tuple(limits))


def _rule(settings: PromoteConfig, difference: Difference) -> Decision:
    if settings.rule == "always":
        return Decision(True, f"promoted, as every candidate is (always): {_measured(settings, difference)}")
    if difference.low is None:
        return Decision(False, f"not promoted: {_measured(settings, difference)}")
    bound = 0.0 if settings.rule == "better" else -settings.margin
    promote = difference.low > bound
    verdict = "promoted" if promote else "not promoted"
    return Decision(promote, f"{verdict}: {_measured(settings, difference)}: {_at_worst(settings, difference.low)}")


def _at_worst(settings: PromoteConfig, low: float) -> str:
    """What the lower end of the interval says of the candidate, and what the rule asks."""
    if low > 0:
        return f"it is better by at least {100 * low:.2f} points ({settings.rule})"
    asked = "it has to be better" if settings.rule == "better" else f"the limit is {100 * settings.margin:g}"
    return f"it could be up to {-100 * low:.2f} points worse; {asked} ({settings.rule})"


def _short(limit: Limit) -> str:
    least = limit.name == "shadow"
    return f"{limit.name} {limit.value:.4g} (at {'least' if least else 'most'} {limit.limit:g})"


def _too_much(limit: Limit) -> str:
    """A limit that was not kept, as a clause."""
    what = LARGEST.get(limit.name, "change of the shadow score")
    if limit.value is None or limit.value != limit.value:
        return f"{what} could not be measured, so the limit {limit.name} {limit.limit:g} counts as failed"
    side = "below" if limit.name == "shadow" else "above"
    return f"{what} is {limit.value:.4g}, {side} the limit {limit.name} {limit.limit:g}"


def _measured(settings: PromoteConfig, difference: Difference) -> str:
    """What was measured, as a clause that ends with the interval."""
    metric = settings.metric.replace("_", " ")
    if difference.value is None or difference.low is None or difference.high is None:
        return f"{metric} cannot be compared, one of the models has no response that counts for it"
    prompts = f"{difference.n} gate prompt{'s' if difference.n != 1 else ''}"
    interval = f"{100 * settings.confidence:g} % interval {_points(difference.low)} to {_points(difference.high)}"
    return f"{metric} changed by {_points(difference.value)} points on {prompts}, {interval}"


def _points(share: float) -> str:
    """Percentage points with their sign; two decimals, so that a bound and its counterpart differ in print."""
    return points(share, 2) if round(100 * share, 2) else "0"
