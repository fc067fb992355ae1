"""The facts about every pair rule: what it makes, what a loss can learn from that, and which settings apply to it."""

from typing import Literal, NamedTuple

from trainer.losses.method import Kind, Need

RuleName = Literal[
    "correct_vs_wrong", "best_vs_worst", "best_vs_random", "all_pairs", "top_k_vs_bottom_k", "rso",
    "sppo", "sppo_all", "oaif", "xpo", "dno_prct", "spin",
    "labels", "scored", "spo", "ranked", "d2o", "negatives",
]  # fmt: skip


class Rule(NamedTuple):
    """The facts about one rule."""

    kind: Kind
    gives: frozenset[Need]
    """The needs of losses that its output satisfies."""
    about: str
    """What it makes of a prompt's responses, as the plan shows it."""
    falls_back: bool = False
    """Whether a gold answer can stand in for a correct response."""
    draws: bool = False
    """Whether it draws at random."""
    gold: bool = False
    """Whether it needs a gold answer."""
    unscored: bool = False
    """Whether its gold answer has no score."""
    negative: bool = False
    """Whether it takes an answer that is known to be bad."""
    chooses: bool = True
    """Whether it makes chosen responses, which a warm start can imitate."""
    single: bool = False
    """Whether a prompt gives at most one relation, whatever `per_prompt` is."""
    by_score: bool = False
    """Whether it compares scores, so that a penalty on length changes its choice."""
    by_outcome: bool = False
    """Whether it divides responses into right and wrong by `correct_at`."""
    both_outcomes: bool = False
    """Whether it needs better and worse responses of the policy's own to a prompt."""
    nearest: bool = False
    """Whether it can choose among equally good pairs."""
    standardises: bool = False
    """Whether `standardise` applies to its scores."""
    suggested: bool = False
    """Whether error messages suggest it for losses over its kind."""


SCORED: frozenset[Need] = frozenset({"labels", "scores", "margin"})
JUDGED: frozenset[Need] = SCORED | {"win_rates", "probability"}
LABELS: frozenset[Need] = frozenset({"labels"})
SCORES: frozenset[Need] = frozenset({"scores"})

RULES: dict[RuleName, Rule] = {
    "correct_vs_wrong": Rule("pairs", JUDGED, "correct against wrong responses, in turn",
                             falls_back=True, by_outcome=True, both_outcomes=True, nearest=True),
    "best_vs_worst": Rule("pairs", JUDGED, "the best against the worst response", suggested=True, single=True,
                          falls_back=True, by_score=True, both_outcomes=True, nearest=True),
    "best_vs_random": Rule("pairs", JUDGED, "the best against a random worse response", single=True,
                           falls_back=True, draws=True, by_score=True, both_outcomes=True),
    "all_pairs": Rule("pairs", JUDGED, "every better against every worse response",
                      falls_back=True, by_score=True, both_outcomes=True),
    "top_k_vs_bottom_k": Rule("pairs", JUDGED, "the k best against the k worst responses",
                              falls_back=True, by_score=True, both_outcomes=True),
    "rso": Rule("pairs", JUDGED, "responses accepted by rejection sampling, against each other",
                draws=True, by_score=True),
    "sppo": Rule("pairs", JUDGED, "the highest against the lowest win rate", single=True),
    "sppo_all": Rule("pairs", JUDGED, "the highest against the lowest win rate, the second highest, and so on"),
    "oaif": Rule("pairs", JUDGED, "the first two responses, as the judge prefers", single=True),
    "xpo": Rule("pairs", JUDGED | {"origin"}, "the policy's responses and the reference's, as the judge prefers"),
    "dno_prct": Rule("pairs", SCORED, "gold and good responses against much worse ones", gold=True, by_outcome=True),
    "spin": Rule("pairs", LABELS, "the gold answer against own responses", gold=True, unscored=True),
    "labels": Rule("singles", LABELS, "each response as good or bad",
                   suggested=True, falls_back=True, by_outcome=True),
    "scored": Rule("singles", SCORES, "each response with its score",
                   chooses=False, by_score=True, standardises=True),
    "spo": Rule("singles", SCORES | {"shares"}, "each response with its win rate over the others", chooses=False),
    "ranked": Rule("groups", SCORES, "all responses in the order of their scores",
                   suggested=True, single=True, falls_back=True, by_score=True),
    "d2o": Rule("groups", frozenset(), "own responses against an answer known to be bad",
                single=True, negative=True, chooses=False),
    "negatives": Rule("singles", LABELS, "each wrong response, to be forgotten",
                      negative=True, chooses=False, by_outcome=True),
}  # fmt: skip


def rules_with(fact: str) -> str:
    """The names of the rules for which this fact holds, as messages list them."""
    return ", ".join(name for name, rule in RULES.items() if getattr(rule, fact))
