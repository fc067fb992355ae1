"""Pairing: the published walk, what never becomes a pair, and counts that add up."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.config.pairs_section import PairsConfig
from loop.config.rule_table import RULES
from loop.pairing.iteration import Pairing, pair_all
from loop.pairing.one_prompt import build_prompt
from loop.pairing.reasons import PROMPT_OUTCOMES, RESPONSE_REASONS, why_nothing
from loop.pairing.records import Answers, Judged
from trainer.data import Pair


def response(name: str, score: float | None, *, tokens: str | None = None, kind: str = "score", cut: bool = False):
    return Judged(name, tokens or name, kind, score, "length" if cut else "stop")


def group(correct: int, wrong: int) -> list[Judged]:
    return [response(f"w{k + 1}", 1.0) for k in range(correct)] + [response(f"l{k + 1}", 0.0) for k in range(wrong)]


def ids(made) -> list[tuple[str, str]]:
    return [(pair.chosen_id, pair.rejected_id) for pair in made.relations]


def why_none(made: Pairing) -> str:
    return why_nothing(made.iteration, made.prompts, made.responses)


# The published walk (methods of arXiv:2404.19733)


def test_three_winners_and_two_losers_are_walked_as_published():
    made = build_prompt("p", group(3, 2), PairsConfig(per_prompt=5))
    assert ids(made) == [("w1", "l1"), ("w2", "l2"), ("w3", "l1"), ("w1", "l2"), ("w2", "l1")]
    assert made.outcome == "paired"
    assert set(made.reasons.values()) == {"used"}


def test_one_winner_meets_the_losers_in_turn_until_ten_pairs_are_made():
    made = build_prompt("p", group(1, 3), PairsConfig(per_prompt=10))
    assert ids(made) == [("w1", f"l{k % 3 + 1}") for k in range(10)]


def test_thirty_correct_responses_give_no_pair():
    made = build_prompt("p", group(30, 0), PairsConfig())
    assert (made.relations, made.outcome) == ([], "all_correct")
    assert Counter(made.reasons.values()) == {"prompt_all_correct": 30}


def test_the_walk_follows_sampling_order_whatever_the_order_of_scores():
    judged = [response("l1", 0.0), response("w1", 1.0), response("l2", 0.5), response("w2", 2.0)]
    assert ids(build_prompt("p", judged, PairsConfig(per_prompt=2))) == [("w1", "l1"), ("w2", "l2")]


def test_responses_beyond_the_last_pair_are_unused():
    made = build_prompt("p", group(2, 3), PairsConfig(per_prompt=2))
    assert made.reasons == {"w1": "used", "w2": "used", "l1": "used", "l2": "used", "l3": "unused"}


def test_correct_at_moves_the_line_between_right_and_wrong():
    judged = [response("a", 0.6), response("b", 0.4)]
    assert build_prompt("p", judged, PairsConfig()).outcome == "all_wrong"
    assert ids(build_prompt("p", judged, PairsConfig(per_prompt=1, correct_at=0.6))) == [("a", "b")]


# What never becomes a pair


def test_abstentions_and_errors_are_counted_and_never_wrong_answers():
    judged = [response("w1", 1.0), response("a", None, kind="abstain"), response("e", None, kind="error")]
    made = build_prompt("p", judged, PairsConfig())
    assert made.outcome == "all_correct"
    assert made.reasons == {"w1": "prompt_all_correct", "a": "abstain", "e": "error"}
    assert build_prompt("p", judged[1:], PairsConfig()).outcome == "no_score"


def test_duplicates_go_before_the_walk():
    judged = [response("w1", 1.0), response("w2", 1.0, tokens="w1"), response("l1", 0.0), response("l2", 0.0)]
    made = build_prompt("p", judged, PairsConfig(per_prompt=2))
    assert ids(made) == [("w1", "l1"), ("w1", "l2")]
    assert made.reasons["w2"] == "duplicate"


def test_equal_tokens_with_unequal_scores_are_no_pair():
    judged = [response("a", 1.0, tokens="same"), response("b", 0.0, tokens="same")]
    made = build_prompt("p", judged, PairsConfig())
    assert (made.relations, made.reasons) == ([], {"a": "prompt_all_correct", "b": "duplicate"})


def test_a_failed_verdict_does_not_shadow_the_scored_duplicate():
    judged = [response("a", None, tokens="same", kind="error"), response("b", 1.0, tokens="same"), response("c", 0.0)]
    assert ids(build_prompt("p", judged, PairsConfig(per_prompt=1))) == [("b", "c")]


@pytest.mark.parametrize(
    ("drop", "expected", "truncated"),
    [
        ("none", [("w1", "l1"), ("w2", "l2")], set()),
        ("chosen", [("w2", "l1"), ("w2", "l2")], {"w1"}),
        ("both", [("w2", "l2"), ("w2", "l2")], {"w1", "l1"}),
    ],
)
def test_truncated_responses_stay_off_the_sides_the_setting_names(drop, expected, truncated):
    judged = [
        response("w1", 1.0, cut=True),
        response("w2", 1.0),
        response("l1", 0.0, cut=True),
        response("l2", 0.0),
    ]
    made = build_prompt("p", judged, PairsConfig(per_prompt=2, drop_truncated=drop))
    assert ids(made) == expected
    assert {name for name, reason in made.reasons.items() if reason == "truncated"} == truncated


def test_a_prompt_whose_only_correct_response_is_truncated_says_so():
    made = build_prompt("p", [response("w1", 1.0, cut=True), response("l1", 0.0)], PairsConfig())
    assert made.outcome == "truncated"
    assert made.reasons == {"w1": "truncated", "l1": "prompt_truncated"}


@pytest.mark.parametrize("score", [None, float("nan"), float("inf")])
def test_a_score_that_is_none_or_not_finite_is_refused(score):
    with pytest.raises(ValueError, match="response a"):
        build_prompt("p", [response("a", score)], PairsConfig())


def test_repeated_ids_are_refused():
    with pytest.raises(ValueError, match="prompt p"):
        build_prompt("p", [response("a", 1.0), response("a", 0.0)], PairsConfig())
    with pytest.raises(ValueError, match="twice"):
        pair_all([("p", group(1, 1)), ("p", group(1, 1))], PairsConfig(), 1)


# Best versus worst

BEST = PairsConfig(rule="best_vs_worst")


def test_best_meets_worst_once_and_the_earlier_response_breaks_ties():
    judged = [response("a", 0.5), response("b", 0.9), response("c", 0.1), response("d", 0.9), response("e", 0.1)]
    made = build_prompt("p", judged, BEST)
    assert ids(made) == [("b", "c")]
    assert Counter(made.reasons.values()) == {"used": 2, "unused": 3}


def test_equal_scores_are_a_tie_and_no_pair():
    made = build_prompt("p", [response("a", 0.5), response("b", 0.5)], BEST)
    assert (made.relations, made.outcome) == ([], "all_tied")


def test_the_margin_must_be_exceeded():
    judged = [response("a", 0.75), response("b", 0.5)]
    assert build_prompt("p", judged, PairsConfig(rule="best_vs_worst", min_margin=0.25)).outcome == "within_margin"
    assert build_prompt("p", judged, PairsConfig(rule="best_vs_worst", min_margin=0.2)).outcome == "paired"


def test_the_best_untruncated_response_is_chosen():
    judged = [response("a", 0.9, cut=True), response("b", 0.6), response("c", 0.1, cut=True)]
    made = build_prompt("p", judged, BEST)
    assert ids(made) == [("b", "c")]
    assert made.reasons["a"] == "truncated"


def test_truncation_that_leaves_no_better_response_is_named():
    made = build_prompt("p", [response("a", 0.9, cut=True), response("b", 0.6)], BEST)
    assert made.outcome == "truncated"
    assert made.reasons == {"a": "truncated", "b": "prompt_truncated"}


# A whole iteration


def test_an_iteration_counts_every_prompt_and_response():
    groups = [("p", group(1, 1)), ("q", group(2, 0)), ("r", group(0, 3)), ("s", [response("x", None, kind="error")])]
    made = pair_all(iter(groups), PairsConfig(per_prompt=2), 1)
    assert made.prompts == {"paired": 1, "all_correct": 1, "all_wrong": 1, "no_score": 1}
    assert made.responses == {"used": 2, "error": 1, "prompt_all_correct": 2, "prompt_all_wrong": 3}
    assert [pair.weight for pair in made.relations] == [1.0, 1.0]


def named(prompts: int, correct: int, wrong: int):
    """Groups of many prompts, response ids unique over all of them."""
    for p in range(prompts):
        winners = [response(f"{p}w{k}", 1.0) for k in range(correct)]
        yield f"p{p}", winners + [response(f"{p}l{k}", 0.0) for k in range(wrong)]


@pytest.mark.parametrize(("cap", "spread"), [(9, {3: 3}), (8, {3: 2, 2: 1}), (4, {2: 1, 1: 2}), (2, {1: 2})])
def test_the_cap_is_spread_evenly_over_prompts(cap, spread):
    made = pair_all(named(3, 2, 3), PairsConfig(per_prompt=3, max_pairs=cap), 1)
    assert Counter(Counter(pair.prompt_id for pair in made.relations).values()) == spread


def test_prompts_with_few_pairs_leave_their_share_to_the_others():
    groups = [*named(1, 1, 1), ("q", group(3, 3))]
    settings = PairsConfig(rule="correct_vs_wrong", per_prompt=3, max_pairs=5)
    counts = Counter(pair.prompt_id for pair in pair_all(groups, settings, 1).relations)
    assert sorted(counts.values()) == [2, 3]


def test_what_the_cap_takes_away_is_counted():
    made = pair_all(named(3, 1, 1), PairsConfig(per_prompt=4, max_pairs=2), 1)
    assert made.prompts == {"paired": 2, "over_cap": 1}
    assert made.responses == {"used": 4, "over_cap": 2}


def test_the_cap_does_not_always_spare_the_same_prompts():
    survivors = {
        pair.prompt_id
        for iteration in range(1, 20)
        for pair in pair_all(named(4, 1, 1), PairsConfig(per_prompt=1, max_pairs=1), iteration).relations
    }
    assert survivors == {"p0", "p1", "p2", "p3"}


# The sentence for an iteration without pairs


def test_an_iteration_without_pairs_names_the_one_cause():
    said = why_none(pair_all(named(96, 0, 8), PairsConfig(), 2))
    assert said.startswith("no pairs in iteration 2: every prompt was all-wrong (96 of 96); raise sampling.temperature")
    assert "few_shot" in said


def test_an_iteration_without_pairs_names_all_causes_the_most_frequent_first():
    groups = [*named(2, 0, 2), ("q", group(3, 0)), ("r", [response("x", None, kind="error")])]
    said = why_none(pair_all(groups, PairsConfig(), 1))
    assert "the prompts were all-wrong (2 of 4), all-correct (1 of 4) and without any score (1 of 4)" in said
    assert "lost before pairing: 1 of 8 responses to judge errors" in said


def test_an_iteration_without_prompts_says_so():
    assert why_none(pair_all([], PairsConfig(), 3)) == "no pairs in iteration 3: no prompt came in"


# Properties

verdicts = st.tuples(
    st.sampled_from(["score", "score", "score", "abstain", "error"]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5]),
    st.integers(0, 5),
    st.booleans(),
)
many_groups = st.lists(st.lists(verdicts, max_size=8), max_size=8).map(
    lambda drawn: [
        (
            f"p{p}",
            [
                Judged(f"p{p}r{k}", str(tokens), kind, score if kind == "score" else None, "length" if cut else "stop")
                for k, (kind, score, tokens, cut) in enumerate(one)
            ],
        )
        for p, one in enumerate(drawn)
    ]
)
any_settings = st.builds(
    PairsConfig,
    rule=st.sampled_from(["correct_vs_wrong", "best_vs_worst"]),
    per_prompt=st.integers(1, 12),
    correct_at=st.sampled_from([0.5, 1.0]),
    drop_truncated=st.sampled_from(["chosen", "both", "none"]),
    min_margin=st.sampled_from([0.0, 0.25, 0.5]),
    max_pairs=st.none() | st.integers(1, 20),
)


def check_counts(made: Pairing, groups: list[tuple[str, list[Judged]]]) -> None:
    members = {name for pair in made.relations for name in (pair.chosen_id, pair.rejected_id)}
    assert sum(made.responses.values()) == sum(len(judged) for _, judged in groups)
    assert sum(made.prompts.values()) == len(groups)
    assert made.responses.get("used", 0) == len(members)
    assert made.prompts.get("paired", 0) == len({pair.prompt_id for pair in made.relations})
    assert min([*made.responses.values(), *made.prompts.values()], default=1) > 0
    assert made.responses.keys() <= RESPONSE_REASONS.keys()
    assert made.prompts.keys() <= PROMPT_OUTCOMES.keys()


@given(many_groups, any_settings)
def test_counts_reconcile_and_pairs_are_sound(groups, settings):
    made = pair_all(groups, settings, 1)
    check_counts(made, groups)
    known = {one.response_id: (prompt_id, one) for prompt_id, judged in groups for one in judged}
    for pair in made.relations:
        (chosen_prompt, chosen), (rejected_prompt, rejected) = known[pair.chosen_id], known[pair.rejected_id]
        assert chosen_prompt == rejected_prompt == pair.prompt_id
        assert chosen.kind == rejected.kind == "score"
        assert chosen.token_ids_key != rejected.token_ids_key
        assert chosen.score > rejected.score
        if settings.rule == "correct_vs_wrong":
            assert chosen.score >= settings.correct_at > rejected.score
        else:
            assert chosen.score - rejected.score > settings.min_margin
        assert chosen.finish_reason == "stop" or settings.drop_truncated == "none"
        assert rejected.finish_reason == "stop" or settings.drop_truncated != "both"


@given(many_groups, any_settings)
def test_pairing_repeats_itself_and_the_cap_keeps_a_part_of_the_uncapped_pairs(groups, settings):
    made = pair_all(groups, settings, 1)
    assert made == pair_all(iter(groups), settings, 1)
    uncapped = pair_all(groups, settings.model_copy(update={"max_pairs": None}), 1)
    cap = settings.max_pairs or len(uncapped.relations)
    assert len(made.relations) == min(cap, len(uncapped.relations))
    assert not Counter(made.relations) - Counter(uncapped.relations)


@given(many_groups)
def test_an_iteration_without_pairs_always_has_a_cause_and_a_remedy(groups):
    made = pair_all(groups, PairsConfig(), 1)
    if not made.relations and groups:
        assert not why_none(made).endswith("; ")


# Every rule


@st.composite
def settings_of_any_rule(draw):
    rule = draw(st.sampled_from(sorted(RULES)))
    given = {
        "rule": rule,
        "per_prompt": draw(st.integers(1, 6)),
        "correct_at": draw(st.sampled_from([0.5, 1.0])),
        "drop_truncated": draw(st.sampled_from(["chosen", "both", "none"])),
        "balance": draw(st.sampled_from(["none", "solve_rate"])),
        "max_pairs": draw(st.none() | st.integers(1, 12)),
        "rso_keep": draw(st.integers(2, 5)),
        "rso_ranking": draw(st.sampled_from(["first_round", "tournament"])),
        "standardise": draw(st.sampled_from(["none", "prompt", "iteration"])),
        "gold_fallback": RULES[rule].falls_back and draw(st.booleans()),
        "gold_score": 1.5,
        "gold_margin": 0.5,
        "own_margin": 0.25,
        "keep_ties": draw(st.booleans()),
    }
    if RULES[rule].kind == "pairs":
        given["min_margin"] = draw(st.sampled_from([0.0, 0.25, 0.5]))
        given["max_length_gap"] = draw(st.none() | st.integers(0, 4))
        given["min_edit_distance"] = draw(st.sampled_from([0.0, 0.5, 1.0]))
    if RULES[rule].negative:
        given["negative_column"] = "bad"
    if RULES[rule].by_score:
        given["length_penalty"] = draw(st.sampled_from([0.0, 0.125]))
    if RULES[rule].nearest:
        given["lengths"] = draw(st.sampled_from(["any", "nearest"]))
    return PairsConfig(**given)


def answers_to(groups, settings, tokens: str) -> dict[str, Answers]:
    """A gold and a bad answer for every second prompt, one of them perhaps with the tokens of a response."""
    score = None if settings.rule == "spin" else settings.score_of_gold
    return {
        name: Answers(
            Judged(f"{name}/gold", tokens, "given", score, "stop", 3),
            Judged(f"{name}/negative", "bad", "given", None, "stop", 3),
        )
        for name, _ in groups[::2]
    }


answer_tokens = st.sampled_from(["gold", "0", "1"])


@given(many_groups, settings_of_any_rule(), answer_tokens)
def test_every_rule_accounts_for_every_response(groups, settings, tokens):
    answers = answers_to(groups, settings, tokens)
    made = pair_all(groups, settings, 1, answers=answers)
    given_ids = {id for of_prompt in answers.values() for id in of_prompt.ids}
    members = {id for one in made.relations for id in one.responses}
    assert sum(made.responses.values()) == sum(len(judged) for _, judged in groups)
    assert sum(made.prompts.values()) == len(groups)
    assert made.responses.get("used", 0) == len(members - given_ids)
    assert made.prompts.get("paired", 0) == len({one.prompt_id for one in made.relations})
    assert min([*made.responses.values(), *made.prompts.values()], default=1) > 0
    if not made.relations and groups:
        assert not why_none(made).endswith("; ")


@given(many_groups, settings_of_any_rule(), answer_tokens)
def test_every_rule_makes_sound_relations(groups, settings, tokens):
    answers = answers_to(groups, settings, tokens)
    known = {one.response_id: (prompt_id, one) for prompt_id, judged in groups for one in judged}
    known |= {
        answer.response_id: (name, answer)
        for name, of in answers.items()
        for answer in (of.gold, of.negative)
        if answer
    }
    for one in pair_all(groups, settings, 1, answers=answers).relations:
        found = [known[id] for id in one.responses]
        assert {prompt_id for prompt_id, _ in found} == {one.prompt_id}
        assert {response.kind for _, response in found} <= {"score", "given"}
        assert len({response.token_ids_key for _, response in found}) == len(found)
        assert one.kind == RULES[settings.rule].kind
        if isinstance(one, Pair) and None not in (one.score_w, one.score_l):
            assert one.score_w > one.score_l
            assert one.margin == one.score_w - one.score_l > settings.min_margin


@given(many_groups, settings_of_any_rule(), answer_tokens, st.randoms(use_true_random=False))
def test_the_order_of_prompts_changes_nothing(groups, settings, tokens, shuffler):
    answers = answers_to(groups, settings, tokens)
    shuffled = shuffler.sample(groups, len(groups))
    made, again = (pair_all(order, settings, 3, answers=answers, seed=5) for order in (groups, shuffled))
    assert (made.responses, made.prompts) == (again.responses, again.prompts)
    assert sorted(made.relations, key=repr) == sorted(again.relations, key=repr)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 6))
def test_the_walk_covers_both_lists(correct, wrong, more):
    made = build_prompt("p", group(correct, wrong), PairsConfig(per_prompt=max(correct, wrong) + more))
    assert {id for pair in made.relations for id in pair.responses} == {
        one.response_id for one in group(correct, wrong)
    }


def test_draws_follow_the_seed_and_the_prompt():
    judged = [response(f"r{k}", float(k)) for k in range(8)]
    settings = PairsConfig(rule="best_vs_random")

    def rejected(prompt: str, seed: int, iteration: int) -> str:
        return pair_all([(prompt, judged)], settings, iteration, seed=seed).relations[0].rejected_id

    assert rejected("p", 0, 1) == rejected("p", 0, 1)
    assert len({rejected(f"p{k}", 0, 1) for k in range(40)}) == 7
    assert len({rejected("p", seed, 1) for seed in range(40)}) == 7
    assert len({rejected("p", 0, iteration) for iteration in range(40)}) == 7


def test_every_outcome_that_is_no_success_has_a_reason_for_its_responses():
    after = {"paired", "no_score", "equals_gold", "balance", "over_cap"}
    assert {f"prompt_{outcome}" for outcome in PROMPT_OUTCOMES.keys() - after} <= RESPONSE_REASONS.keys()
