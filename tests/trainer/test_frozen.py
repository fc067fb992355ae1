"""Frozen weights below adapters are in bf16 under autocast, which changes no bit of the trained model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.architectures import build
from trainer import prepare
from trainer.data import PreferenceData
from trainer.frozen import halve, halves, restore
from trainer.model import Arithmetic, load_model, make_trainable
from trainer.round import train_round
from trainer.settings import LoraSettings, TrainSettings
from trainer.spec import RoundSpec

Spec = Callable[..., RoundSpec]
AUTOCAST = Arithmetic(torch.device("cpu"), "bf16-autocast")


def adapted(policy: Path, **lora: Any) -> Any:
    return make_trainable(load_model(policy, AUTOCAST), TrainSettings(lora=LoraSettings(**lora)), seed=0)


def halved(model: Any) -> set[str]:
    return {name.rpartition("layers.")[2] for name, p in model.named_parameters() if p.dtype == torch.bfloat16}


@pytest.mark.parametrize("family", ["qwen2", "llama-tied", "gpt2", "mixtral"])
def test_a_round_on_bf16_ends_with_the_bits_of_one_on_fp32(
    family: str,
    make_spec: Spec,
    tmp_path: Path,
    toy_data: PreferenceData,
    monkeypatch: pytest.MonkeyPatch,
    silent: Callable[[Any], None],
) -> None:
    policy, seen = build(family, tmp_path / "policy"), []

    def watched(model: Any, arithmetic: Arithmetic) -> bool:
        seen.append((halve(model, arithmetic), len(halved(model))))
        return seen[-1][0]

    lora = LoraSettings(rank=4, dropout=0.0)
    options = {"policy": policy, "reference": policy, "lora": lora, "precision": "bf16-autocast"}
    half, full = make_spec("half", **options), make_spec("full", **options)
    monkeypatch.setattr(prepare, "halve", watched)
    assert train_round(half, toy_data, report=silent).notes == ()
    assert seen[0][0]
    assert seen[0][1] >= 8
    monkeypatch.setattr(prepare, "halve", lambda *_: True)
    train_round(full, toy_data, report=silent)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (half.out / name).read_bytes() == (full.out / name).read_bytes()


def test_adapters_norms_embeddings_and_tied_heads_stay_in_fp32(policy: Path, make_policy: Callable[..., Path]) -> None:
    for folder, more in ((policy, 0), (make_policy(tie_word_embeddings=False), 1)):
        model = adapted(folder)
        before = {name: p.clone() for name, p in model.named_parameters()}
        assert halve(model, AUTOCAST)
        assert len(halved(model)) == 2 * 7 + more
        assert all("base_layer" in name or "lm_head" in name for name in halved(model))
        restore(model, folder)
        assert not halved(model)
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_model_that_would_have_other_logits_keeps_fp32(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(policy)
    layer = model.get_base_model().model.layers[0].mlp.down_proj.base_layer
    forwards: tuple[Callable[[Any], Any], ...] = (
        lambda x: x.float() @ layer.weight.float().T,  # other numbers
        lambda x: x.float() @ layer.weight.T,  # an error
    )
    for forward in forwards:
        monkeypatch.setattr(layer, "forward", torch.autocast("cpu", enabled=False)(forward))
        before = nn.utils.parameters_to_vector(model.parameters())
        assert not halve(model, AUTOCAST)
        assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)


@pytest.mark.parametrize(
    ("settings", "precision", "sharded", "expected"),
    [
        ({"lora": {}}, "bf16-autocast", False, True),
        ({"lora": {"dropout": 0.1, "modules_to_save": ["norm"]}}, "bf16-autocast", False, True),
        ({"lora": {}}, "fp32", False, False),
        ({}, "bf16-autocast", False, False),
        ({"lora": {"use_dora": True}}, "bf16-autocast", False, False),
        ({"lora": {"init_lora_weights": "pissa"}}, "bf16-autocast", False, False),
        ({"lora": {}, "sync_every": 1}, "bf16-autocast", False, False),
        ({"lora": {}}, "bf16-autocast", True, False),
    ],
)
def test_which_rounds_keep_frozen_weights_in_bf16(
    settings: dict[str, Any], precision: Any, sharded: bool, expected: bool
) -> None:
    given = TrainSettings.model_validate(settings)
    assert halves(given, Arithmetic(torch.device("cpu"), precision), sharded=sharded) is expected
