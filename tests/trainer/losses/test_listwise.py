"""Losses over groups: numbers worked out from the papers' equations (method sheet 3.2, 3.17, 3.25 and 3.26), and what
the losses become for two responses."""

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.loss_relations import column, evaluate, gradients, groups, pairs
from trainer.losses.batch import Groups, Pairs, Responses
from trainer.losses.contrastive import dpo
from trainer.losses.table_others import GROUPS

GAP = st.floats(-30, 30)
RANKING = st.lists(GAP, min_size=2, max_size=6)
BETA = st.sampled_from([0.05, 0.1, 1.0])
CERTAIN = [1000.0, 0.0]
"""Scores whose softmax is (1, 0)."""


@pytest.mark.parametrize(
    ("gaps", "beta", "expected"),
    [([1.0, 0.0, -0.5], 0.1, 1.685698), ([1.0, 0.0, -0.5], 1.0, 0.938446), ([1.0, 0.0], 0.1, 0.644397)],
)
def test_plackett_luce_gives_the_published_numbers(gaps: list[float], beta: float, expected: float) -> None:
    assert evaluate("plackett_luce", groups([gaps]), beta=beta).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("own", "bad", "alpha", "expected"),
    [
        ([0.5, -0.5, 1.0], -1.0, 0.1, 0.628701),
        ([0.5, -0.5, 1.0], -1.0, 0.5, 0.461622),
        ([1.0], -1.0, 0.1, 0.598139),  # pair A: DPO
    ],
)
def test_d2o_gives_the_published_numbers(own: list[float], bad: float, alpha: float, expected: float) -> None:
    assert evaluate("d2o", groups([[*own, bad]]), alpha=alpha).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("exo_rw", {"beta": 1.0, "beta_r": 1.0}, 0.047617),
        ("infonca", {"beta": 1.0, "alpha": 1.0}, 1.081202),
        ("nca_rw", {"beta": 1.0, "alpha": 1.0}, 1.415854),
    ],
)
def test_losses_over_three_scored_responses_give_the_published_numbers(
    name: str, arguments: dict[str, float], expected: float
) -> None:
    scored = groups([[1.0, -1.0, 0.5]], scores=[[1.0, 0.0, 0.5]])
    assert evaluate(name, scored, **arguments).item() == pytest.approx(expected, abs=1e-6)


def as_groups(names: str, scores: list[float]) -> Groups:
    """Pairs as groups of two, the chosen first, all with the same two scores."""
    both = pairs(names)
    h = torch.stack([both.w.gap, both.l.gap], dim=-1)
    return groups(h.tolist(), scores=[scores] * len(names))


@pytest.mark.parametrize(
    ("beta", "expected"), [(0.1, (1.338793, 1.318474, 1.432270)), (0.01, (1.381319, 1.377743, 1.390692))]
)
def test_nca_of_two_responses_with_certain_labels_is_the_pair_form(beta: float, expected: tuple[float, ...]) -> None:
    assert evaluate("nca_rw", as_groups("ABC", CERTAIN), beta=beta).tolist() == pytest.approx(expected, abs=1e-6)


def test_exo_of_two_responses_with_smoothed_labels_is_the_pair_form() -> None:
    labels = [math.log(1 - 1e-3), math.log(1e-3)]
    values = evaluate("exo_rw", as_groups("ABC", labels), beta=0.1, beta_r=1.0)
    assert values.tolist() == pytest.approx((2.422015, 2.178066, 3.066446), abs=1e-6)


def test_gradients_of_the_pair_forms() -> None:
    (nca,) = gradients("nca_rw", as_groups("A", CERTAIN), beta=0.1)
    (exo,) = gradients("exo_rw", as_groups("A", [math.log(1 - 1e-3), math.log(1e-3)]), beta=0.1, beta_r=1.0)
    assert nca[0].tolist() == pytest.approx((-0.021253, 0.023751), abs=1e-6)
    assert exo[0].tolist() == pytest.approx((-0.166003, 0.166003), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "scores", "changes"),
    [
        ("plackett_luce", None, {}),
        ("plackett_luce", None, {"choices": "best"}),
        ("plackett_luce", None, {"normalise": "mean"}),
        ("infonca", CERTAIN, {}),
        ("d2o", None, {}),
    ],
)
@given(chosen=GAP, rejected=GAP, beta=BETA)
def test_of_two_responses_it_is_dpo(
    name: str, scores: list[float] | None, changes: dict[str, str], chosen: float, rejected: float, beta: float
) -> None:
    both = {"beta": beta} | ({"alpha": beta} if name == "d2o" else {}) | changes
    two = groups([[chosen, rejected]], scores=None if scores is None else [scores])
    w, l = (column([-10.0 + h]).requires_grad_() for h in (chosen, rejected))  # noqa: E741
    one, ref = column([1.0]), column([-10.0])
    pair = dpo(Pairs(Responses(w, one, ref=ref), Responses(l, one, ref=ref)), beta=beta)
    torch.testing.assert_close(evaluate(name, two, **both), pair.detach())
    torch.testing.assert_close(gradients(name, two, **both)[0][0], torch.cat(torch.autograd.grad(pair.sum(), [w, l])))


@given(gaps=RANKING, beta=BETA)
def test_plackett_luce_is_minus_the_log_of_the_rankings_probability(gaps: list[float], beta: float) -> None:
    weights = [math.exp(beta * gap) for gap in gaps]
    left = list(accumulate(reversed(weights)))[::-1]
    expected = -sum(math.log(weight / rest) for weight, rest in zip(weights, left, strict=True))
    ranking = groups([gaps])
    assert evaluate("plackett_luce", ranking, beta=beta).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    mean = evaluate("plackett_luce", ranking, beta=beta, normalise="mean").item()
    assert mean == pytest.approx(expected / (len(gaps) - 1), rel=1e-9, abs=1e-9)


@given(gaps=RANKING)
def test_gradients_of_a_ranking_sum_to_zero(gaps: list[float]) -> None:
    ((slope,),) = gradients("plackett_luce", groups([gaps]), beta=1.0)
    assert slope.sum().item() == pytest.approx(0.0, abs=1e-9)


def test_the_best_response_alone_is_a_softmax_cross_entropy() -> None:
    gaps = [1.0, 0.0, -0.5]
    expected = -(column(gaps) * 0.1).log_softmax(0)[0].item()
    assert evaluate("plackett_luce", groups([gaps]), choices="best").item() == pytest.approx(expected)


@pytest.mark.parametrize("name", GROUPS)
def test_padding_changes_nothing_and_gets_no_gradient(name: str) -> None:
    rows, scores = [[2.0, -1.0], [0.5, 0.25, -3.0, 1.0]], [[1.0, 0.5], [2.0, 0.0, -1.0, 0.25]]
    together = groups(rows, scores)
    alone = [evaluate(name, groups([row], [score])) for row, score in zip(rows, scores, strict=True)]
    torch.testing.assert_close(evaluate(name, together), torch.cat(alone))
    assert gradients(name, together)[0][0, 2:].tolist() == [0.0, 0.0]


@given(gaps=RANKING, data=st.data())
def test_exo_is_zero_at_the_scores_own_shares_and_positive_elsewhere(gaps: list[float], data: st.DataObject) -> None:
    shifted = [0.25 * gap + 3.0 for gap in gaps]
    at_the_optimum = evaluate("exo_rw", groups([gaps], [shifted]), beta=0.25, beta_r=1.0)
    assert at_the_optimum.item() == pytest.approx(0.0, abs=1e-9)
    scores = data.draw(st.lists(st.floats(-5, 5), min_size=len(gaps), max_size=len(gaps)))
    assert evaluate("exo_rw", groups([gaps], [scores])).item() >= -1e-9


def test_d2o_gradients_share_one_weight() -> None:
    # w = σ(-z): each own sample -(β/K) w, the bad one +α w
    ((slope,),) = gradients("d2o", groups([[0.5, -0.5, 1.0, -1.0]]), beta=0.1, alpha=0.5)
    weight = 1 / (1 + math.exp(0.1 / 3 + 0.5))
    assert slope.tolist() == pytest.approx([-0.1 / 3 * weight] * 3 + [0.5 * weight])
