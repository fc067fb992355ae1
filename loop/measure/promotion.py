"""Promote stage: decide whether the candidate becomes the next policy, and why, from the promotion rule, the paired
gain on the gate prompts and the measured limits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loop.config.promote_section import LARGEST, LimitSettings, PromoteConfig
from loop.format import points
from loop.store.run_records import OUTCOMES, AttemptRecord, BestSoFar, Difference, Limit, Numbers, Outcome


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the candidate is promoted, and the sentences that say why."""

    promote: bool
    reason: str
    outcome: Outcome
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


def deciding_confidence(
    settings: PromoteConfig, *, k: int, iterations: int, checkpoints: int = 1, samples: int = 1, look: int = 1
) -> float:
    """Confidence of the interval that decides in iteration `k` of `iterations`: the chance of an error that
    `settings.confidence` leaves is divided as `alpha_spending` says, over the checkpoints that the candidate was chosen
    from (Bonferroni), and over the looks at the gate prompts, the first of which has `samples` per prompt."""
    share = 1.0
    if settings.alpha_spending == "bonferroni":
        share = 1 / iterations / settings.attempts
    elif settings.alpha_spending == "pocock":
        share = (_pocock(k / iterations) - _pocock((k - 1) / iterations)) / settings.attempts
    return 1 - (1 - settings.confidence) * share * look_share(settings, samples, look) / checkpoints


def look_share(settings: PromoteConfig, samples: int, look: int) -> float:
    """Share of a decision's error that a look may spend, by the samples per prompt that it has of those planned; the
    first has `samples`. The looks' shares sum to 1, so the union bound holds whatever their correlation is."""
    if settings.more_samples is None:
        return 1.0
    added = settings.more_samples.samples
    planned = samples + added * settings.more_samples.looks
    before = 0.0 if look == 1 else _pocock((samples + added * (look - 2)) / planned)
    return _pocock((samples + added * (look - 1)) / planned) - before


def is_open(settings: PromoteConfig, made: AttemptRecord) -> bool:
    """Whether more samples may turn a rejection into a promotion: every limit is kept, and neither interval, over the
    incumbent and over the best so far, lies at or below the rule's bound."""
    bound = bound_of(settings)
    if made.promoted or bound is None or not all(limit.within for limit in made.limits):
        return False
    gains = [made.gain, *([made.best.gain] if made.best is not None else [])]
    return all(gain.high is not None and gain.high > bound for gain in gains)


def _pocock(done: float) -> float:
    """Share of the error spent after a share `done` of the decisions: Lan and DeMets (1983), their α₂*."""
    return math.log(1 + (math.e - 1) * done)


def decide(
    settings: PromoteConfig,
    difference: Difference,
    limits: Sequence[Limit] = (),
    *,
    best: BestSoFar | None = None,
    confidence: float | None = None,
) -> Decision:
    """Apply the rule to `difference`, candidate minus incumbent of `settings.metric`; a candidate beyond a limit is not
    promoted, whatever it gained. `not_worse` is also held against `best`, so that small losses do not add up.
    `confidence` is that of the intervals, if it is not the configured one."""
    confidence = confidence or settings.confidence
    ruled = _rule(settings, difference, confidence)
    if best is not None and ruled.promote and settings.rule == "not_worse":
        against = _rule(settings, best.gain, confidence, _named(best))
        ruled = ruled if against.promote else against
    beyond = [limit for limit in limits if not limit.within]
    if not beyond:
        kept = f"; within its limits: {', '.join(_short(limit) for limit in limits)}" if limits else ""
        return Decision(ruled.promote, ruled.reason + kept, ruled.outcome, tuple(limits))
    measured = _measured(settings, difference, confidence)
    reason = ruled.reason if not ruled.promote else f"not promoted for its limits: {measured}"
    return Decision(False, f"{reason}; {'; '.join(map(_too_much, beyond))}", ruled.outcome, tuple(limits))


def outcome_of(difference: Difference, margin: float) -> Outcome:
    """What the interval says of the candidate, whatever the rule."""
    if difference.low is None or difference.high is None:
        return "too_few_prompts"
    if difference.low > 0:
        return "better"
    if difference.low > -margin:
        return "not_worse"
    return "worse" if difference.high < 0 else "too_few_prompts"


def bound_of(settings: PromoteConfig) -> float | None:
    """What the lower end of the interval must exceed; None if it decides nothing."""
    return {"better": 0.0, "not_worse": -settings.margin}.get(settings.rule)


def _named(best: BestSoFar) -> str:
    who = f"iteration {best.iteration}" if best.iteration else "the base model"
    return f" against {who}, the best promoted model so far"


def _rule(settings: PromoteConfig, difference: Difference, confidence: float, against: str = "") -> Decision:
    measured, outcome = _measured(settings, difference, confidence, against), outcome_of(difference, settings.margin)
    if (bound := bound_of(settings)) is None:
        return Decision(True, f"promoted, as every candidate is (always): {measured}", outcome)
    if difference.low is None:
        return Decision(False, f"not promoted: {measured}", outcome)
    promote = difference.low > bound
    verdict = f"{'promoted' if promote else 'not promoted'}, {OUTCOMES[outcome]}"
    return Decision(promote, f"{verdict}: {measured}: {_at_worst(settings, difference.low)}", outcome)


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


def _measured(settings: PromoteConfig, difference: Difference, confidence: float, against: str = "") -> str:
    """What was measured, as a clause that ends with the interval."""
    metric = settings.metric.replace("_", " ")
    if difference.value is None or difference.low is None or difference.high is None:
        return f"{metric} cannot be compared{against}, one of the models has no response that counts for it"
    prompts = f"{difference.n} gate prompt{'s' if difference.n != 1 else ''}"
    interval = f"{100 * confidence:.4g} % interval {_points(difference.low)} to {_points(difference.high)}"
    return f"{metric} changed by {_points(difference.value)} points{against} on {prompts}, {interval}"


def _points(share: float) -> str:
    """Percentage points with their sign; two decimals, so that a bound and its counterpart differ in print."""
    return points(share, 2) if round(100 * share, 2) else "0"
