"""Identities of whole steps and rounds: how relations lie in rows changes nothing, and a reference that is the policy
gives margins of exactly 0, whatever keeps it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.test_architectures import assert_same, step
from tests.trainer.test_step import planned
from trainer.data import Pair, PreferenceData, Response
from trainer.model import choose_arithmetic, load_model, make_trainable
from trainer.round import train_round
from trainer.scorer import RowScorer, to_batch
from trainer.settings import LoraSettings, TrainSettings
from trainer.spec import RoundSpec
from trainer.tree.encode import Tree, encode_plain_row, encode_tree_row
from trainer.tree.rows import Layout, Plan, Row, RowRelation, RowTree, Step

Spec = Callable[..., RoundSpec]
Report = Callable[[dict[str, Any]], None]
FP32 = TrainSettings(precision="fp32")


def lines(spec: RoundSpec) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (spec.work / "steps.jsonl").read_text(encoding="utf-8").splitlines()]


def one_pair_each(data: PreferenceData) -> PreferenceData:
    """8 pairs of 8 prompts."""
    return PreferenceData(data.groups, tuple(Pair(group.id, "r0", "r3") for group in data.groups))


def row_of(*places: tuple[int, int, int]) -> Row:
    """A row of these pairs: prompt, chosen and rejected response; relation `p` is prompt p's."""
    trees = tuple(RowTree(group, (chosen, rejected)) for group, chosen, rejected in places)
    relations = (RowRelation(place[0], (2 * at, 2 * at + 1)) for at, place in enumerate(places))
    return Row(trees, tuple(relations))


def plan_of(layout: Layout, *rows: Row) -> Plan:
    return Plan(layout, (Step(rows),), (0,), "")


@pytest.mark.parametrize("layout", ["tree", "plain"])
def test_one_row_of_eight_pairs_is_eight_rows_of_one(policy: Path, toy_data: PreferenceData, layout: Layout) -> None:
    data = PreferenceData(toy_data.groups, tuple(Pair(group.id, "r0", "r3") for group in toy_data.groups))
    pairs = [(prompt, 0, 3) for prompt in range(8)]
    model = load_model(policy, choose_arithmetic(FP32))
    together, expected = step(model, data, plan_of(layout, row_of(*pairs)))
    one_by_one, accumulated = step(model, data, plan_of(layout, *map(row_of, pairs)))
    assert one_by_one == pytest.approx(together, rel=1e-5)
    assert_same(accumulated, expected)


def test_padding_to_a_longer_neighbour_changes_nothing(policy: Path, toy_data: PreferenceData) -> None:
    """A plain row with a very long response pads all others; in a row of its own it pads none."""
    first, *others = toy_data.groups
    long = replace(first, responses=(*first.responses, Response("long", [7, 9] * 25)))
    relations = (Pair("p0", "r0", "long"), *(Pair(f"p{at}", "r0", "r3") for at in range(1, 5)))
    data = PreferenceData((long, *others), relations)
    widest, rest = (0, 0, 6), [(prompt, 0, 3) for prompt in range(1, 5)]
    model = load_model(policy, choose_arithmetic(FP32))
    padded, expected = step(model, data, plan_of("plain", row_of(widest, *rest)))
    apart, accumulated = step(model, data, plan_of("plain", row_of(widest), row_of(*rest)))
    assert apart == pytest.approx(padded, rel=1e-5)
    assert_same(accumulated, expected)


PROMPT = [1, 2, 3, 20, 21]
ANSWER = [6, 7, 8, 9, 10, 11, 12]
COMPANY: list[list[Tree]] = [
    [(PROMPT, [ANSWER])],
    [(PROMPT, [ANSWER, [6, 7, 8, 30], [6, 31]])],
    [(PROMPT, [ANSWER, [40], [41] * 30]), ([1, 2, 50], [[51], [52, 53]])],
    [(PROMPT, [ANSWER]), ([*PROMPT, 6, 7], [[8, 60], [61]]), ([1, 2, 3], [[20, 21, 6, 62]])],
]


def spread(policy: Path, precision: str, encode: Callable[[Sequence[Tree]], Any]) -> float:
    """Largest difference between the answer's log-probs (nat) in rows of different company."""
    arithmetic = choose_arithmetic(TrainSettings(precision=precision))  # type: ignore[arg-type]
    model = RowScorer(load_model(policy, arithmetic))
    said = []
    with torch.no_grad(), arithmetic.autocast():
        for trees in COMPANY:
            batch = to_batch(encode(trees), device=arithmetic.device, mask_dtype=arithmetic.mask_dtype)
            said.append(float(model(batch).sum_R[0]))
    return max(said) - min(said)


@pytest.mark.parametrize("encode", [encode_tree_row, encode_plain_row])
def test_a_response_has_one_logprob_whatever_its_company(
    policy: Path, encode: Callable[..., Any], record_property: Callable[[str, object], None]
) -> None:
    fp32, bf16 = spread(policy, "fp32", encode), spread(policy, "bf16-autocast", encode)
    record_property("spread in nat", {"fp32": fp32, "bf16-autocast": bf16})
    assert fp32 < 1e-4, f"fp32 {fp32:.2g} nat, bf16-autocast {bf16:.2g} nat"
    assert bf16 < 0.01, f"fp32 {fp32:.2g} nat, bf16-autocast {bf16:.2g} nat"


@pytest.mark.parametrize("layout", ["tree", "plain"])
def test_gradient_checkpointing_on_is_off_for_every_tensor(
    policy: Path, toy_data: PreferenceData, layout: Layout
) -> None:
    model = load_model(policy, choose_arithmetic(FP32))
    _, off = step(model, toy_data, planned(toy_data, layout))
    checkpointing = FP32.model_copy(update={"gradient_checkpointing": True})
    _, on = step(make_trainable(model, checkpointing, seed=0), toy_data, planned(toy_data, layout))
    assert model.is_gradient_checkpointing
    assert_same(on, off)


def test_tied_embeddings_are_one_tensor_with_both_gradients(
    make_policy: Callable[..., Path], toy_data: PreferenceData
) -> None:
    """The gradient of tied embeddings is the sum of those of input and output embeddings with the same numbers."""
    tied = load_model(make_policy(3), choose_arithmetic(FP32))
    apart = load_model(make_policy(3, tie_word_embeddings=False), choose_arithmetic(FP32))
    apart.load_state_dict(tied.state_dict())
    _, of_tied = step(tied, toy_data, planned(toy_data))
    _, of_apart = step(apart, toy_data, planned(toy_data))
    both = of_apart.pop("lm_head.weight") + of_apart.pop("model.embed_tokens.weight")
    assert_same(of_tied, of_apart | {"model.embed_tokens.weight": both})


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, alpha=8)])
@pytest.mark.parametrize("precision", ["fp32", "bf16-autocast"])
@pytest.mark.parametrize("loss", ["dpo", "tdpo1", "tdpo2"])
def test_the_reference_is_the_policy_at_the_round_s_start(
    loss: str, precision: str, lora: LoraSettings | None, make_spec: Spec, toy_data: PreferenceData, silent: Report
) -> None:
    """From the reference pass or from memory, with a fresh adapter or none: the first margins are exactly 0."""
    spec = make_spec(loss=loss, precision=precision, lora=lora, learning_rate=2e-2, max_steps=3)
    summary = train_round(spec, toy_data, report=silent)
    assert (summary.first["margin"], summary.first["reward_accuracy"]) == (0.0, 0.5)
    assert summary.first["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert summary.last["margin"] != 0.0


@pytest.mark.parametrize("precision", ["fp32", "bf16-autocast"])
def test_a_reference_copied_after_every_step_leaves_every_margin_0(
    precision: str, make_spec: Spec, toy_data: PreferenceData, silent: Report
) -> None:
    """TR-DPO with alpha 1 and tau 1: each step is the first one of DPO against the policy of the step before."""
    spec = make_spec(loss={"name": "tr_dpo", "alpha": 1.0, "tau": 1}, precision=precision)
    train_round(spec, toy_data, report=silent)
    said = lines(spec)
    assert len(said) == 4
    assert [line["margin"] for line in said] == [0.0] * 4
    assert len({line["chosen_logp"] for line in said}) == 4
    slower = make_spec("slower", loss={"name": "tr_dpo", "alpha": 1.0, "tau": 2}, precision=precision)
    train_round(slower, toy_data, report=silent)
    assert [line["margin"] == 0.0 for line in lines(slower)] == [True, False, True, False]
