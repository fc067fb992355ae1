"""Which pairs are not trained on, and how far apart two responses are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.config.pairs_section import PairsConfig
from loop.pairing.filters import levenshtein, share_to_edit, sift, why_dropped
from loop.pairing.one_prompt import build_prompt
from loop.pairing.records import Judged


def response(name: str, score: float | None, *, length: int = 10, tokens: str = "", cut: bool = False) -> Judged:
    return Judged(name, tokens or name, "score", score, "length" if cut else "stop", length)


def by_table(a: str, b: str) -> int:
    """The textbook recurrence."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


short_texts = st.text("abc", max_size=12)


@given(short_texts, short_texts)
def test_big_integers_give_the_textbook_distance(a, b):
    assert levenshtein(a, b) == by_table(a, b) == levenshtein(b, a)


def test_distance_over_more_tokens_than_a_machine_word_has_bits():
    a, b = "ab" * 100, "ba" * 100
    assert levenshtein(a, b) == by_table(a, b) == 2
    assert levenshtein("x" * 300, "y" * 200) == 300


def test_the_share_counts_tokens_of_the_longer_response():
    one, other = (np.array(ids, np.int32).tobytes() for ids in ([1, 2, 3, 400], [1, 2, 300]))
    assert share_to_edit(one, other) == 2 / 4
    assert share_to_edit("kitten", "sitting") == 3 / 7
    assert share_to_edit("", "") == 0.0


@pytest.mark.parametrize(
    ("settings", "couple", "reason"),
    [
        ({}, (response("a", 1.0), response("b", 0.0)), None),
        ({}, (response("a", 0.5), response("b", 0.5)), "tied"),
        ({}, (response("a", None), response("b", 0.5)), None),
        ({"min_margin": 0.5}, (response("a", 1.0), response("b", 0.5)), "within_margin"),
        ({}, (response("a", 1.0, cut=True), response("b", 0.0)), "truncated"),
        ({}, (response("a", 1.0), response("b", 0.0, cut=True)), None),
        ({"drop_truncated": "both"}, (response("a", 1.0), response("b", 0.0, cut=True)), "truncated"),
        ({"max_length_gap": 4}, (response("a", 1.0, length=14), response("b", 0.0)), None),
        ({"max_length_gap": 4}, (response("a", 1.0, length=15), response("b", 0.0)), "length_gap"),
        ({"min_edit_distance": 0.5}, (response("a", 1.0, tokens="abcd"), response("b", 0.0, tokens="abxy")), None),
        (
            {"min_edit_distance": 0.5},
            (response("a", 1.0, tokens="abcd"), response("b", 0.0, tokens="abcx")),
            "near_duplicate",
        ),
    ],
)
def test_each_filter_has_its_edge(settings, couple, reason):
    assert why_dropped(couple, PairsConfig(**settings)) == reason


def test_what_a_filter_strikes_is_named_and_what_stays_keeps_its_order():
    a, b, far = response("a", 1.0), response("b", 0.0), response("far", 0.0, length=99)
    sifted = sift([(a, b), (a, far), (a, b)], PairsConfig(max_length_gap=10))
    assert (sifted.kept, sifted.dropped) == ([(a, b), (a, b)], [((a, far), "length_gap")])


def test_responses_and_prompts_get_the_filters_reason():
    judged = [response("w", 1.0), response("l", 0.0), response("far", 0.0, length=99)]
    made = build_prompt("p", judged, PairsConfig(per_prompt=2, max_length_gap=10))
    assert made.reasons == {"w": "used", "l": "used", "far": "length_gap"}
    made = build_prompt(
        "p", [judged[0], judged[2], response("l2", 0.0, length=98)], PairsConfig(rule="best_vs_worst", max_length_gap=9)
    )
    assert made.outcome == "length_gap"
    assert made.reasons == {"w": "length_gap", "far": "length_gap", "l2": "prompt_length_gap"}
