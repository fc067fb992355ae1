"""Where further samples go: the formulas against sums worked out by hand, and a made-up population of solve rates."""

import random
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.measure.allocation import (
    Allocation,
    Beta,
    ProbeResult,
    allocate,
    best_steps,
    chance,
    expected_pairs,
    fit_prior,
    thinned,
    usable,
    usual_share,
)

# ---- the parts ----


def test_with_a_flat_prior_every_number_of_right_responses_is_equally_likely() -> None:
    for right in range(6):
        assert chance(right, 5, Beta(1, 1)) == pytest.approx(1 / 6)


@given(st.integers(0, 12), st.floats(0.1, 5), st.floats(0.1, 5))
def test_the_chances_add_up_to_one(of: int, a: float, b: float) -> None:
    chances = [chance(x, of, Beta(a, b)) for x in range(of + 1)]
    assert sum(chances) == pytest.approx(1)
    assert sum(x * p for x, p in enumerate(chances)) == pytest.approx(of * a / (a + b))


def test_expected_pairs_by_hand() -> None:
    # (1 right, 0 wrong) under Beta(1, 1) is Beta(2, 1): the next is wrong with 1/3; of two further ones 0, 1, 2 are
    # right with 1/6, 1/3, 1/2, which makes 1 x 2, 2 x 1 and 3 x 0 pairs
    found = expected_pairs(1, 0, room=2, wanted=10, prior=Beta(1, 1))
    assert found == pytest.approx([0, 1 / 3, 2 / 6 + 2 / 3])
    assert expected_pairs(1, 0, room=2, wanted=1, prior=Beta(1, 1)) == pytest.approx([0, 1 / 3, 1 / 6 + 1 / 3])
    assert usable(3, 4, 10) == 10
    assert usable(3, 0, 10) == 0


def test_steps_are_the_concave_hull() -> None:
    # from 0 to 2 at 1 a response beats 0 to 1 at 0.5; then 2 to 4 at 0.5, and the last brings nothing
    steps = best_steps([0.0, 0.5, 2.0, 2.2, 3.0, 3.0])
    assert [(step.to, step.added, step.gain) for step in steps] == [(2, 2, 2.0), (4, 2, 1.0)]
    assert best_steps([4.0, 4.0]) == best_steps([1.0]) == []


@given(st.lists(st.floats(0, 5), min_size=1, max_size=12))
def test_steps_fall_in_gain_per_response(gains: list[float]) -> None:
    expected = [sum(gains[: i + 1]) for i in range(len(gains))]
    steps = best_steps(expected)
    ratios = [step.gain / step.added for step in steps]
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(ratios))
    assert sum(step.gain for step in steps) == pytest.approx(expected[-1] - expected[0], abs=1e-6)


def test_the_prior_follows_what_was_seen() -> None:
    split = fit_prior({(4, 0): 50, (0, 4): 50})
    assert (split.a, split.b) == pytest.approx((0.05, 0.05))  # all or nothing: the least concentration of the grid
    even = fit_prior({(1, 3): 20, (2, 2): 60, (3, 1): 20})
    assert even.a == pytest.approx(even.b)
    assert even.a > 5
    hard = fit_prior({(0, 4): 90, (1, 3): 10})
    assert 0.02 <= hard.a / (hard.a + hard.b) <= 0.05


# ---- whole allocations ----


def probed(right: int, wrong: int, count: int = 1, *, name: str = "p", seen: int | None = None, tokens: int = 40):
    return [
        ProbeResult(f"{name}{i}-{right}-{wrong}", right, wrong, seen or right + wrong, tokens) for i in range(count)
    ]


def test_mixed_prompts_come_before_one_sided_ones() -> None:
    prompts = [*probed(4, 0, 40), *probed(0, 4, 40), *probed(1, 3, 20)]
    found = allocate(prompts, n=8, wanted=6, keep=0.9)
    given_to = Counter(prompt_id.partition("-")[2] for prompt_id in found.more)
    assert given_to["1-3"] == 20
    assert given_to["4-0"] + given_to["0-4"] < 80


def test_a_prompt_that_has_all_pairs_it_can_use_gets_no_more() -> None:
    found = allocate([*probed(2, 2, 10), *probed(0, 4, 10)], n=8, wanted=4, keep=1.0)
    assert all(prompt_id.endswith("0-4") for prompt_id in found.more)


def test_of_equal_prospects_the_shorter_responses_are_sampled() -> None:
    prompts = [*probed(1, 3, 10, name="short", tokens=40), *probed(1, 3, 10, name="long", tokens=400)]
    found = allocate(prompts, n=8, wanted=6, keep=0.75)
    got = Counter("short" if prompt_id.startswith("short") else "long" for prompt_id in found.more)
    assert got["short"] == 10 > got["long"]


def test_a_prompt_whose_probe_could_be_in_no_pair_comes_last() -> None:
    found = allocate([*probed(0, 0, 20, seen=4), *probed(0, 4, 20), *probed(1, 3, 20)], n=8, wanted=6, keep=0.8)
    got = Counter(prompt_id.partition("-")[2] for prompt_id in found.more)
    assert got["1-3"] == 20
    assert got["0-4"] > got["0-0"] == 0


def test_responses_that_may_not_count_are_thinned_out() -> None:
    # of two responses that count with 1/2 each, none, one or two do with 1/4, 1/2 and 1/4
    assert thinned([0.0, 1.0, 1.5], 0.5) == pytest.approx([0.0, 0.5, 0.5 + 1.5 / 4])
    assert thinned([2.0, 3.0], 1.0) == [2.0, 3.0]
    assert thinned([2.0, 3.0], 0.0) == [2.0, 2.0]


def test_nothing_to_gain_is_nothing_sampled_and_nothing_probed_is_no_error() -> None:
    assert allocate(probed(2, 2, 3), n=8, wanted=4, keep=1.0).more == {}
    assert allocate([], n=8, wanted=4, keep=0.9).more == {}


states = st.integers(0, 4).flatmap(lambda right: st.tuples(st.just(right), st.integers(0, 4 - right)))


@settings(max_examples=40)
@given(
    st.lists(states, min_size=1, max_size=30),
    st.integers(5, 12),
    st.integers(1, 10),
    st.floats(0.3, 1),
    st.floats(0.5, 1),
    st.randoms(use_true_random=False),
)
def test_an_allocation_keeps_what_it_promises(
    outcomes: list[tuple[int, int]],
    n: int,
    wanted: int,
    keep: float,
    budget: float,
    shuffler: random.Random,
) -> None:
    prompts = [ProbeResult(f"p{i}", right, wrong, 4, 40) for i, (right, wrong) in enumerate(outcomes)]
    budget = max(budget, 4 / n)
    found = allocate(prompts, n=n, wanted=wanted, keep=keep, budget=budget, seed="s")
    assert all(1 <= more <= n - 4 for more in found.more.values())
    sampled = 4 * len(prompts) + found.responses
    assert sampled <= budget * n * len(prompts) + 1e-6
    spent = sampled >= int(budget * n * len(prompts) + 1e-9)
    assert found.expected >= keep * found.uniform - 1e-6 or spent  # never fewer than asked, unless the budget ends it
    shuffled = [*prompts]
    shuffler.shuffle(shuffled)
    assert allocate(shuffled, n=n, wanted=wanted, keep=keep, budget=budget, seed="s").more == found.more


def test_who_is_taken_among_equals_depends_on_the_seed_alone() -> None:
    prompts = probed(1, 3, 50)
    first, again, other = (allocate(prompts, n=8, wanted=6, keep=0.8, seed=seed) for seed in ("a", "a", "b"))
    assert first == again
    assert first.more != other.more
    assert first.responses == other.responses


# ---- a population ----

Outcomes = list[list[bool]]


@cache
def population(kind: str, prompts: int = 1500) -> Outcomes:
    """30 outcomes for each prompt: the first n are what uniform sampling draws, and any first part of them what
    adaptive sampling does."""
    draw = random.Random(kind)
    made = []
    for _ in range(prompts):
        if kind == "one-sided":  # a third of the prompts in between, the others nearly all right or nearly all wrong
            rate = draw.choices([0.002, 0.998, draw.betavariate(2, 2)], [1, 1, 1])[0]
        else:
            rate = draw.betavariate(0.3, 0.3) if kind == "u-shaped" else draw.random()
        made.append([draw.random() < rate for _ in range(30)])
    return made


@cache
def sampled(kind: str, n: int, keep: float = 0.9, wanted: int = 10) -> tuple[float, float, Allocation]:
    """Shares of the responses and of the usable pairs of uniform sampling, and the decision."""
    outcomes = population(kind)
    prompts = [ProbeResult(f"p{i}", sum(o[:4]), 4 - sum(o[:4]), 4, 40) for i, o in enumerate(outcomes)]
    found = allocate(prompts, n=n, wanted=wanted, keep=keep)
    lengths = [4 + found.more.get(f"p{i}", 0) for i in range(len(outcomes))]
    ours = sum(usable(sum(o[:m]), m - sum(o[:m]), wanted) for o, m in zip(outcomes, lengths, strict=True))
    theirs = sum(usable(sum(o[:n]), n - sum(o[:n]), wanted) for o in outcomes)
    return sum(lengths) / (n * len(outcomes)), ours / theirs, found


@pytest.mark.parametrize("kind", ["one-sided", "u-shaped", "spread"])
@pytest.mark.parametrize("n", [16, 30])
def test_thirty_percent_fewer_responses_give_about_the_same_pairs(kind: str, n: int) -> None:
    responses, pairs, found = sampled(kind, n)
    assert responses <= 0.7
    assert pairs >= 0.85
    assert found.expected / found.uniform == pytest.approx(pairs, abs=0.08)  # it knows what it gives up


@pytest.mark.parametrize(
    ("kind", "row"), [("one-sided", "a third mixed"), ("u-shaped", "U-shaped"), ("spread", "evenly spread")]
)
def test_the_page_shows_what_comes_out(kind: str, row: str) -> None:
    page = (Path(__file__).parents[3] / "docs" / "signal.md").read_text(encoding="utf-8")
    (shown,) = [line for line in page.splitlines() if line.startswith(f"| {row}")]
    cells = [f"{100 * sampled(kind, n)[0]:.0f} %, pairs {100 * sampled(kind, n)[1]:.0f} %" for n in (8, 16, 30)]
    assert shown.endswith(f" | {' | '.join(cells)} |")


def test_fewer_different_pairs_save_thirty_percent_of_few_responses() -> None:
    assert sampled("one-sided", 8, wanted=3)[0] <= 0.705
    assert sampled("one-sided", 8, wanted=3)[1] >= 0.9


def test_the_same_number_of_random_responses_gives_fewer_pairs() -> None:
    outcomes = population("u-shaped")
    responses, pairs, _ = sampled("u-shaped", 16)
    fewer = round(16 * responses)
    uniform = sum(usable(sum(o[:fewer]), fewer - sum(o[:fewer]), 10) for o in outcomes)
    assert pairs * sum(usable(sum(o[:16]), 16 - sum(o[:16]), 10) for o in outcomes) > 1.05 * uniform


def test_keeping_everything_keeps_everything() -> None:
    responses, pairs, _ = sampled("u-shaped", 16, keep=1.0)
    assert pairs >= 0.999
    assert responses < 0.95


def test_the_share_that_a_plan_names_is_that_of_an_even_spread() -> None:
    found, *_ = sampled("spread", 16)
    assert usual_share(16, 4, wanted=10, keep=0.9, budget=1.0) == pytest.approx(found, abs=0.05)
    assert usual_share(16, 4, wanted=10, keep=0.9, budget=0.3) <= 0.3
