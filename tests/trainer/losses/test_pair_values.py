"""Losses over pairs against numbers worked out by hand, on the pairs A, B and C of `loss_cases.py`."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.helpers.loss_cases import gradients, loss, named

B01: dict[str, Any] = {"beta": 0.1}
NLL: dict[str, Any] = {"normalise": "response"}
Values = tuple[str, dict[str, Any], tuple[float, ...]]

OVER_DELTA: list[Values] = [
    ("dpo", B01, (0.598138869, 0.533382155, 0.784470431)),
    ("dpo", {"beta": 0.5}, (0.313261688, 0.160224150, 1.223444581)),
    ("dpo", {"beta": 0.05}, (0.644396660, 0.609470431, 0.737853907)),  # sigmoid-norm of RSO
    ("dpo", {"beta": 5.0}, (0.000045399, 0.000000025, 8.750158)),  # the last iteration of SPIN
    ("cdpo", B01 | {"label_smoothing": 0.1}, (0.618138869, 0.568382155, 0.766970431)),
    ("robust", B01 | {"label_smoothing": 0.1}, (0.573138869, 0.489632155, 0.806345431)),
    ("gpo", {"beta": 0.5, "shape": "logistic"}, (0.313262, 0.160224, 1.223445)),  # z = 1, 1.75, -0.875
    ("gpo", {"beta": 0.5, "shape": "hinge"}, (0.0, 0.0, 1.875)),
    ("gpo", {"beta": 0.5, "shape": "squared"}, (0.0, 0.5625, 3.515625)),
    ("gpo", {"beta": 0.5, "shape": "exponential"}, (0.367879, 0.173774, 2.398875)),
    ("gpo", {"beta": 0.5, "shape": "truncated_quadratic"}, (0.0, 0.0, 3.515625)),
    ("gpo", {"beta": 0.5, "shape": "savage"}, (0.072329, 0.021918, 0.498133)),
    ("hinge", {"beta": 0.05}, (0.9, 0.825, 1.0875)),
    ("hinge", {"beta": 0.002}, (0.996, 0.993, 1.0035)),  # "SLiC" of OAIF
    ("ipo", {"tau": 0.1, "normalise": "sum"}, (9.0, 2.25, 45.5625)),
    ("ipo", {"tau": 1.0, "normalise": "sum"}, (2.25, 9.0, 5.0625)),
    ("ipo", {"tau": 0.1, "normalise": "mean"}, (21.467777778, 21.97265625, 29.793402778)),
    ("r_dpo", B01 | {"alpha": 0.05}, (0.620957048, 0.575939420, 0.868792604)),
    ("r_dpo", B01 | {"alpha": 0.5}, (0.854355244, 1.070055336, 1.846688711)),
    ("dpo_norm", {"beta": 5.0}, (0.148316333, 0.190299140, 2.387974371)),
    ("f_dpo", B01 | {"divergence": "reverse_kl", "alpha": 0.5}, (0.598138869, 0.533382155, 0.784470431)),
    ("f_dpo", B01 | {"divergence": "forward_kl", "alpha": 0.5}, (0.582516713, 0.000000561, 0.811734906)),
    ("f_dpo", B01 | {"divergence": "js_divergence", "alpha": 0.5}, (0.644396660, 0.541476639, 0.740539081)),
    ("f_dpo", B01 | {"divergence": "alpha_divergence", "alpha": 0.5}, (0.594349123, 0.125375575, 0.793905034)),
    ("f_dpo", B01 | {"divergence": "alpha_divergence", "alpha": 0.25}, (0.597198629, 0.366738062, 0.788281171)),
    ("exo", B01 | {"label_smoothing": 1e-3, "labels": "normalised"}, (2.422014621, 2.178065510, 3.066445941)),
    ("exo", B01 | {"label_smoothing": 1e-3, "labels": "official"}, (3.813487957, 3.455758208, 4.747053212)),
    ("discopop", {"beta": 0.05, "tau": 0.05}, (0.873792119, 0.832715601, 0.790201672)),
]
OVER_LOG_RATIOS: list[Values] = [
    ("dpop", B01 | {"penalty": 5.0}, (0.598138869, 0.913015252, 1.086550833)),
    ("dpop", {"beta": 0.3, "penalty": 50.0}, (0.437487950, 21.45, 15.525000181)),
    ("sppo_hard", {"eta": 1.0, "combine": "sum"}, (0.5, 24.25, 3.8125)),
    ("apo_zero", B01, (0.950041625, 0.914970514, 1.043720403)),
    ("apo_down", B01, (0.975145190, 0.875952576, 1.018659500)),
    ("nca", B01, (1.338793320, 1.318474064, 1.432270061)),
    ("nca", {"beta": 0.01}, (1.381319361, 1.377742782, 1.390691627)),
    ("bco_pair", B01, (1.288793320, 1.245034032, 1.475746801)),
    (
        "mpo",
        B01 | NLL | {"preference_weight": 0.8, "quality_weight": 0.2, "nll_weight": 1.0},
        (3.136269760, 3.175712531, 3.922725705),
    ),
]
WITHOUT_REFERENCE: list[Values] = [
    ("slic", {"delta": 1.0, "nll_weight": 0.1}, (1.2, 2.0, 3.4)),
    ("slic", {"delta": 1.0, "nll_weight": 0.0}, (0.0, 0.0, 2.5)),
    ("hinge_raw", {"gamma": 0.05}, (0.85, 0.7, 1.075)),
    ("cpo", B01 | NLL | {"nll_weight": 1.0}, (2.954355244, 2.937487950, 3.770957048)),
    ("cpo", B01 | {"normalise": "sum", "nll_weight": 1.0}, (12.554355244, 20.437487950, 9.770957048)),
    ("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5}, (1.171100666, 1.171100666, 4.511047745)),
    ("simpo", {"beta": 2.5, "gamma_beta_ratio": 0.1}, (0.693147181, 0.693147181, 4.634755911)),
    ("orpo", {"odds_weight": 0.1}, (2.463991910, 2.564038031, 3.215915558)),
    ("orpo", {"odds_weight": 1.0}, (3.039919099, 3.140380307, 5.159155584)),
    ("nll", NLL, (2.4, 2.5, 3.0)),
    ("nll", {"normalise": "sum"}, (12.0, 20.0, 9.0)),
    ("unlikelihood", {"alpha": 1.0}, (-3.0, -6.0, 1.5)),
    ("unlikelihood", {"alpha": 0.1}, (10.5, 17.4, 8.25)),
]


@pytest.mark.parametrize(("name", "arguments", "expected"), [*OVER_DELTA, *OVER_LOG_RATIOS, *WITHOUT_REFERENCE])
def test_values(name: str, arguments: dict[str, Any], expected: tuple[float, ...]) -> None:
    assert loss(name, named("ABC"), **arguments).tolist() == pytest.approx(expected, abs=1e-6)


FROM_THE_DATA: list[tuple[str, str, dict[str, Any], dict[str, float], float]] = [
    ("online_ipo", "A", {"tau": 1.0}, {"probability": 0.8}, 3.05),
    ("online_ipo", "B", {"tau": 1.0}, {"probability": 0.8}, 10.4),
    ("online_ipo", "C", {"tau": 1.0}, {"probability": 0.8}, 4.3625),
    ("online_ipo", "A", {"tau": 1.0}, {"probability": 1.0}, 2.25),
    ("online_ipo", "A", {"tau": 1.0}, {"probability": 0.5}, 4.25),
    ("dno", "A", {"eta": 0.1}, {"win_w": 0.85, "win_l": 0.25}, 0.669008),
    ("dno", "C", {"eta": 0.1}, {"win_w": 0.85, "win_l": 0.25}, 0.722460),
    ("sppo", "A", {"eta": 1.0, "combine": "sum"}, {"win_w": 0.85, "win_l": 0.25}, 0.985),
    ("rebel", "A", {"eta": 1.0, "form": "paper"}, {"score_w": 1.7, "score_l": 0.2}, 0.25),
    ("rebel", "A", {"eta": 0.5, "form": "paper"}, {"score_w": 1.7, "score_l": 0.2}, 6.25),
    ("rebel", "A", {"eta": 0.5, "form": "code"}, {"score_w": 1.7, "score_l": 0.2}, 1.5625),
    ("rebel", "C", {"eta": 1.0, "form": "paper"}, {"score_w": 0.7, "score_l": 0.2}, 5.0625),
    ("sppo_single", "A", {"eta": 10.0, "combine": "mean"}, {"probability": 0.8}, 4.0),  # ((1 - 3)² + (-1 + 3)²) / 2
]


@pytest.mark.parametrize(("name", "pair", "arguments", "columns", "expected"), FROM_THE_DATA)
def test_values_with_columns(
    name: str, pair: str, arguments: dict[str, Any], columns: dict[str, float], expected: float
) -> None:
    pairs = named(pair, **{column: [value] for column, value in columns.items()})
    assert loss(name, pairs, **arguments).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("eta", "combine", "expected"), [(10, "sum", 32), (1000, "sum", 498002), (1000, "mean", 249001)]
)
def test_sppo_regresses_to_large_targets(eta: float, combine: str, expected: float) -> None:
    assert loss("sppo_hard", named("A"), eta=eta, combine=combine).item() == expected


@pytest.mark.parametrize(("origin", "expected"), [(False, 0.598139 - 0.15), (True, 0.598139 - 0.12)])
def test_the_exploration_bonus_lies_on_the_response_of_the_reference(origin: bool, expected: float) -> None:
    pairs = replace(named("A"), chosen_is_reference=torch.tensor([origin]))
    values = loss("xpo", pairs, beta=0.1, alpha=0.01)
    (g_w,), (g_l,) = gradients(values, pairs)
    assert values.item() == pytest.approx(expected, abs=1e-6)
    assert (g_w, g_l) == pytest.approx((-0.045017 + 0.01 * origin, 0.045017 + 0.01 * (not origin)), abs=1e-6)


def test_the_exploration_bonus_on_rejected_responses() -> None:
    pairs = replace(named("ABC"), chosen_is_reference=torch.tensor([False] * 3))
    expected = (0.448138869, 0.273382155, 0.709470431)
    assert loss("xpo", pairs, beta=0.1, alpha=0.01).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(1.0, (2.998138869, 3.033382155, 3.784470431)), (0.25, (1.198138869, 1.158382155, 1.534470431))],
)
def test_dpo_plus_nll_is_the_loss_of_iterative_rpo(alpha: float, expected: tuple[float, ...]) -> None:
    pairs = named("ABC")
    both = loss("dpo", pairs, **B01) + alpha * loss("nll", pairs, **NLL)
    assert both.tolist() == pytest.approx(expected, abs=1e-6)


def test_gradients_of_dpo_plus_nll() -> None:
    pairs = named("AC")
    g_w, g_l = gradients(loss("dpo", pairs, **B01) + loss("nll", pairs, **NLL), pairs)
    assert g_w == pytest.approx([-0.245017, -0.387697], abs=1e-6)
    assert g_l == pytest.approx([0.045017, 0.054364], abs=1e-6)


def test_nll_over_the_step_is_a_mean_over_all_its_tokens() -> None:
    pairs = named("AC", mean_length_w=4.0)
    assert loss("nll", pairs, normalise="step").mean().item() == pytest.approx(2.625)  # 21 nats over 8 tokens
    assert loss("nll", pairs, normalise="response").mean().item() == pytest.approx(2.7)


GRADIENTS: list[tuple[str, str, dict[str, Any], dict[str, float], tuple[float, float]]] = [
    ("dpo", "A", B01, {}, (-0.045017, 0.045017)),
    ("dpo", "C", B01, {}, (-0.054364, 0.054364)),
    ("cdpo", "A", B01 | {"label_smoothing": 0.1}, {}, (-0.035017, 0.035017)),
    ("robust", "A", B01 | {"label_smoothing": 0.1}, {}, (-0.057517, 0.057517)),
    ("slic", "A", {"delta": 1.0, "nll_weight": 0.1}, {}, (-0.1, 0.0)),
    ("slic", "C", {"delta": 1.0, "nll_weight": 0.1}, {}, (-1.1, 1.0)),
    ("ipo", "A", {"tau": 0.1, "normalise": "sum"}, {}, (-6.0, 6.0)),
    ("ipo", "A", {"tau": 0.1, "normalise": "mean"}, {}, (-1.853333, 1.544444)),
    ("cpo", "A", B01 | NLL | {"nll_weight": 1.0}, {}, (-0.242556, 0.042556)),
    ("cpo", "C", B01 | NLL | {"nll_weight": 1.0}, {}, (-0.387076, 0.053743)),
    ("simpo", "A", {"beta": 2.0, "gamma_beta_ratio": 0.5}, {}, (-0.275990, 0.229991)),
    ("simpo", "C", {"beta": 2.0, "gamma_beta_ratio": 0.5}, {}, (-0.659342, 0.329671)),
    ("orpo", "A", {"odds_weight": 0.1}, {}, (-0.210396, 0.008582)),
    ("orpo", "C", {"odds_weight": 0.1}, {}, (-0.364364, 0.020663)),
    ("dpop", "A", B01 | {"penalty": 5.0}, {}, (-0.045017, 0.045017)),
    ("dpop", "B", B01 | {"penalty": 5.0}, {}, (-0.359213, 0.059869)),
    ("sppo_hard", "A", {"eta": 1.0, "combine": "sum"}, {}, (1.0, -1.0)),
    ("sppo_hard", "B", {"eta": 1.0, "combine": "sum"}, {}, (-4.0, -9.0)),
    ("apo_zero", "A", B01, {}, (-0.024938, 0.024938)),
    ("apo_down", "A", B01, {}, (0.000186, 0.024752)),
    ("exo", "A", B01 | {"label_smoothing": 1e-3, "labels": "normalised"}, {}, (-0.166003, 0.166003)),
    ("nca", "A", B01, {}, (-0.021253, 0.023751)),
    ("bco_pair", "A", B01, {}, (-0.047502, 0.047502)),
    ("r_dpo", "A", B01 | {"alpha": 0.05}, {}, (-0.046257, 0.046257)),
    ("dpo_norm", "A", {"beta": 5.0}, {}, (-0.137842, 0.114868)),
    ("online_ipo", "A", {"tau": 1.0}, {"probability": 0.8}, (3.4, -3.4)),
    ("rebel", "A", {"eta": 0.5, "form": "paper"}, {"score_w": 1.7, "score_l": 0.2}, (10.0, -10.0)),
]


@pytest.mark.parametrize(("name", "pair", "arguments", "columns", "expected"), GRADIENTS)
def test_gradients(
    name: str, pair: str, arguments: dict[str, Any], columns: dict[str, float], expected: tuple[float, float]
) -> None:
    pairs = named(pair, **{column: [value] for column, value in columns.items()})
    (g_w,), (g_l,) = gradients(loss(name, pairs, **arguments), pairs)
    assert (g_w, g_l) == pytest.approx(expected, abs=1e-6)
