"""The losses against hand-computed numbers (three pairs: healthy, displaced, mis-ranked)."""

import math
from typing import get_args

import pytest
import torch

from trainer.losses import LOSSES, PairLogprobs, pair_loss
from trainer.settings import TrainSettings

#                 logp_w  logp_l  ref_w  ref_l  n_w  n_l
PAIRS = {
    "A": (-12.0, -15.0, -13.0, -14.0, 5.0, 6.0),  # Δ = 2
    "B": (-20.0, -26.0, -18.5, -21.0, 8.0, 10.0),  # Δ = 3.5, both below the reference
    "C": (-9.0, -7.5, -8.0, -8.25, 3.0, 6.0),  # Δ = -1.75
}


def batch(names: str) -> PairLogprobs:
    columns = zip(*(PAIRS[name] for name in names), strict=True)
    return PairLogprobs(*(torch.tensor(column, dtype=torch.float64) for column in columns))


@pytest.mark.parametrize(
    ("beta", "nll_weight", "expected"),
    [
        (0.1, 0.0, (0.598139, 0.533382, 0.784470)),
        (0.5, 0.0, (0.313262, 0.160224, 1.223445)),
        (0.1, 1.0, (2.998139, 3.033382, 3.784470)),
        (0.1, 0.25, (1.198139, 1.158382, 1.534470)),
    ],
)
def test_dpo_and_nll_give_the_published_numbers(beta: float, nll_weight: float, expected: tuple[float, ...]) -> None:
    loss = pair_loss(batch("ABC"), name="dpo", beta=beta, nll_weight=nll_weight)
    assert loss.total_P.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("pair", "nll_weight", "gradient"),
    [
        ("A", 0.0, (-0.045017, 0.045017)),
        ("C", 0.0, (-0.054364, 0.054364)),
        ("A", 1.0, (-0.245017, 0.045017)),
        ("C", 1.0, (-0.387697, 0.054364)),
    ],
)
def test_gradients_on_both_sums(pair: str, nll_weight: float, gradient: tuple[float, float]) -> None:
    pairs = batch(pair)
    pairs.logp_w_P.requires_grad_()
    pairs.logp_l_P.requires_grad_()
    pair_loss(pairs, name="dpo", beta=0.1, nll_weight=nll_weight).total_P.sum().backward()
    assert pairs.logp_w_P.grad is not None
    assert pairs.logp_l_P.grad is not None
    assert (pairs.logp_w_P.grad.item(), pairs.logp_l_P.grad.item()) == pytest.approx(gradient, abs=1e-6)


def test_nll_divides_each_response_by_its_own_length() -> None:
    pairs = batch("AC")
    per_sequence = pair_loss(pairs, name="dpo", beta=0.1, nll_weight=1.0).parts["nll"].mean()
    over_all_tokens = -pairs.logp_w_P.sum() / pairs.n_w_P.sum()
    assert per_sequence.item() == pytest.approx(2.7)
    assert over_all_tokens.item() == pytest.approx(2.625)  # the other normalisation, which this is not


def test_equal_policy_and_reference_give_log_2_exactly_once() -> None:
    pairs = PairLogprobs(*(torch.tensor([value]) for value in (-3.0, -4.0, -3.0, -4.0, 2.0, 2.0)))
    loss = pair_loss(pairs, name="dpo", beta=0.7, nll_weight=0.0)
    assert loss.total_P.item() == pytest.approx(math.log(2), abs=1e-7)


def test_swapped_labels_change_the_loss_by_the_margin() -> None:
    logp_w, logp_l, ref_w, ref_l, n_w, n_l = batch("ABC")
    straight = pair_loss(batch("ABC"), name="dpo", beta=0.1, nll_weight=0.0).total_P
    swapped = pair_loss(PairLogprobs(logp_l, logp_w, ref_l, ref_w, n_l, n_w), name="dpo", beta=0.1, nll_weight=0.0)
    assert (swapped.total_P - straight).tolist() == pytest.approx([0.2, 0.35, -0.175])


def test_a_huge_negative_margin_stays_finite() -> None:
    pairs = PairLogprobs(*(torch.tensor([value]) for value in (-1e5, -1.0, -1.0, -1e5, 2.0, 2.0)))
    assert pair_loss(pairs, name="dpo", beta=1.0, nll_weight=0.0).total_P.item() == pytest.approx(199998.0)


def test_settings_name_every_row_of_the_table() -> None:
    assert set(get_args(TrainSettings.model_fields["loss"].annotation)) == set(LOSSES)
