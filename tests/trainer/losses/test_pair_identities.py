"""Losses over pairs that must agree with each other on any pair: special cases, other scales, minima, symmetry."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.loss_cases import gradients, loss, make_pairs, one_pair, tensor
from trainer.losses.batch import Pairs

Row = tuple[float, ...]
ROWS_OF_PAIRS = st.lists(one_pair(40.0), min_size=1, max_size=4)
SCALE = st.floats(0.01, 2.0)
few = settings(max_examples=40)


def assert_equal(left: Tensor, right: Tensor, pairs: Pairs) -> None:
    """In value, and in the gradients by both log-probs."""
    assert left.tolist() == pytest.approx(right.tolist(), rel=1e-9, abs=1e-9)
    for of_left, of_right in zip(gradients(left, pairs), gradients(right, pairs), strict=True):
        assert of_left == pytest.approx(of_right, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("gpo", {"shape": "logistic"}),
        ("f_dpo", {"divergence": "reverse_kl", "alpha": 0.5}),
        ("cdpo", {"label_smoothing": 0.0}),
        ("robust", {"label_smoothing": 0.0}),
        ("dpop", {"penalty": 0.0}),
        ("r_dpo", {"alpha": 0.0}),
        ("mpo", {"preference_weight": 1.0, "quality_weight": 0.0, "nll_weight": 0.0, "normalise": "sum"}),
    ],
)
@few
@given(rows=ROWS_OF_PAIRS, beta=SCALE)
def test_special_cases_are_dpo(name: str, arguments: dict[str, Any], rows: list[Row], beta: float) -> None:
    pairs = make_pairs(*rows)
    assert_equal(loss(name, pairs, beta=beta, **arguments), loss("dpo", pairs, beta=beta), pairs)


@few
@given(rows=ROWS_OF_PAIRS, beta=SCALE, penalty=st.floats(0, 100))
def test_dpop_is_dpo_while_the_chosen_response_is_above_the_reference(
    rows: list[Row], beta: float, penalty: float
) -> None:
    pairs = make_pairs(*((row[0], row[1], row[0] - abs(row[2]), *row[3:]) for row in rows))
    assert_equal(loss("dpop", pairs, beta=beta, penalty=penalty), loss("dpo", pairs, beta=beta), pairs)


@few
@given(rows=ROWS_OF_PAIRS, tau=SCALE)
def test_ipo_is_squared_gpo_and_online_ipo_with_certain_preferences(rows: list[Row], tau: float) -> None:
    pairs = make_pairs(*rows, probability=[1.0] * len(rows))
    ipo = loss("ipo", pairs, tau=tau, normalise="sum")
    assert_equal(ipo, loss("gpo", pairs, beta=2 * tau, shape="squared") / (2 * tau) ** 2, pairs)
    assert_equal(ipo, loss("online_ipo", pairs, tau=tau), pairs)
    delta = pairs.delta
    assert_equal(ipo, (tau * delta**2 - delta) / tau + 1 / (4 * tau**2), pairs)


@few
@given(rows=ROWS_OF_PAIRS, tau=SCALE, p=st.floats(0, 1))
def test_the_gradient_of_online_ipo_is_that_of_a_regression(rows: list[Row], tau: float, p: float) -> None:
    pairs = make_pairs(*rows, probability=[p] * len(rows))
    g_w, g_l = gradients(loss("online_ipo", pairs, tau=tau), pairs)
    expected = (2 * pairs.delta - (2 * p - 1) / tau).tolist()
    assert g_w == pytest.approx(expected, abs=1e-8)
    assert g_l == pytest.approx([-g for g in expected], abs=1e-8)


@few
@given(rows=ROWS_OF_PAIRS, eta=SCALE)
def test_sppo_with_certain_preferences_is_the_hard_one(rows: list[Row], eta: float) -> None:
    ones, zeros = [1.0] * len(rows), [0.0] * len(rows)
    pairs = make_pairs(*rows, win_w=ones, win_l=zeros, probability=ones)
    hard = loss("sppo_hard", pairs, eta=eta, combine="sum")
    for name in ("sppo", "sppo_single"):
        assert_equal(hard, loss(name, pairs, eta=eta, combine="sum"), pairs)
        assert_equal(hard, 2 * loss(name, pairs, eta=eta, combine="mean"), pairs)


@few
@given(rows=ROWS_OF_PAIRS, eta=SCALE, scores=st.tuples(st.floats(-5, 5), st.floats(-5, 5)))
def test_both_forms_of_rebel_differ_by_a_factor(rows: list[Row], eta: float, scores: tuple[float, float]) -> None:
    score_w, score_l = ([score] * len(rows) for score in scores)
    pairs = make_pairs(*rows, score_w=score_w, score_l=score_l)
    paper, code = (loss("rebel", pairs, eta=eta, form=form) for form in ("paper", "code"))
    assert_equal(code, eta**2 * paper, pairs)


@few
@given(rows=ROWS_OF_PAIRS, scale=SCALE)
def test_hinges_are_the_same_up_to_reference_and_scale(rows: list[Row], scale: float) -> None:
    pairs = make_pairs(*rows)
    assert_equal(loss("hinge", pairs, beta=scale), loss("gpo", pairs, beta=scale, shape="hinge"), pairs)
    slic = loss("slic", pairs, delta=1 / scale, nll_weight=0.0)
    assert_equal(loss("hinge_raw", pairs, gamma=scale), scale * slic, pairs)


@few
@given(rows=ROWS_OF_PAIRS, beta=SCALE, weight=st.floats(0, 3))
def test_sums_of_losses(rows: list[Row], beta: float, weight: float) -> None:
    pairs = make_pairs(*rows)
    dpo, bco, nll = (
        loss("dpo", pairs, beta=beta),
        loss("bco_pair", pairs, beta=beta),
        loss("nll", pairs, normalise="sum"),
    )
    weights = {"preference_weight": 0.8, "quality_weight": weight, "nll_weight": 0.5}
    mpo = loss("mpo", pairs, beta=beta, normalise="sum", **weights)
    assert_equal(mpo, 0.8 * dpo + weight * bco + 0.5 * nll, pairs)
    rest = loss("cpo", pairs, beta=beta, nll_weight=0.0, normalise="sum") + weight * nll
    assert_equal(loss("cpo", pairs, beta=beta, nll_weight=weight, normalise="sum"), rest, pairs)
    assert_equal(loss("unlikelihood", pairs, alpha=0.0), nll, pairs)


def swap(row: Row) -> Row:
    """The pair with its labels exchanged."""
    logp_w, logp_l, ref_w, ref_l, n_w, n_l = row
    return (logp_l, logp_w, ref_l, ref_w, n_l, n_w)


@few
@given(rows=ROWS_OF_PAIRS, beta=SCALE)
def test_swapped_labels_change_dpo_by_the_margin(rows: list[Row], beta: float) -> None:
    pairs, swapped = make_pairs(*rows), make_pairs(*map(swap, rows))
    change = loss("dpo", swapped, beta=beta) - loss("dpo", pairs, beta=beta)
    assert change.tolist() == pytest.approx((beta * pairs.delta).tolist(), abs=1e-8)  # softplus(z) is z beyond 20


@few
@given(rows=ROWS_OF_PAIRS, beta=SCALE)
def test_the_mean_loss_of_flipped_labels_is_that_of_clean_ones(rows: list[Row], beta: float) -> None:
    pairs, flipped = make_pairs(*rows), make_pairs(*map(swap, rows))
    robust = [loss("robust", seen, beta=beta, label_smoothing=0.2) for seen in (pairs, flipped)]
    expected = loss("dpo", pairs, beta=beta).tolist()
    assert (0.8 * robust[0] + 0.2 * robust[1]).tolist() == pytest.approx(expected, abs=1e-9)


OVER_SUMS: list[tuple[str, dict[str, Any]]] = [
    ("dpo", {"beta": 0.1}),
    ("cdpo", {"beta": 0.1, "label_smoothing": 0.1}),
    ("robust", {"beta": 0.1, "label_smoothing": 0.1}),
    ("gpo", {"beta": 0.1, "shape": "savage"}),
    ("hinge", {"beta": 0.1}),
    ("ipo", {"tau": 0.1, "normalise": "sum"}),
    ("r_dpo", {"beta": 0.1, "alpha": 0.05}),
    ("exo", {"beta": 0.1, "label_smoothing": 1e-3, "labels": "official"}),
    ("discopop", {"beta": 0.05, "tau": 0.05}),
]


@pytest.mark.parametrize(("name", "arguments"), OVER_SUMS)
@few
@given(rows=ROWS_OF_PAIRS)
def test_what_sees_the_difference_only_moves_both_sides_equally(
    name: str, arguments: dict[str, Any], rows: list[Row]
) -> None:
    pairs = make_pairs(*rows)
    g_w, g_l = gradients(loss(name, pairs, **arguments), pairs)
    assert g_w == [-g for g in g_l]


def at_margin(z: float) -> Pairs:
    """A pair with Δ = z, all of it on the chosen side."""
    return make_pairs((-1.0, -1.0, -1.0 - z, -1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("name", "arguments", "z", "lowest"),
    [
        ("cdpo", {"beta": 1.0, "label_smoothing": 0.1}, math.log(9), 0.325083),  # the entropy of 0.1
        ("exo", {"beta": 1.0, "label_smoothing": 0.1, "labels": "normalised"}, math.log(9), 0.0),
        ("gpo", {"beta": 1.0, "shape": "squared"}, 1.0, 0.0),
        ("ipo", {"tau": 0.25, "normalise": "mean"}, 2.0, 0.0),
    ],
)
def test_losses_with_a_finite_target_are_lowest_there(
    name: str, arguments: dict[str, Any], z: float, lowest: float
) -> None:
    pairs = at_margin(z)
    values = loss(name, pairs, **arguments)
    assert values.item() == pytest.approx(lowest, abs=1e-6)
    assert gradients(values, pairs)[0] == pytest.approx([0.0], abs=1e-9)


def test_nca_stops_raising_the_chosen_response_at_log_2() -> None:
    pairs = at_margin(math.log(2))
    assert gradients(loss("nca", pairs, beta=1.0), pairs)[0] == pytest.approx([0.0], abs=1e-12)


def test_dno_is_dpo_in_the_limit_of_a_certain_winner() -> None:
    pairs = make_pairs((-12.0, -15.0, -13.0, -14.0, 5.0, 6.0), win_w=[50.0], win_l=[0.0])
    assert_equal(loss("dno", pairs, eta=0.1), loss("dpo", pairs, beta=0.1), pairs)


@few
@given(h=st.floats(-20, 20), tau=st.floats(0.05, 1.0))
def test_discopop_is_the_mixture_that_it_says(h: float, tau: float) -> None:
    pairs = at_margin(h)
    z = pairs.delta.detach()
    m = torch.sigmoid(z / tau)
    expected = (1 - m) * -torch.log(torch.sigmoid(z)) + m * torch.exp(-z)
    assert loss("discopop", pairs, beta=1.0, tau=tau).item() == pytest.approx(expected.item(), rel=1e-7)


@few
@given(p_w=st.floats(0.01, 0.99), p_l=st.floats(0.01, 0.99), n=st.integers(1, 20))
def test_orpo_compares_the_odds_of_mean_probabilities(p_w: float, p_l: float, n: int) -> None:
    pairs = make_pairs((n * math.log(p_w), n * math.log(p_l), 0.0, 0.0, float(n), float(n)))
    odds_w, odds_l = p_w / (1 - p_w), p_l / (1 - p_l)
    expected = -math.log(p_w) - 0.5 * math.log(odds_w / (odds_w + odds_l))
    assert loss("orpo", pairs, odds_weight=0.5).item() == pytest.approx(expected, rel=1e-9)


@few
@given(rows=st.lists(one_pair(4.0), min_size=1), beta=SCALE)
def test_alpha_divergence_lies_between_the_two_kls(rows: list[Row], beta: float) -> None:
    pairs = make_pairs(*rows)

    def value(divergence: str, alpha: float = 0.5) -> list[float]:
        values: list[float] = loss("f_dpo", pairs, beta=beta, divergence=divergence, alpha=alpha).tolist()
        return values

    assert value("alpha_divergence", 1e-9) == pytest.approx(value("reverse_kl"), rel=1e-6, abs=1e-6)
    assert value("alpha_divergence", 1 - 1e-9) == pytest.approx(value("forward_kl"), rel=1e-6, abs=1e-6)


def test_every_loss_of_a_difference_is_constant_where_policy_and_reference_agree() -> None:
    pairs = make_pairs((-3.0, -4.0, -3.0, -4.0, 2.0, 5.0), (-9.0, -1.0, -9.0, -1.0, 3.0, 3.0))
    assert torch.equal(loss("dpo", pairs, beta=0.7), tensor([math.log(2)] * 2))
    assert torch.equal(loss("dpo_norm", pairs, beta=5.0), tensor([math.log(2)] * 2))
    assert loss("ipo", pairs, tau=0.1, normalise="mean").tolist() == pytest.approx([25.0, 25.0])
