"""Every pair rule by name: what it makes, and what a loss can learn from that. It holds only facts, so the
configuration can be checked against the losses before anything is loaded.
"""

from typing import Literal, NamedTuple

from trainer.losses.method import Kind, Need

RuleName = Literal[
    "correct_vs_wrong",
    "best_vs_worst",
    "best_vs_random",
    "all_pairs",
    "top_k_vs_bottom_k",
    "rso",
    "sppo",
    "sppo_all",
    "oaif",
    "xpo",
    "dno_prct",
    "spin",
    "labels",
    "scored",
    "spo",
    "ranked",
    "d2o",
    "negatives",
]


class Rule(NamedTuple):
    """A rule; `gives` are the needs of losses that its output satisfies."""

    kind: Kind
    gives: frozenset[Need]
    about: str
    """What a prompt gives, as the plan says it."""
    falls_back: bool = False
    """Whether a gold answer can stand in for a correct response."""
    draws: bool = False
    """Whether chance has a part in it."""
    gold: bool = False
    """Whether it needs a gold answer."""
    negative: bool = False
    """Whether it takes an answer that is known to be bad."""


SCORED: frozenset[Need] = frozenset({"labels", "scores", "margin"})
JUDGED: frozenset[Need] = SCORED | {"win_rates", "probability"}
LABELS: frozenset[Need] = frozenset({"labels"})
SCORES: frozenset[Need] = frozenset({"scores"})

RULES: dict[RuleName, Rule] = {
    "correct_vs_wrong": Rule("pairs", JUDGED, "correct against wrong responses, in turn", falls_back=True),
    "best_vs_worst": Rule("pairs", JUDGED, "the best against the worst response", falls_back=True),
    "best_vs_random": Rule("pairs", JUDGED, "the best against a random worse response", falls_back=True, draws=True),
    "all_pairs": Rule("pairs", JUDGED, "every better against every worse response", falls_back=True),
    "top_k_vs_bottom_k": Rule("pairs", JUDGED, "the k best against the k worst responses", falls_back=True),
    "rso": Rule("pairs", JUDGED, "responses accepted by rejection sampling, against each other", draws=True),
    "sppo": Rule("pairs", JUDGED, "the highest against the lowest win rate"),
    "sppo_all": Rule("pairs", JUDGED, "the highest against the lowest win rate, the second highest, and so on"),
    "oaif": Rule("pairs", JUDGED, "the first two responses, as the judge prefers"),
    "xpo": Rule("pairs", JUDGED | {"origin"}, "the policy's responses and the reference's, as the judge prefers"),
    "dno_prct": Rule("pairs", SCORED, "gold and good responses against much worse ones", gold=True),
    "spin": Rule("pairs", LABELS, "the gold answer against own responses", gold=True),
    "labels": Rule("singles", LABELS, "each response as good or bad", falls_back=True),
    "scored": Rule("singles", SCORES, "each response with its score"),
    "spo": Rule("singles", SCORES | {"shares"}, "each response with its win rate over the others"),
    "ranked": Rule("groups", SCORES, "all responses in the order of their scores", falls_back=True),
    "d2o": Rule("groups", frozenset(), "own responses against an answer known to be bad", negative=True),
    "negatives": Rule("singles", LABELS, "each wrong response, to be forgotten", negative=True),
}
