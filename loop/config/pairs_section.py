"""Config section `pairs`: how judged responses become training data; docs/pairs.md explains the rules."""

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
    """Pairs of a preference dataset added to those of an iteration, drawn anew for each iteration by the seed. Prompts
    of the gate and test sets are excluded."""

    share: Annotated[float, Field(gt=0, lt=1)]
    """Their share of all pairs that the iteration trains on, if the dataset has enough."""


class PairsConfig(Section):
    """How judged responses become training data: pairs, or single responses or groups for losses over those."""

    rule: RuleName = "correct_vs_wrong"
    """What is made of a prompt's responses, and therefore which losses can be trained: see the table in
    docs/pairs.md."""
    per_prompt: PositiveInt = 10
    """Maximum number of pairs per prompt, for rules that make several; correct_vs_wrong makes exactly this many and
    reuses responses in other combinations."""
    correct_at: float = 1.0
    """A response whose score is at least this is correct; any other scored response is wrong."""
    top_k: PositiveInt = 2
    """top_k_vs_bottom_k: this many of the best responses meet as many of the worst, at most half of the responses
    each."""
    rso_keep: Annotated[int, Field(ge=2)] = 8
    """rso: how many of a prompt's responses are accepted; a smaller share is closer to the optimal policy."""
    rso_beta: PositiveFloat = 0.5
    """rso: temperature of the scores; higher accepts lower scores more often, towards 0 only the best are accepted."""
    rso_ranking: Literal["first_round", "tournament"] = "first_round"
    """rso: `first_round` compares each accepted response with one other; `tournament` compares the winners again until
    one is left."""
    gold_fallback: bool = False
    """Choose the known answer where a prompt has no correct response (Iterative RPO on GSM8K)."""
    gold_column: str | None = None
    """Column of the prompts with the full gold answer; null takes the known answer (the prompts' target)."""
    gold_score: float | None = None
    """Score of a gold answer, on the judge's scale; null is correct_at."""
    gold_margin: PositiveFloat = 2.0
    """dno_prct: how much lower than the gold answer a response must score to be rejected against it."""
    own_margin: PositiveFloat = 1.0
    """dno_prct: how much lower than a good sampled response it must score to be rejected against that one."""
    negative_column: str | None = None
    """Column of the prompts with an answer known to be bad: needed by d2o, optional for negatives."""
    standardise: Literal["none", "prompt", "iteration"] = "iteration"
    """scored: `none` keeps the scores; the others standardise them to mean 0 and variance 1 over a prompt's responses
    or over all of the iteration."""
    keep_ties: bool = False
    """ranked: keep responses of equal score, in sampling order; otherwise only the first of them."""
    drop_truncated: Literal["chosen", "both", "none"] = "chosen"
    """Which side may not be a response that was cut off at max_tokens (good responses count as chosen; scores, ranks
    and samples for d2o have no sides, so only `both` drops them)."""
    min_margin: NonNegativeFloat = 0.0
    """The scores of a pair must differ by more than this; ties never make a pair."""
    max_length_gap: NonNegativeInt | None = None
    """Maximum difference between the lengths of a pair, in tokens, thoughts not counted; null allows any."""
    min_edit_distance: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Minimum share of tokens to edit to turn one response of a pair into the other; higher drops near-duplicates."""
    length_penalty: NonNegativeFloat = 0.0
    """Subtracted from a score for each token of the answer before the rule compares scores; higher prefers shorter
    responses."""
    lengths: Literal["any", "nearest"] = "any"
    """`nearest`: among equally good pairs, take those with the nearest lengths (correct_vs_wrong, best_vs_worst)."""
    balance: Literal["none", "solve_rate"] = "none"
    """`solve_rate`: take as many pairs from easy prompts as from hard ones, in five classes by the share of correct
    responses; the smallest class that has any decides how many."""
    max_pairs: PositiveInt | None = None
    """Maximum number of pairs (or singles, or groups) in an iteration, taken evenly over the prompts."""
    replay: dict[PositiveInt, PositiveFloat] = {}
    """Pairs of earlier iterations added to the new ones: `{1: 0.3, 2: 0.15}` draws 0.3 times the number of new pairs
    from the previous iteration and 0.15 times from the one before that, by the seed, if there are enough."""
    offline: OfflinePairs | None = None
    """Pairs of a preference dataset added to those of the iteration; null adds none."""

    @property
    def score_of_gold(self) -> float:
        """The score of a gold answer."""
        return self.correct_at if self.gold_score is None else self.gold_score

    @property
    def at_most(self) -> int | None:
        """Most relations that a prompt gives; None: one per response."""
        rule = RULES[self.rule]
        return None if rule.kind == "singles" else 1 if rule.single else self.per_prompt

    @model_validator(mode="after")
    def _fits_the_rule(self) -> "PairsConfig":
        rule = RULES[self.rule]
        if self.rule == "d2o" and self.negative_column is None:
            raise ValueError(
                "the rule d2o contrasts own responses with an answer that is known to be bad; name the column of the "
                "prompts that holds it in pairs.negative_column"
            )
        if self.offline is not None and rule.kind != "pairs":
            raise ValueError(
                f"offline adds pairs, but the rule {self.rule} makes {rule.kind}; take a rule that makes pairs, or set "
                "offline to null"
            )
        if self.gold_fallback and self.score_of_gold < self.correct_at:
            raise ValueError(f"gold_score {self.gold_score:g} lies below correct_at {self.correct_at:g}; raise it")
        for key, fact, unset in BY_FACT:
            if self.changes(key) and not getattr(rule, fact):
                raise ValueError(f"{key} is for the rules {rules_with(fact)}, not for {self.rule}; set it to {unset}")
        for key in OF_PAIRS if rule.kind != "pairs" else ():
            if self.changes(key):
                raise ValueError(f"{key} compares the responses of a pair, and {self.rule} makes none; unset it")
        return self
