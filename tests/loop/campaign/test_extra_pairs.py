"""Pairs beside those that an iteration makes: how many are drawn, which, and what the table says of them."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.campaign.stages.extra_pairs import draw, how_many, replayed
from loop.pairing.io import table_of
from trainer.data import Pair


def test_a_share_is_one_of_the_whole() -> None:
    assert [how_many(80, 0.2), how_many(10, 0.5), how_many(0, 0.5), how_many(7, 0.3)] == [20, 10, 0, 3]


@given(st.lists(st.text(), unique=True, max_size=20), st.integers(0, 25), st.randoms(use_true_random=False))
def test_what_is_drawn_depends_on_the_seed_and_not_on_the_order(keys: list[str], count: int, chance: object) -> None:
    places = draw(keys, count, "0|1")
    assert places == sorted(set(places))
    assert len(places) == min(count, len(keys))
    again = sorted(keys, reverse=True)
    assert {again[i] for i in draw(again, count, "0|1")} == {keys[i] for i in places}


def test_another_seed_draws_others() -> None:
    keys = [str(i) for i in range(100)]
    assert draw(keys, 10, "0|1") != draw(keys, 10, "0|2")


@pytest.fixture
def earlier() -> pa.Table:
    """What iteration 2 trained on: four pairs of its own, one replayed from iteration 1, one of an offline set."""
    own = [Pair("p", f"2-p-{i}", "2-p-9", score_w=0.5) for i in range(4)]
    parts = [table_of(own, "pairs", 2, "sppo"), table_of([Pair("q", "1-q-0", "1-q-1")], "pairs", 1, "sppo")]
    return pa.concat_tables([*parts, table_of([Pair("r", "r/given-a", "r/given-b")], "pairs", 0, "given")])


def test_only_an_iterations_own_pairs_are_replayed_as_they_were(earlier: pa.Table) -> None:
    found = replayed(earlier, 2, 10, "s")
    assert found.equals(earlier.slice(0, 4))
    half = replayed(earlier, 2, 2, "s").to_pylist()
    assert len(half) == 2
    assert all(row in earlier.to_pylist()[:4] and row["source_iteration"] == 2 for row in half)
