"""Optimizers and learning-rate schedules by name: what they do, that a killed round resumes to the bit, refusals."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import get_scheduler

from tests.helpers.logs import log_of
from trainer import choices
from trainer.choices import OPTIMIZERS, SCHEDULES
from trainer.data import PreferenceData
from trainer.errors import TrainerError
from trainer.learner import Learner
from trainer.model import choose_arithmetic, load_model
from trainer.objective import Objective
from trainer.optimizer import MAKERS, learning_rate, make_optimizer
from trainer.round import train_round
from trainer.settings import TrainSettings
from trainer.spec import RoundSpec

Spec = Callable[..., RoundSpec]
MOVING: tuple[str | dict[str, Any], ...] = (
    *("adamw", "muon", "adafactor"),
    {"name": "sgd", "momentum": 0.9},
    pytest.param("adamw_8bit", marks=pytest.mark.skipif(not importlib.util.find_spec("torchao"), reason="no torchao")),  # type: ignore[list-item]
)


def silent(_: dict[str, Any]) -> None:
    """A report that nobody reads."""


def settings(**given: Any) -> TrainSettings:
    return TrainSettings.model_validate(given)


# Schedules


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        ("constant", {}),
        ("constant_with_warmup", {}),
        ("linear", {}),
        ("cosine", {}),
        ({"name": "cosine", "num_cycles": 1.5}, {"num_cycles": 1.5}),
        ({"name": "cosine_with_restarts", "num_cycles": 3}, {"num_cycles": 3}),
        ({"name": "cosine_with_min_lr", "min_lr_rate": 0.2}, {"min_lr_rate": 0.2}),
        ({"name": "polynomial", "power": 2, "lr_end": 1e-4}, {"power": 2, "lr_end": 1e-4}),
        ("inverse_sqrt", {}),
        ({"name": "inverse_sqrt", "timescale": 7}, {"timescale": 7}),
        ("warmup_stable_decay", {"num_decay_steps": 4, "decay_type": "linear"}),
        (
            {"name": "warmup_stable_decay", "num_decay_steps": 9, "decay_type": "1-sqrt", "min_lr_ratio": 0.1},
            {"num_decay_steps": 9, "decay_type": "1-sqrt", "min_lr_ratio": 0.1},
        ),
    ],
)
@pytest.mark.parametrize("warmup", [0, 8])
def test_after_the_warm_up_the_rates_are_those_of_transformers(
    schedule: str | dict[str, Any], theirs: dict[str, Any], warmup: int
) -> None:
    steps, peak = 40, 2e-3
    ours = settings(learning_rate=peak, schedule=schedule, warmup_share=warmup / steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    name = schedule if isinstance(schedule, str) else schedule["name"]
    scheduler = get_scheduler(name, optimizer, warmup, steps, scheduler_specific_kwargs=theirs)
    for step in range(steps):
        if step >= warmup:
            assert learning_rate(step, steps, ours) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        scheduler.step()
    assert {"reduce_lr_on_plateau", "greedy"}.isdisjoint(SCHEDULES)  # they read the loss


def test_the_old_schedules_are_the_same_to_the_bit() -> None:
    for name, shape in (
        ("constant", lambda progress: 1.0),
        ("linear", lambda progress: 1.0 - progress),
        ("cosine", lambda progress: (1 + math.cos(math.pi * progress)) / 2),
    ):
        given = settings(schedule=name, warmup_share=0.13, learning_rate=3e-6)
        for step in range(7, 53):
            assert learning_rate(step, 53, given) == 3e-6 * shape((step - 7) / (53 - 7))


# Optimizers


@pytest.mark.parametrize("optimizer", MOVING)
def test_a_round_that_ends_in_a_step_resumes_to_the_bits_of_one_that_was_left_alone(
    optimizer: str | dict[str, Any], make_spec: Spec, make_policy: Callable[..., Path], toy_data: PreferenceData
) -> None:
    policy = make_policy(intermediate_size=128)  # torchao quantises tensors from 4096 values on
    options = {"optimizer": optimizer, "epochs": 2, "checkpoint_every": 3, "policy": policy, "reference": policy}
    whole, broken = make_spec("whole", **options), make_spec("broken", **options)
    summary = train_round(whole, toy_data, report=silent)
    assert summary.last["loss"] < summary.first["loss"]

    def interrupted(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["done"] == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_round(broken, toy_data, report=interrupted)
    states = load_file(broken.work / "checkpoint-000003" / "optimizer.safetensors")
    assert any(label.endswith("|codes") for label in states) == (optimizer == "adamw_8bit")
    assert train_round(broken, toy_data, report=silent).notes == ("resumed at step 3",)
    ours, theirs = load_file(whole.out / "model.safetensors"), load_file(broken.out / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert log_of(whole.work) == log_of(broken.work)


def test_muon_updates_the_matrices_between_embeddings_and_head(policy: Path, make_policy: Callable[..., Path]) -> None:
    for folder in (policy, make_policy(tie_word_embeddings=False)):
        learner = Learner(load_model(folder, choose_arithmetic(settings(precision="fp32"))), Objective(()))
        muon, adamw = make_optimizer(learner, settings(optimizer="muon")).parts
        names = {id(parameter): name for name, parameter in learner.parameters().items()}
        rest = {names[id(one)].rpartition(".")[0].rpartition(".")[2] for one in adamw.param_groups[0]["params"]}
        assert (
            {"embed_tokens", "norm", "input_layernorm", "post_attention_layernorm"}
            <= rest
            <= {*("embed_tokens", "norm", "input_layernorm", "post_attention_layernorm", "lm_head")}
        )
        assert len(muon.param_groups[0]["params"]) == 2 * 7


def test_every_name_has_a_maker_and_the_default_is_torchs_fused_adamw(policy: Path) -> None:
    assert MAKERS.keys() == OPTIMIZERS.keys()
    learner = Learner(load_model(policy, choose_arithmetic(settings(precision="fp32"))), Objective(()))
    (only,) = make_optimizer(learner, settings()).parts
    assert type(only) is torch.optim.AdamW
    assert only.defaults["fused"]
    assert [id(one) for one in only.param_groups[0]["params"]] == [*map(id, learner.parameters().values())]


def test_rounds_from_before_the_optimizer_could_be_chosen_keep_their_identity() -> None:
    assert "optimizer" not in settings().deciding
    assert settings(optimizer="muon").deciding["optimizer"] == "muon"
    assert settings().deciding["schedule"] == "linear"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "adam_8bit"}, r"no optimizer 'adam_8bit' \(did you mean 'adamw_8bit'\?\); there are adamw, "),
        ({"optimizer": {"momentum": 0.9}}, "no optimizer None; there are adamw"),
        (
            {"optimizer": {"name": "sgd", "betas": 1}},
            r"sgd has no argument 'betas' \(its arguments: momentum=0.0,",
        ),
        ({"optimizer": {"name": "sgd", "momentum": -1}}, "the optimizer sgd cannot have momentum -1"),
        ({"optimizer": {"name": "sgd", "nesterov": True}}, "sgd needs a momentum above 0 for nesterov"),
        ({"optimizer": {"name": "adafactor", "d": 0.5}}, "adafactor cannot have d 0.5"),
        ({"optimizer": {"name": "muon", "ns_steps": 0.5}}, "muon cannot have ns_steps 0.5"),
        ({"optimizer": "muon", "distribute": "fsdp"}, "muon cannot be used with distribute fsdp.*use adamw or sgd"),
        ({"schedule": "reduce_lr_on_plateau"}, "there is no schedule 'reduce_lr_on_plateau'; there are constant"),
        (
            {"schedule": {"name": "cosine", "cycles": 2}},
            r"cosine has no argument 'cycles' \(its arguments: num_c",
        ),
        ({"schedule": {"name": "inverse_sqrt", "timescale": 0}}, r"cannot have timescale 0 .*timescale=null"),
        ({"schedule": {"name": "warmup_stable_decay", "decay_type": "sqrt"}}, "must be one of linear, cosine, 1-sqrt"),
        ({"schedule": "polynomial", "learning_rate": 1e-7}, "ends at lr_end 1e-07, which is not below"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**given)


def test_an_optimizer_whose_package_is_missing_says_what_to_install(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices.importlib.util, "find_spec", lambda _: None)
    learner = Learner(load_model(policy, choose_arithmetic(settings(precision="fp32"))), Objective(()))
    with pytest.raises(TrainerError, match="adamw_8bit needs torchao, which is not installed; install it with `pip"):
        make_optimizer(learner, settings(optimizer="adamw_8bit"))
