"""Checks whether the loss can be trained on what the pair rule makes, or explains what to change. Imports no torch."""

from loop.config.pairs_section import PairsConfig
from loop.config.preferences_section import PairColumns
from loop.config.rule_table import RULES, rules_with
from loop.config.sampling_section import SamplingConfig
from loop.config.settings import Config
from trainer.losses.method import Method, Need
from trainer.losses.terms import LossTerm
from trainer.settings import TrainSettings

OF_DATA: frozenset[Need] = frozenset({"scores", "shares", "win_rates", "probability", "margin", "origin", "labels"})
"""Needs of a loss that only the data can satisfy."""
NEED_NAMES: dict[Need, str] = {
    "scores": "scores",
    "shares": "win rates as scores",
    "win_rates": "win rates",
    "probability": "the probability of each preference",
    "margin": "margins",
    "origin": "to know which response the reference sampled",
    "labels": "good and bad responses",
}


def why_unfit(pairs: PairsConfig, train: TrainSettings, *, n: int, given: PairColumns | None = None) -> str | None:
    """Why loss, pair rule and sampling (`n` responses per prompt, or `given` pairs) do not fit together; None if they
    do."""
    known = [term for term in train.terms if not term.is_custom]
    for data in filter(None, (given, pairs.offline)):
        if why := next(filter(None, (_why_not_given(term, data) for term in known)), None):
            return why
    if given is not None:
        return None
    rule = RULES[pairs.rule]
    other = rule.gold or pairs.gold_fallback or pairs.negative_column is not None
    if n < 2 and rule.kind != "singles" and not other:
        return f"pairs.rule {pairs.rule} compares responses to one prompt, and sampling.n is {n}; raise it to 2 or more"
    if pairs.rule == "rso" and pairs.rso_keep >= n:
        return (
            f"pairs.rso_keep={pairs.rso_keep} would accept all of sampling.n={n} responses, so that nothing is "
            "rejected; raise sampling.n or lower pairs.rso_keep"
        )
    if train.warm_start is not None and not RULES[pairs.rule].chooses:
        return (
            f"train.warm_start imitates the chosen responses, and pairs.rule {pairs.rule} chooses none; set "
            "train.warm_start to null, or pairs.rule to labels"
        )
    return next(filter(None, (_why_not(term, pairs) for term in known)), None)


def why_not_adaptive(pairs: PairsConfig, *, human_judge: bool) -> str | None:
    """Why more samples cannot go to prompts by their right and wrong responses; None if they can."""
    if human_judge:
        return "judges a first part of the responses before the rest; people (external) are asked once, so leave it out"
    if not RULES[pairs.rule].both_outcomes:
        return (
            f"looks for prompts with both right and wrong responses, which pairs.rule {pairs.rule} does not need; "
            f"leave it out, or use one of {rules_with('both_outcomes')}"
        )
    if pairs.gold_fallback:
        return (
            "gives up prompts without a right response, which pairs.gold_fallback makes pairs of; leave out one of both"
        )
    return None


def why_not_half(pairs: PairsConfig, sampling: SamplingConfig) -> str | None:
    """Why half of the responses must, or must not, come from the reference; None if the settings agree."""
    half = "origin" in RULES[pairs.rule].gives
    if sampling.from_reference != half:
        needs = "pairs.rule xpo contrasts the policy's responses with the reference's, and no other rule does"
        return f"{needs}; set sampling.from_reference to {str(half).lower()}, or take another rule"
    if sampling.from_reference and sampling.n % 2:
        return (
            f"sampling.from_reference samples one half from the reference, and sampling.n is {sampling.n}; make it even"
        )
    if sampling.from_reference and sampling.widen is not None:
        return "sampling.widen changes how many responses there are, and one half is the reference's; set it to null"
    return None


def gives(pairs: PairsConfig) -> frozenset[Need]:
    """The needs of losses that this section can satisfy; a gold answer has no games to win."""
    given = RULES[pairs.rule].gives
    if pairs.gold_fallback:
        given -= {"win_rates", "probability"}
    return given | {"shares"} if RULES[pairs.rule].standardises and pairs.standardise == "none" else given


def _why_not_given(term: LossTerm, data: PairColumns) -> str | None:
    """Why one loss of the sum cannot be trained on pairs of a dataset; None if it can."""
    method = term.method()
    problem = f"the loss {term.name} cannot be trained from pairs of a preference dataset"
    if method.kind == "groups":
        return f"{problem}: it is written over groups; use a loss over pairs, e.g. dpo"
    missing = (method.needs & OF_DATA) - {"labels"}
    if "margin" in missing and data.margin_column is None:
        return f"{problem} without margins; name their column in margin_column, or use another loss"
    if missing := missing - {"margin"}:
        wants = " and ".join(NEED_NAMES[need] for need in sorted(missing))
        return f"{problem}: it needs {wants}, which they do not have; use another loss, e.g. dpo"
    return None


def _why_not(term: LossTerm, pairs: PairsConfig) -> str | None:
    """Why one loss of the sum cannot be trained on what the rule makes; None if it can."""
    method, rule = term.method(), RULES[pairs.rule]
    problem = f"the loss {term.name} cannot be trained from pairs.rule {pairs.rule}"
    if rule.kind not in ("pairs", method.kind):
        return f"{problem}: it is written over {method.kind}, and the rule makes {rule.kind}; {_remedy(method)}"
    missing = sorted((method.needs & OF_DATA) - gives(pairs))
    if missing:
        wants = " and ".join(NEED_NAMES[need] for need in missing)
        return f"{problem}: it needs {wants}, which the rule does not give; {_remedy(method)}"
    if pairs.rule == "negatives" and method.takes != "bad":
        return f"{problem}, which gives bad responses only; use npo or simnpo (train.mix can hold what to retain)"
    if (pairs.rule == "d2o") != (term.name == "d2o") and rule.kind == method.kind == "groups":
        return f"{problem}: own responses before a bad answer are no ranking; {_remedy(method)}"
    return None


def _remedy(method: Method) -> str:
    """A rule that fits the loss."""
    if "origin" in method.needs:
        return "set pairs.rule to xpo and sampling.from_reference to true, or choose another loss"
    if "shares" in method.needs:
        return "set pairs.rule to spo, or choose another loss"
    if method.needs & {"win_rates", "probability"}:
        return "set pairs.rule to sppo with pairs.gold_fallback false, or choose another loss"
    if method.kind == "singles" and "scores" in method.needs:
        return "set pairs.rule to scored, or choose another loss"
    if method.function.endswith(":d2o"):
        return "set pairs.rule to d2o, or choose another loss"
    fitting = next(name for name, rule in RULES.items() if rule.suggested and rule.kind == method.kind)
    return f"set pairs.rule to {fitting}, or choose another loss"


def prompts_per_slice(config: Config) -> int:
    """The most prompts whose relations, over all epochs, fit in `sync_every` steps; 0 if one prompt may have more."""
    return _distinct_steps(config) * config.train.batch_pairs // most_relations(config)


def _distinct_steps(config: Config) -> int:
    """Steps of a slice in its first epoch; the others repeat them."""
    return int(config.train.sync_every) // config.train.epochs


def most_relations(config: Config) -> int:
    """The most relations per prompt, of the kind that the loss uses; a pair becomes two single responses, each counted
    once per prompt."""
    pairs, given = config.pairs, config.sampling.n + config.pairs.gold_fallback
    most = pairs.at_most or given + (pairs.negative_column is not None)
    known = [term for term in config.train.terms if not term.is_custom]
    singles = any(term.method().kind == "singles" for term in known)
    return min(2 * most, given) if singles and RULES[pairs.rule].kind == "pairs" else most


def why_not_online(config: Config) -> str | None:
    """Why an iteration with these settings cannot train slice by slice; None if it can."""
    pairs, sampling, given, initial = config.pairs, config.sampling, not config.samples, config.start == "initial"
    known = [term for term in config.train.terms if not term.is_custom]
    mismatched = next((term.name for term in known if "mismatched" in term.method().needs), None)
    reasons = {
        "the pairs come from preference data (prompts.source), so nothing is sampled; take another source": given,
        "people (judge external) would be asked at every slice; take another judge": config.human_judge,
        "start initial trains another model than the one that is sampled; set start to incumbent": initial,
        "a retry trains again on pairs that another model has sampled; set promote.on_reject to continue or stop": (
            config.promote.attempts > 1
        ),
        "pairs.max_pairs is divided among all prompts of an iteration; set it to null": pairs.max_pairs is not None,
        "pairs.balance needs all prompts of an iteration; set it to none": pairs.balance != "none",
        "pairs.replay depends on how many pairs the whole iteration has; set it to {}": bool(pairs.replay),
        "pairs.offline depends on how many pairs the whole iteration has; set it to null": (pairs.offline is not None),
        "pairs.standardise iteration needs all scores of an iteration; set it to prompt": (
            RULES[pairs.rule].standardises and pairs.standardise == "iteration"
        ),
        "a shard is always one slice of prompts; set sampling.shard_prompts to null": bool(sampling.shard_prompts),
        "sampling.adaptive probes all prompts of an iteration first; set it to null": sampling.adaptive is not None,
        f"the loss {mismatched} compares with responses to other prompts, and a slice may have pairs of one prompt "
        "alone; take another loss": mismatched is not None,
    }
    return next((why for why, given in reasons.items() if given), None) or _why_too_small(config)


def _why_too_small(config: Config) -> str | None:
    if prompts_per_slice(config):
        return None
    train, most = config.train, most_relations(config)
    if not _distinct_steps(config):
        return (
            f"train.epochs {train.epochs} makes more than {train.sync_every} steps of every pair; lower it, or raise "
            f"train.sync_every to {train.epochs}"
        )
    return (
        f"one prompt may give {most} {RULES[config.pairs.rule].kind}, more than are trained between two syncs "
        f"({train.batch_pairs} in each of {_distinct_steps(config)} steps); lower pairs.per_prompt, raise "
        f"train.batch_pairs, or raise train.sync_every to {-(-most // train.batch_pairs) * train.epochs}"
    )
