"""The numbers of the log by hand, and what is computed of whole distributions against plain formulas."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.loss_cases import make_pairs, named
from trainer.data import PreferenceData
from trainer.diagnostics import describe
from trainer.losses.batch import Groups, Pairs, Responses, Singles
from trainer.memory import peak_memory_gb
from trainer.model import choose_arithmetic, load_model
from trainer.relations import Batch
from trainer.round import train_round
from trainer.scorer import LOGIT_ROWS, RowScorer, SequenceKL, _entropy, to_batch
from trainer.settings import TrainSettings
from trainer.spec import RoundSpec
from trainer.tree.encode import encode_plain_row, encode_tree_row

CPU = torch.device("cpu")


def means(batch: Batch, beta: float = 0.1) -> dict[str, float]:
    return {name: total / count for name, (total, count) in describe(batch, beta).items()}


def test_the_pairs_a_b_and_c() -> None:
    """Δ = 2, 3.5, -1.75; chosen log-ratios 1, -1.5, -1; B fell on both sides."""
    assert means(named("ABC")) == pytest.approx(
        {
            "chosen_logp": -41 / 3,
            "rejected_logp": -48.5 / 3,
            "chosen_logp_per_token": (-12 / 5 - 20 / 8 - 9 / 3) / 3,
            "rejected_logp_per_token": (-15 / 6 - 26 / 10 - 7.5 / 6) / 3,
            "chosen_length": 16 / 3,
            "rejected_length": 22 / 3,
            "length_gap": -2.0,
            "chosen_log_ratio": -0.5,
            "rejected_log_ratio": -1.75,
            "margin": 0.125,
            "reward_accuracy": 2 / 3,
            "ranking_accuracy": 2 / 3,
            "displacement_rate": 2 / 3,
            "both_displaced_rate": 1 / 3,
            "loss_weight": (0.450166 + 0.413382 + 0.543639) / 3,
            "log10_gradient_ratio": -0.542868,  # of 0.135335, 0.030197 and 5.754603
            "reference_gap": 1.25,
        },
        abs=1e-6,
    )


def test_a_tie_counts_half_and_moved_nothing() -> None:
    tie = means(make_pairs((-3.0, -3.0, -3.0, -3.0, 1.0, 2.0)))
    assert (tie["reward_accuracy"], tie["ranking_accuracy"], tie["loss_weight"]) == (0.5, 0.5, 0.5)
    assert (tie["displacement_rate"], tie["both_displaced_rate"], tie["margin"]) == (0.0, 0.0, 0.0)


def test_without_a_reference_nothing_is_compared_with_it() -> None:
    y = Responses(torch.tensor([-2.0]), torch.tensor([2]))
    assert means(Pairs(y, y)).keys() == {
        *(f"{which}_{what}" for which in ("chosen", "rejected") for what in ("logp", "logp_per_token", "length")),
        "ranking_accuracy",
        "length_gap",
    }


THREE = Responses(torch.tensor([-4.0, -6.0, -5.0]), torch.tensor([4, 2, 5]), torch.tensor([-1.0, -1.0, -5.0]))


def test_singles_by_label() -> None:
    said = describe(Singles(THREE, good=torch.tensor([True, False, True])), 0.1)
    assert said["chosen_logp"] == (-9.0, 2.0)
    assert said["rejected_logp_per_token"] == (-3.0, 1.0)
    assert said["chosen_log_ratio"] == (-3.0, 2.0)
    unlabelled = describe(Singles(THREE), 0.1)
    assert unlabelled["response_logp"] == (-15.0, 3.0)
    assert "chosen_logp" not in unlabelled
    only_good = describe(Singles(THREE, good=torch.tensor([True, True, True])), 0.1)
    assert not [name for name in only_good if name.startswith("rejected")]


def test_groups_by_their_best_and_their_last() -> None:
    y = Responses(torch.tensor([[-1.0, -2.0, -4.0], [-3.0, -5.0, 0.0]]), torch.tensor([[1, 2, 2], [3, 5, 1]]))
    present = torch.tensor([[True, True, True], [True, True, False]])
    said = means(Groups(y, present))
    assert (said["chosen_logp"], said["rejected_logp"]) == (-2.0, -4.5)
    assert (said["chosen_length"], said["rejected_logp_per_token"]) == (2.0, -1.5)


def plain_kl(policy: Tensor, reference: Tensor) -> Tensor:
    p, q = reference.double().softmax(-1), policy.double().softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)


def test_sequence_kl_in_value_and_gradient() -> None:
    """More rows than are alive at once, unequal weights."""
    torch.manual_seed(0)
    rows = 2 * LOGIT_ROWS + 7
    policy, reference = torch.randn(rows, 11, requires_grad=True), torch.randn(rows, 11)
    weights = torch.randn(rows)
    ours = SequenceKL.apply(policy, reference)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), policy)
    theirs = plain_kl(policy, reference)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), policy)
    torch.testing.assert_close(ours.double(), theirs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)


def test_sequence_kl_of_equal_logits_is_exactly_0() -> None:
    logits = torch.randn(5, 11, requires_grad=True)
    divergence = SequenceKL.apply(logits, logits.detach().clone())
    divergence.sum().backward()
    assert divergence.eq(0).all()
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


PROMPT = [1, 2, 3, 4]
ANSWERS = [[5, 6, 7], [5, 8], [9]]


def distributions(model: Any, ids: list[int]) -> Tensor:
    """[L, V] next-token probabilities where the answer's tokens are predicted, one unpadded sequence."""
    logits = model(input_ids=torch.tensor([PROMPT + ids]), use_cache=False).logits[0]
    return logits[len(PROMPT) - 1 : -1].double().softmax(-1)


@pytest.mark.parametrize("encode", [encode_tree_row, encode_plain_row])
def test_entropy_collision_and_kl_of_a_row_against_direct_computation(
    encode: Callable[..., Any], policy: Path, make_policy: Callable[..., Path]
) -> None:
    arithmetic = choose_arithmetic(TrainSettings(precision="fp32"))
    model, other = load_model(policy, arithmetic), load_model(make_policy(4), arithmetic)
    batch = to_batch(encode([(PROMPT, ANSWERS)]), device=CPU, mask_dtype=torch.float32)
    with torch.no_grad():
        reference = RowScorer(other).logits(batch)
        scores = RowScorer(model)(batch, collision=True, entropy=True, reference_logits_NV=reference)
        ours, theirs = ([distributions(which, ids) for ids in ANSWERS] for which in (model, other))
    expected = torch.stack([(p * (p.log() - q.log())).sum() for q, p in zip(ours, theirs, strict=True)])
    torch.testing.assert_close(scores.kl_R.double(), expected, atol=1e-6, rtol=1e-5)
    collisions = scores.collision_K[batch.path_RL[0]]
    torch.testing.assert_close(collisions.double(), ours[0].square().sum(-1).log(), atol=1e-5, rtol=1e-5)
    positions = {(): ours[0][0], (5,): ours[0][1], (5, 6): ours[0][2]}  # after the prompt, after 5, after 5 6
    entropies = [float(-(p * p.log()).sum()) for p in positions.values()]
    if encode is encode_plain_row:  # here each sequence has positions of its own
        entropies += [entropies[0], entropies[1], entropies[0]]
    assert float(scores.entropy) == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)


def test_entropy_of_many_positions_is_that_of_evenly_spaced_ones() -> None:
    logits = torch.randn(200, 7)
    scored = torch.arange(20, 170).repeat(2)  # 150 positions: every third
    log_p = logits[20:170:3].log_softmax(-1)
    assert float(_entropy(logits, scored)) == pytest.approx(float(-(log_p.exp() * log_p).sum(-1).mean()), rel=1e-6)
    assert float(_entropy(torch.zeros(3, 7), torch.tensor([1]))) == pytest.approx(1.945910)  # log 7


def test_peak_memory_knows_what_was_held() -> None:
    held = torch.ones(75_000_000)  # 0.3 GB
    peak = peak_memory_gb(CPU)
    del held
    assert 0.3 < peak <= peak_memory_gb(CPU) < 1000


def test_a_step_s_line_says_what_it_cost(
    make_spec: Callable[..., RoundSpec], toy_data: PreferenceData, silent: Callable[[Any], None]
) -> None:
    spec = make_spec(max_steps=2)
    train_round(spec, toy_data, report=silent)
    lines = [json.loads(line) for line in (spec.work / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        assert line["tokens_per_second"] == pytest.approx(line["tokens"] / line["seconds"])
        assert 0.05 < line["peak_memory_gb"] < 1000
        assert 4 < line["entropy"] < 4.575  # log 97, and nearly so for random weights
