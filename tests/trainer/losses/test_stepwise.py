"""Losses with a statistic of the whole step: numbers worked out from the papers' equations (method sheet 3.9, 3.13,
3.27 and 3.28), their running states, their filter, and what has no gradient."""

import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.loss_relations import PAIRS, column, evaluate, gradients, halves, pairs, responses, singles
from trainer.losses.batch import Pairs, Responses
from trainer.losses.contrastive import dpo
from trainer.losses.stepwise import bco_update, beta_dpo_update

GAP = st.floats(-30, 30)
MISMATCHED = [0.4, -0.2, 1.0]  # mean 0.4
NO_FILTER = {"keep": 1.0}


def pairs_of(gaps_w: list[float], gaps_l: list[float]) -> Pairs:
    return Pairs(responses(gaps_w), responses(gaps_l))


# KTO


@pytest.mark.parametrize(
    ("gap", "good", "mismatched", "expected"),
    [
        (1.0, True, MISMATCHED, 0.485004),
        (-1.5, True, MISMATCHED, 0.547358),
        (-1.0, False, MISMATCHED, 0.465057),
        (0.75, False, MISMATCHED, 0.508749),
        (1.0, True, [-1.0, -0.5], 0.475021),  # the reference point is never below 0
    ],
)
def test_kto_gives_the_published_numbers(gap: float, good: bool, mismatched: list[float], expected: float) -> None:
    single = singles([gap], good=[good], mismatched=mismatched)
    assert evaluate("kto", single).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("desirable", "expected"), [(1.0, 0.484883), (4 / 3, 0.571956)])
def test_kto_of_three_pairs_as_six_singles(desirable: float, expected: float) -> None:
    six = replace(halves("ABC"), mismatched=responses(MISMATCHED))
    assert evaluate("kto", six, desirable_weight=desirable).mean().item() == pytest.approx(expected, abs=1e-6)


def test_kto_gradients_stop_at_the_reference_point() -> None:
    mismatched = responses(MISMATCHED)
    mismatched = replace(mismatched, logp=mismatched.logp.requires_grad_())
    six = replace(singles([1.0, -1.0], good=[True, False]), mismatched=mismatched)
    assert gradients("kto", six)[0].tolist() == pytest.approx((-0.024978, 0.024878), abs=1e-6)
    assert not evaluate("kto", six).requires_grad


@given(gap=GAP, good=st.booleans(), point=st.floats(0, 5))
def test_kto_with_another_reference_point_is_the_loss_of_the_shifted_response(
    gap: float, good: bool, point: float
) -> None:
    shifted = evaluate("apo_zero_unpaired", singles([gap - point], good=[good]))
    torch.testing.assert_close(evaluate("kto", singles([gap], good=[good], mismatched=[point])), shifted)


@given(gap=GAP)
def test_good_and_bad_add_up_to_one_for_the_same_response(gap: float) -> None:
    both = singles([gap, gap], good=[True, False], mismatched=[0.5])
    assert evaluate("kto", both).sum().item() == pytest.approx(1.0)


# BCO


@pytest.mark.parametrize(
    ("name", "shift", "expected"),
    [("A", 0.0, 1.288793), ("B", 0.0, 1.245034), ("C", 0.0, 1.475747), ("B", -0.325, 1.218941)],
)
def test_bco_gives_the_published_numbers(name: str, shift: float, expected: float) -> None:
    state = {"good": shift + 1.0, "bad": shift - 1.0}  # only their mean counts
    assert evaluate("bco", halves(name), state=state, beta=0.1).sum().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("name", "expected"), [("A", 1.288793), ("B", 1.218941)])
def test_the_first_step_of_bco_is_shifted_by_its_own_mean_reward(name: str, expected: float) -> None:
    assert evaluate("bco", halves(name), beta=0.1).sum().item() == pytest.approx(expected, abs=1e-6)


def test_bco_gradients_leave_the_shift_alone() -> None:
    state = {"good": 0.0, "bad": 0.0}
    assert gradients("bco", halves("A"), state=state, beta=0.1)[0].tolist() == pytest.approx(
        (-0.047502, 0.047502), abs=1e-6
    )


def test_bco_keeps_a_running_mean_for_each_label() -> None:
    first = bco_update(singles([2.0, 4.0, -1.0], good=[True, True, False]), {}, beta=0.1, momentum=0.9)
    assert first == pytest.approx({"good": 0.3, "bad": -0.1})
    second = bco_update(singles([5.0], good=[True]), first, beta=0.1, momentum=0.9)
    assert second == pytest.approx({"good": 0.9 * 0.3 + 0.1 * 0.5, "bad": -0.1})
    assert first == pytest.approx({"good": 0.3, "bad": -0.1})  # the update made a new dict


def test_bco_with_one_label_only_is_shifted_by_its_mean() -> None:
    assert evaluate("bco", singles([2.0], good=[True])).item() == pytest.approx(math.log(2))


# β-DPO


def test_beta_dpo_moves_its_state_before_it_uses_it() -> None:
    first = beta_dpo_update(pairs("ABC"), {}, momentum=0.9)
    assert first == pytest.approx({"mean": 0.125, "spread": 0.270416, "steps": 1.0}, abs=1e-6)
    later = beta_dpo_update(pairs("ABC"), {"mean": 1.0, "spread": 2.0, "steps": 7.0}, momentum=0.9)
    assert later == pytest.approx({"mean": 1.025, "spread": 2.070416, "steps": 8.0}, abs=1e-6)


def test_a_step_of_one_pair_leaves_the_spread() -> None:
    state = {"mean": 1.0, "spread": 2.0, "steps": 1.0}
    assert beta_dpo_update(pairs("A"), state, momentum=0.9) == pytest.approx({"mean": 1.1, "spread": 2.0, "steps": 2.0})


def test_beta_dpo_gives_the_published_numbers() -> None:
    values = evaluate("beta_dpo", pairs("ABC"), **NO_FILTER)
    torch.testing.assert_close(values, dpo(pairs("ABC"), beta=0.1675))
    assert values.mean().item() == pytest.approx(0.610801, abs=1e-6)


def test_beta_has_no_gradient_in_beta_dpo() -> None:
    found = gradients("beta_dpo", pairs("ABC"), **NO_FILTER)
    expected = 0.1675 * torch.sigmoid(-0.1675 * pairs("ABC").delta)  # DPO's, at the step's β
    torch.testing.assert_close(found, [-expected, expected])


@given(gaps=st.lists(GAP, min_size=1, max_size=6), spread=st.floats(0, 3))
def test_beta_dpo_is_dpo_where_the_gap_is_the_running_mean(gaps: list[float], spread: float) -> None:
    some = pairs_of(gaps, [0.0] * len(gaps))
    state = {"mean": float(some.delta.mean()), "spread": spread, "steps": 5.0}
    torch.testing.assert_close(evaluate("beta_dpo", some, state=state, **NO_FILTER), dpo(some, beta=0.1))


def test_with_bias_correction_the_first_step_is_dpo() -> None:
    corrected = evaluate("beta_dpo", pairs("ABC"), bias_correction=True, **NO_FILTER)
    torch.testing.assert_close(corrected, dpo(pairs("ABC"), beta=0.1))


def test_beta_stays_above_its_least_value() -> None:
    state = {"mean": 100.0, "spread": 1.0, "steps": 9.0}
    torch.testing.assert_close(
        evaluate("beta_dpo", pairs("ABC"), state=state, **NO_FILTER), dpo(pairs("ABC"), beta=1e-3)
    )


@pytest.mark.parametrize(
    ("keep", "count", "kept"),
    [(0.8, 10, 8), (0.79, 10, 7), (0.01, 10, 1), (1.0, 10, 10), (0.29, 100, 29)],  # 0.29 * 100 is 28.999999999999996
)
def test_the_filter_keeps_its_share_and_the_mean_is_that_over_the_kept(keep: float, count: int, kept: int) -> None:
    some = pairs_of([0.05 * i for i in range(count)], [0.0] * count)
    state = {"mean": 2.0, "spread": 1.5, "steps": 3.0}
    filtered = evaluate("beta_dpo", some, state=state, keep=keep, alpha=0.0)
    full = evaluate("beta_dpo", some, state=state, alpha=0.0, **NO_FILTER)
    assert int((filtered > 0).sum()) == kept
    assert filtered.mean().item() == pytest.approx(full[filtered > 0].mean().item())


@pytest.mark.parametrize("seed", range(6))
def test_beta_follows_the_mean_gap_of_the_kept_pairs(seed: int) -> None:
    gaps = [2.0, 3.5, -1.75, 0.5, 8.0]
    state = {"mean": 1.0, "spread": 2.0, "steps": 9.0}
    values = evaluate("beta_dpo", pairs_of(gaps, [0.0] * 5), state=state, keep=0.6, seed=seed)
    kept = [gap for gap, value in zip(gaps, values.tolist(), strict=True) if value > 0]
    beta, of_all = (0.1 * (1 + 0.6 * (sum(some) / len(some) - 1.0)) for some in (kept, gaps))
    expected = sum(math.log1p(math.exp(-beta * gap)) for gap in kept) / 3
    assert values.mean().item() == pytest.approx(expected)
    assert sum(math.log1p(math.exp(-of_all * gap)) for gap in kept) / 3 != pytest.approx(expected)


def test_the_filter_draws_by_distance_from_the_running_mean() -> None:
    weights = (0.895044, 0.489435, 0.407296)  # gaps 2, 3.5, -1.75 under mean 1.025, spread 2.070416
    state = {"mean": 1.025, "spread": 2.070416, "steps": 8.0}
    draws = 3000
    kept = sum(
        (evaluate("beta_dpo", pairs("ABC"), state=state, keep=0.34, seed=seed) > 0).double() for seed in range(draws)
    )
    expected = [weight / sum(weights) for weight in weights]
    assert (kept / draws).tolist() == pytest.approx(expected, abs=0.03)  # three standard deviations


def test_without_a_spread_every_pair_may_be_kept() -> None:
    state = {"mean": 2.0, "spread": 0.0, "steps": 1.0}  # the mean is that of pair A
    kept = [evaluate("beta_dpo", pairs("ABC"), state=state, keep=0.34, seed=seed) > 0 for seed in range(30)]
    assert torch.stack(kept).any(0).all()


def test_the_filter_repeats_itself_with_the_same_seed_only() -> None:
    def kept(seed: int) -> tuple[bool, ...]:
        some = pairs_of([0.1 * i for i in range(8)], [0.0] * 8)
        state = {"mean": 0.3, "spread": 1.0, "steps": 9.0}
        return tuple((evaluate("beta_dpo", some, state=state, keep=0.5, seed=seed) > 0).tolist())

    assert kept(3) == kept(3)
    assert len({kept(seed) for seed in range(10)}) > 1


def test_before_the_first_update_the_running_values_are_zero() -> None:
    """A look at held-out data may come before the first step."""
    shift_0 = evaluate("bco", halves("ABC"), state={"good": 0.0, "bad": 0.0})
    torch.testing.assert_close(evaluate("bco", halves("ABC"), state={}), shift_0)
    for correction in (False, True):
        values = evaluate("beta_dpo", pairs("ABC"), state={}, bias_correction=correction, **NO_FILTER)
        torch.testing.assert_close(values, dpo(pairs("ABC"), beta=0.1 * (1 + 0.6 * 1.25)))


# AOT


@pytest.mark.parametrize(
    ("names", "name", "expected"),
    [
        ("ABC", "aot_unpaired", 0.635752),
        ("ABC", "aot", 0.638664),
        ("ACD", "aot_unpaired", 0.588040),
        ("ACD", "aot", 0.587941),
    ],
)
def test_aot_gives_the_published_numbers(names: str, name: str, expected: float) -> None:
    assert evaluate(name, pairs(names), beta=0.1).mean().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_aot_of_one_pair_is_dpo(name: str) -> None:
    for pair in PAIRS:
        torch.testing.assert_close(evaluate(name, pairs(pair), beta=0.1), dpo(pairs(pair), beta=0.1))


@given(gaps_w=st.lists(GAP, min_size=2, max_size=6), data=st.data())
def test_unpaired_aot_of_two_sorted_pools_is_dpo(gaps_w: list[float], data: st.DataObject) -> None:
    gaps_l = data.draw(st.lists(GAP, min_size=len(gaps_w), max_size=len(gaps_w)))
    in_order = pairs_of(sorted(gaps_w), sorted(gaps_l))
    torch.testing.assert_close(evaluate("aot_unpaired", in_order, beta=0.1), dpo(in_order, beta=0.1))


@given(st.permutations(range(4)))
def test_unpaired_aot_does_not_see_which_response_belongs_to_which_pair(order: list[int]) -> None:
    some = pairs("ABCD")
    shuffled = replace(some, l=Responses(some.l.logp[order], some.l.length, ref=some.l.ref[order]))  # type: ignore[index]
    torch.testing.assert_close(evaluate("aot_unpaired", shuffled), evaluate("aot_unpaired", some))


@pytest.mark.parametrize(("name", "columns"), [("aot", (0, 1, 2, 3)), ("aot_unpaired", (0, 2, 1, 3))])
def test_aot_is_the_cheapest_of_all_matchings(name: str, columns: tuple[int, ...]) -> None:
    first, second, third, fourth = (column([PAIRS[p][i] for p in "ABCD"]) for i in columns)
    x, y = first - second, third - fourth
    costs = [torch.nn.functional.softplus(-0.1 * (x - y[list(order)])).mean() for order in permutations(range(4))]
    assert evaluate(name, pairs("ABCD"), beta=0.1).mean().item() == pytest.approx(min(costs).item())


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_a_smoothed_aot_trusts_each_label_less(name: str) -> None:
    plain = evaluate(name, pairs("A"), beta=0.1)  # z = 0.2
    assert (evaluate(name, pairs("A"), beta=0.1, label_smoothing=0.1) - plain).item() == pytest.approx(0.02)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired", "beta_dpo", "tr_dpo"])
def test_a_loss_of_the_margin_pushes_both_responses_alike(name: str) -> None:
    chosen, rejected = gradients(name, pairs("ACD"))
    assert chosen.sum().item() == pytest.approx(-rejected.sum().item())
    assert (chosen <= 0).all()
