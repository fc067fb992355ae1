"""Config section `pairs`: how judged responses become training data. What each rule makes is in
`loop.config.rule_table`, explained in docs/pairs.md.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from loop.config.preferences_section import PreferenceSource
from loop.config.rule_table import RULES, RuleName, rules_with
from loop.config.section import Section

OF_PAIRS = ("min_margin", "max_length_gap", "min_edit_distance")
"""Filters that compare the two responses of a pair."""
BY_FACT = (
    ("gold_fallback", "falls_back", "false"),
    ("negative_column", "negative", "null"),
    ("length_penalty", "by_score", "0"),
    ("lengths", "nearest", "any"),
)
"""Keys that only some rules read: key, the fact of those rules, and the value that turns it off."""


class OfflinePairs(PreferenceSource):
    """Pairs of a preference dataset beside those of an iteration, drawn anew for each by the seed. Prompts of the gate
    and test sets are left out."""

    share: Annotated[float, Field(gt=0, lt=1)]
    """Their share of all pairs that the iteration trains on, if there are enough."""


class PairsConfig(Section):
    """How judged responses become what is trained on: pairs, or single responses or groups for losses over those."""

    rule: RuleName = "correct_vs_wrong"
    """What is made of a prompt's responses, and so which losses can be trained: the table in docs/pairs.md."""
    per_prompt: PositiveInt = 10
    """At most so many pairs per prompt, for rules that make several; correct_vs_wrong makes exactly so many, and so
    reuses the same responses in other combinations."""
    correct_at: float = 1.0
    """A response whose score reaches this is correct, any other scored one is wrong."""
    top_k: PositiveInt = 2
    """top_k_vs_bottom_k: so many of the best meet so many of the worst, at most half of the responses each."""
    rso_keep: Annotated[int, Field(ge=2)] = 8
    """rso: how many of a prompt's responses are accepted; fewer out of more are closer to the optimal policy."""
    rso_beta: PositiveFloat = 0.5
    """rso: temperature of the scores; higher accepts lower scores more often, towards 0 only the best are accepted."""
    rso_ranking: Literal["first_round", "tournament"] = "first_round"
    """rso: each accepted response meets one other, or winners meet again until one is left."""
    gold_fallback: bool = False
    """The known answer is chosen where a prompt has no correct response (Iterative RPO on GSM8K)."""
    gold_column: str | None = None
    """Column of the prompts with the gold answer in full; null takes the known answer (the prompts' target)."""
    gold_score: float | None = None
    """The score that a gold answer counts as, on the judge's scale; null is correct_at."""
    gold_margin: PositiveFloat = 2.0
    """dno_prct: by how much a response must score lower than the gold answer to be rejected against it."""
    own_margin: PositiveFloat = 1.0
    """dno_prct: by how much it must score lower than a sampled response."""
    negative_column: str | None = None
    """Column of the prompts with an answer known to be bad: for d2o, and added to negatives."""
    standardise: Literal["none", "prompt", "iteration"] = "iteration"
    """scored: scores as they are, or moved to mean 0 and variance 1 over a prompt's responses or over all of them."""
    keep_ties: bool = False
    """ranked: responses of equal score stay, in sampling order; otherwise the first of them alone."""
    drop_truncated: Literal["chosen", "both", "none"] = "chosen"
    """Which side may not be a response that was cut off at max_tokens (good responses count as chosen; scores, ranks
    and samples for d2o have no sides, there only `both` drops)."""
    min_margin: NonNegativeFloat = 0.0
    """The scores of a pair must differ by more than this; a tie never makes a pair."""
    max_length_gap: NonNegativeInt | None = None
    """Most tokens by which the lengths of a pair may differ; null allows any."""
    min_edit_distance: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of tokens to edit to turn one response of a pair into the other; higher drops near-duplicates."""
    length_penalty: NonNegativeFloat = 0.0
    """Taken from a score for each token, before anything is chosen by it; higher prefers shorter responses."""
    lengths: Literal["any", "nearest"] = "any"
    """`nearest`: of equally good pairs those whose lengths are nearest (correct_vs_wrong, best_vs_worst)."""
    balance: Literal["none", "solve_rate"] = "none"
    """`solve_rate`: as many pairs from easy prompts as from hard ones, in five classes by the share of correct
    responses; the smallest class that has any decides how many."""
    max_pairs: PositiveInt | None = None
    """At most so many pairs (or singles, or groups) in an iteration, taken evenly over the prompts."""
    replay: dict[PositiveInt, PositiveFloat] = {}
    """Pairs of earlier iterations beside the new ones: `{1: 0.3, 2: 0.15}` draws 0.3 times as many as there are new
    ones from the iteration before and 0.15 times as many from the one before that, by the seed, if there are enough."""
    offline: OfflinePairs | None = None
    """Pairs of a preference dataset beside those of the iteration; null adds none."""

    @property
    def score_of_gold(self) -> float:
        """The score that a gold answer counts as."""
        return self.correct_at if self.gold_score is None else self.gold_score

    @property
    def at_most(self) -> int | None:
        """Most relations that a prompt gives; None: one per response."""
        rule = RULES[self.rule]
        return None if rule.kind == "singles" else 1 if rule.single else self.per_prompt

    @model_validator(mode="after")
    def _has_what_the_rule_needs(self) -> "PairsConfig":
        if self.rule == "d2o" and self.negative_column is None:
            raise ValueError(
                "the rule d2o contrasts own responses with an answer that is known to be bad; name the column of the "
                "prompts that holds it in pairs.negative_column"
            )
        return self

    @model_validator(mode="after")
    def _offline_pairs_fit(self) -> "PairsConfig":
        if self.offline is not None and RULES[self.rule].kind != "pairs":
            raise ValueError(
                f"offline adds pairs, but the rule {self.rule} makes {RULES[self.rule].kind}; take a rule that makes "
                "pairs, or set offline to null"
            )
        return self

    @model_validator(mode="after")
    def _means_something_to_the_rule(self) -> "PairsConfig":
        if self.gold_fallback and self.score_of_gold < self.correct_at:
            raise ValueError(f"gold_score {self.gold_score:g} lies below correct_at {self.correct_at:g}; raise it")
        rule = RULES[self.rule]
        for key, fact, unset in BY_FACT:
            if getattr(self, key) != type(self).model_fields[key].default and not getattr(rule, fact):
                raise ValueError(f"{key} is for the rules {rules_with(fact)}, not for {self.rule}; set it to {unset}")
        for key in OF_PAIRS if rule.kind != "pairs" else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} compares the responses of a pair, and {self.rule} makes none; unset it")
        return self
