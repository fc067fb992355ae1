"""A round that must not go on says why, saves the batch, and leaves its last checkpoint as it was."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.data import Pair, PreferenceData
from trainer.errors import TrainerError
from trainer.round import train_round
from trainer.spec import RoundSpec
from trainer.stops import FEWEST, BadStep, NormWatch
from trainer.tree.rows import plan_rows

Spec = Callable[..., RoundSpec]
Report = Callable[[dict[str, Any]], None]
OPTIONS: dict[str, Any] = {"batch_pairs": 2, "checkpoint_every": 3, "loss": "dpo"}
"""16 steps of two pairs."""


def weigh(data: PreferenceData, spec: RoundSpec, *, step: int, weight: float) -> tuple[PreferenceData, Pair]:
    """The data with this weight for the first pair that the round trains in a step; and that pair."""
    plan = plan_rows(data, spec.settings, seed=spec.seed, layout="tree")
    at = plan.steps[plan.order[step]].rows[0].relations[0].index
    pair = data.relations[at]
    assert isinstance(pair, Pair)
    heavy = replace(pair, weight=weight)
    return PreferenceData(data.groups, (*data.relations[:at], heavy, *data.relations[at + 1 :])), heavy


def stop(spec: RoundSpec, data: PreferenceData, report: Report, *, step: int) -> tuple[str, dict[str, Any]]:
    """Runs a round that stops at this step; returns the message and what was saved."""
    with pytest.raises(TrainerError) as caught:
        train_round(spec, data, report=report)
    path = spec.work / f"stopped-at-step-{step}.json"
    assert f"Training stopped at step {step}: " in str(caught.value)
    assert str(path) in str(caught.value)
    assert not spec.out.exists()
    assert not list(spec.work.glob("*.partial"))
    return str(caught.value), json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_a_loss_that_overflows_saves_its_row(make_spec: Spec, toy_data: PreferenceData, silent: Report) -> None:
    spec = make_spec(**OPTIONS)
    data, pair = weigh(toy_data, spec, step=7, weight=1e39)  # more than fp32 can hold
    message, saved = stop(spec, data, silent, step=7)
    assert f"the loss is inf, with the prompts {pair.prompt_id}." in message
    assert "Its checkpoints are kept (checkpoint-000006)." in message
    assert (saved["step"], saved["kind"], saved["numbers"]) == (7, "pairs", {})
    assert saved["why"] in message
    assert pair.chosen_id in {relation["chosen_id"] for relation in saved["relations"]}
    assert 1e39 in {relation["weight"] for relation in saved["relations"]}
    (prompt,) = (group for group in data.groups if group.id == pair.prompt_id)
    named = {id for relation in saved["relations"] for id in (relation["chosen_id"], relation["rejected_id"])}
    responses = [{"id": r.id, "token_ids": list(r.token_ids)} for r in prompt.responses if r.id in named]
    assert saved["prompts"] == [{"id": prompt.id, "token_ids": list(prompt.token_ids), "responses": responses}]


def test_the_last_checkpoint_is_finite_and_of_the_steps_before(
    make_spec: Spec, toy_data: PreferenceData, silent: Report
) -> None:
    spec = make_spec(**OPTIONS)
    data, _ = weigh(toy_data, spec, step=7, weight=1e39)
    stop(spec, data, silent, step=7)
    folder = spec.work / "checkpoint-000006"
    assert all(tensor.isfinite().all() for tensor in load_file(folder / "weights.safetensors").values())
    assert json.loads((folder / "state.json").read_text(encoding="utf-8"))["steps"] == 6
    assert len((spec.work / "steps.jsonl").read_text(encoding="utf-8").splitlines()) == 7


def test_an_exploding_gradient_stops_and_may_be_allowed(
    make_spec: Spec, toy_data: PreferenceData, silent: Report
) -> None:
    spec = make_spec(**OPTIONS, stop_at_norm_ratio=50)
    data, pair = weigh(toy_data, spec, step=10, weight=1e4)
    message, saved = stop(spec, data, silent, step=10)
    assert "times the median of the 10 steps before (train.stop_at_norm_ratio allows 50;" in message
    assert pair.prompt_id in {prompt["id"] for prompt in saved["prompts"]}
    assert len(saved["relations"]) == 2  # all rows of the step
    lines = (spec.work / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    norms = [json.loads(line)["gradient_norm"] for line in lines]
    assert saved["numbers"]["gradient_norm"] > 50 * sorted(norms)[5]
    assert saved["numbers"]["loss"] > 100
    allowed = make_spec(**OPTIONS, stop_at_norm_ratio=None)
    assert train_round(allowed, data, report=silent).notes == ("resumed at step 9",)
    patient = make_spec("patient", **OPTIONS)
    data, _ = weigh(toy_data, patient, step=FEWEST - 1, weight=1e4)
    assert train_round(patient, data, report=silent).steps == 16  # too early to know what is usual


def test_a_resumed_round_remembers_what_is_usual(make_spec: Spec, toy_data: PreferenceData, silent: Report) -> None:
    """The median comes from the log, so a stop repeats after a restart."""
    spec = make_spec(**OPTIONS, stop_at_norm_ratio=50)
    data, _ = weigh(toy_data, spec, step=10, weight=1e4)
    first, _ = stop(spec, data, silent, step=10)
    again, _ = stop(spec, data, silent, step=10)
    assert first == again


def test_weights_that_an_update_broke_become_no_candidate(
    make_spec: Spec, toy_data: PreferenceData, silent: Report
) -> None:
    spec = make_spec(**OPTIONS, learning_rate=1e39, max_steps=1)
    message, saved = stop(spec, toy_data, silent, step=0)
    assert "its update left NaN or infinity in model." in message
    assert "There is no checkpoint yet." in message
    assert saved["numbers"]["loss"] == pytest.approx(0.693147, abs=1e-6)


def test_a_gradient_that_is_no_number_is_written_as_a_word(
    make_spec: Spec, toy_data: PreferenceData, silent: Report
) -> None:
    spec = make_spec(**OPTIONS)
    data, _ = weigh(toy_data, spec, step=4, weight=1e38)  # a finite loss, squares of its gradient are not
    _, saved = stop(spec, data, silent, step=4)
    assert saved["why"].startswith("Training stopped at step 4: the gradient norm is inf")
    assert saved["numbers"]["loss"] > 1e37


def watch(ratio: float | None, norms: list[float], *, clipped_at: float = 1.0) -> Callable[[float], None]:
    made = NormWatch(ratio, clipped_at, norms)
    return lambda norm: made.check(norm, number=9, prompts=["p1"])


def test_the_norm_limit_by_hand() -> None:
    norms = [3.0, 1.0, 2.0, 2.0, 2.0, 500.0, 1.0, 3.0]  # median 2
    watch(10, norms)(20.0)
    with pytest.raises(BadStep, match=r"the gradient norm is 20\.2, 10\.1 times the median of the 8 steps before"):
        watch(10, norms)(20.2)
    watch(10, norms[1:])(1e9)
    watch(None, norms)(1e9)
    watch(10, [0.0] * 8)(1e9)
    watch(10, norms, clipped_at=30.0)(25.0)
    check = watch(10, norms)
    for norm in (20.0, 20.0, 20.0, 20.0):
        check(norm)  # what passed counts: 1 1 2 2 2 3 | 3 20 20 20 20 500, median 3
    check(30.0)


def test_a_message_names_few_of_many_prompts() -> None:
    error = BadStep(3, "the loss is nan", [f"p{at}" for at in range(10)])
    assert str(error) == (
        "Training stopped at step 3: the loss is nan, with the prompts p0, p1, p2, p3, p4, p5, p6, p7 and 2 more."
    )


def test_the_reference_of_tr_dpo_that_never_moves_is_noted(
    make_spec: Spec, toy_data: PreferenceData, silent: Report
) -> None:
    for tau, notes in ((4, ("the reference never moved: tau is not below the round's 4 steps",)), (3, ())):
        spec = make_spec(f"tau-{tau}", loss={"name": "tr_dpo", "tau": tau})
        assert train_round(spec, toy_data, report=silent).notes == notes


@pytest.fixture
def broken_policy(make_policy: Callable[..., Path]) -> Path:
    """One weight is NaN."""
    folder = make_policy(5)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = torch.inf
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("loss", ["dpo", "simpo", "tdpo1"])
@pytest.mark.parametrize("role", ["policy", "reference"])
def test_broken_weights_are_named_before_training(
    role: str, loss: str, make_spec: Spec, broken_policy: Path, toy_data: PreferenceData, silent: Report
) -> None:
    spec = make_spec(**{role: broken_policy, f"{role}_hash": "broken", "loss": loss}, max_steps=1)
    if (role, loss) == ("reference", "simpo"):  # needs none
        assert train_round(spec, toy_data, report=silent).steps == 1
        return
    with pytest.raises(TrainerError, match=rf"weights in {broken_policy} hold NaN or infinity \(first in .*up_proj"):
        train_round(spec, toy_data, report=silent)
