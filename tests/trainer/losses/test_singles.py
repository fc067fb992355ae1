"""Losses over single responses: numbers worked out from the papers' equations (method sheet 3.16, 3.18, 3.22-3.24,
3.33, 3.35 and 4), and their stop-gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.loss_relations import column, evaluate, gradients, halves, pairs, singles
from trainer.losses.batch import Pairs, Responses, Singles
from trainer.losses.primitives import follow
from trainer.losses.table_others import ROWS


@pytest.mark.parametrize(
    ("score", "value", "gap", "tau", "expected", "slope"),
    [
        (1.0, 0.3, 0.5, 1.0, 0.02, -0.2),
        (-1.0, 0.2, 0.5, 1.0, 1.445, 1.7),
        (1.0, 0.3, -2.0, 0.1, 0.405, -0.9),
    ],
)
def test_dro_trains_value_and_policy_with_the_papers_gradients(
    score: float, value: float, gap: float, tau: float, expected: float, slope: float
) -> None:
    y = Responses(column([gap - 10]), column([4.0]), ref=column([-10.0]), value=column([value]))
    single = Singles(y, score=column([score]))
    assert evaluate("dro_v", single, tau=tau).item() == pytest.approx(expected, abs=1e-6)
    policy, of_value = gradients("dro_v", single, tau=tau)
    assert of_value.item() == pytest.approx(slope, abs=1e-6)
    assert policy.item() == pytest.approx(slope, abs=1e-6)  # the true one, tau times as large, divided by tau


@pytest.mark.parametrize(
    ("gap", "expected", "slope"),
    [(-1.0, 12.887933, 0.950042), (-5.0, 9.481540, 0.755081), (0.75, 14.627003, 1.037482)],
)
def test_npo_gives_the_published_numbers(gap: float, expected: float, slope: float) -> None:
    assert evaluate("npo", singles([gap])).item() == pytest.approx(expected, abs=1e-6)
    assert gradients("npo", singles([gap]))[0].item() == pytest.approx(slope, abs=1e-6)


@given(gap=st.floats(-5, 5))
def test_npo_becomes_gradient_ascent_as_beta_goes_to_zero(gap: float) -> None:
    beta = 1e-5
    difference = evaluate("npo", singles([gap]), beta=beta).item() - 2 / beta * math.log(2)
    assert difference == pytest.approx(gap, abs=1e-3)
    assert gradients("npo", singles([gap]), beta=beta)[0].item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("logp", "length", "arguments", "expected"),
    [
        (-15.0, 6.0, {}, 0.001543),
        (-26.0, 10.0, {}, 0.001202),
        (-15.0, 6.0, {"gamma": 0.5}, 0.002542),
        (-15.0, 6.0, {"gamma": 0.5, "gamma_times_beta": True}, 0.005372),
    ],
)
def test_simnpo_gives_the_published_numbers(logp: float, length: float, arguments: dict, expected: float) -> None:
    single = Singles(Responses(column([logp]), column([length])))
    assert evaluate("simnpo", single, **arguments).item() == pytest.approx(expected, abs=1e-6)


def test_sft_divides_each_response_by_its_own_length() -> None:
    chosen = Singles(pairs("ABC").w)
    assert evaluate("sft", chosen).tolist() == pytest.approx((2.4, 2.5, 3.0))
    assert evaluate("sft", chosen, normalise="sum").tolist() == pytest.approx((12.0, 20.0, 9.0))


def test_retain_kl_is_a_mean_over_the_response() -> None:
    y = Responses(column([-4.0]), column([5.0]), kl=column([0.5]))
    assert evaluate("retain_kl", Singles(y)).item() == pytest.approx(0.1)


def test_the_rows_for_forgetting_take_the_bad_ones_and_the_rows_for_keeping_the_good_ones() -> None:
    taken = {name: method.takes for name, method in ROWS.items() if method.takes != "all"}
    assert taken == {"npo": "bad", "simnpo": "bad", "sft": "good", "retain_kl": "good"}


def sum_of_halves(name: str, names: str, **arguments: float) -> list[float]:
    """What a pair's good and bad half add up to."""
    values = evaluate(name, halves(names), **arguments)
    return values.reshape(2, -1).sum(0).tolist()


def test_the_halves_of_apo_zero_add_up_to_the_pair_form() -> None:
    assert sum_of_halves("apo_zero_unpaired", "ABC") == pytest.approx((0.950042, 0.914971, 1.043720), abs=1e-6)


@pytest.mark.parametrize(
    ("win_rates", "eta", "gaps", "expected"),
    [
        ((1.0, 0.0), 1.0, (1.0, -1.0), 0.5),
        ((1.0, 0.0), 1.0, (-1.5, -5.0), 24.25),
        ((1.0, 0.0), 1.0, (-1.0, 0.75), 3.8125),
        ((0.85, 0.25), 1.0, (1.0, -1.0), 0.985),
        ((1.0, 0.0), 10.0, (1.0, -1.0), 32.0),
        ((1.0, 0.0), 1000.0, (1.0, -1.0), 498002.0),
    ],
)
def test_spo_of_two_responses_adds_up_to_sppo(
    win_rates: tuple[float, float], eta: float, gaps: tuple[float, float], expected: float
) -> None:
    values = evaluate("spo", singles(gaps, score=win_rates), eta=eta)
    assert values.sum().item() == pytest.approx(expected, rel=1e-9)


def test_spo_starts_in_the_direction_of_the_centred_win_rates() -> None:
    # win rates of P = [[.5, .8, .9], [.2, .5, .6], [.1, .4, .5]] over the others; at h = 0 the slope is -2η(r - ½)
    (slope,) = gradients("spo", singles([0.0] * 3, score=[0.85, 0.4, 0.25]), eta=1.0)
    assert (slope / -2).tolist() == pytest.approx((0.35, -0.1, -0.25))
    (cyclic,) = gradients("spo", singles([0.0] * 3, score=[0.5] * 3), eta=1.0)  # A beats B beats C beats A
    assert cyclic.tolist() == [0.0, 0.0, 0.0]


def toy(probability: float) -> Singles:
    """`y_w` of the token-level toy: two tokens under the policy and the reference, and its probability to win."""
    tokens, ref_tokens = column([[0.5, 0.6]]).log(), column([[0.4, 0.5]]).log()
    y = Responses(tokens.sum(-1), column([2.0]), ref=ref_tokens.sum(-1), tokens=tokens, ref_tokens=ref_tokens)
    return Singles(y, score=column([probability]))


def test_nash_md_by_token_gives_the_published_numbers() -> None:
    assert evaluate("nash_md_token", toy(0.8), tau=0.1).item() == pytest.approx(0.336411, abs=1e-6)
    logp, tokens = gradients("nash_md_token", toy(0.8), tau=0.1)
    per_token = tokens[0] + logp  # the sum's gradient reaches each token
    assert per_token.tolist() == pytest.approx((-0.277686, -0.281768), abs=1e-6)


def test_nash_md_pushes_all_tokens_by_the_gain_which_has_no_gradient() -> None:
    logp, _ = gradients("nash_md", toy(0.8), tau=0.1)
    assert logp.item() == pytest.approx(-0.259453, abs=1e-6)


def test_the_reference_of_tr_dpo_follows_the_policy_softly_or_at_once() -> None:
    policy = torch.tensor(2.0, requires_grad=True)
    once = follow(torch.tensor(1.0), policy, alpha=0.6)
    assert once.item() == pytest.approx(1.6)
    assert follow(once, policy, alpha=0.6).item() == pytest.approx(1.84)
    assert follow(once, policy, alpha=1.0).item() == 2.0
    assert not once.requires_grad


def test_tr_dpo_is_dpo() -> None:
    values = evaluate("tr_dpo", pairs("ABC"), beta=0.1)
    assert values.tolist() == pytest.approx((0.598139, 0.533382, 0.784470), abs=1e-6)


def test_tr_dpo_is_log_2_after_a_hard_update() -> None:
    def updated(y: Responses) -> Responses:
        return Responses(y.logp, y.length, ref=follow(y.logp - 3.0, y.logp, alpha=1.0))

    both = pairs("ABC")
    assert evaluate("tr_dpo", Pairs(updated(both.w), updated(both.l))).tolist() == pytest.approx([math.log(2)] * 3)
