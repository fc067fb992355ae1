"""What a round exports is the model that it trained, on architectures of many kinds; adapters that an export could not
hold are refused before the round."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.architectures import build
from trainer import merging
from trainer.adapters import Adapter, adapters_of, check_adapters, row_logits, try_adapters
from trainer.data import PreferenceData
from trainer.errors import TrainerError
from trainer.merging import merged_weights
from trainer.model import Arithmetic, load_model, make_trainable, save_candidate, trained_parameters
from trainer.online.publish import Publisher
from trainer.online.sliced_round import SlicedRound
from trainer.round import train_round
from trainer.settings import LoraSettings, TrainSettings
from trainer.spec import RoundSpec

CPU = Arithmetic(torch.device("cpu"), "fp32")
EXPERTS = {
    "mixtral": ("w1", "w2", "w3"),
    "qwen3_moe": ("gate_proj", "up_proj", "down_proj"),
    "qwen3_next": ("gate_proj", "up_proj", "down_proj", "in_proj_qkvz"),
}
"""Names of experts by family; PEFT translates them to the weight of all experts."""
HEADS = {"gpt2": "wte", "rwkv": "head"}
FAMILIES = (
    *("llama-tied", "qwen2", "gemma2", "gpt2", "cohere", "rwkv", "gpt_oss", "mamba2"),
    *EXPERTS,
)
TIED = {"llama-tied", "gemma2", "gpt2", "cohere"}
NO_ALL_LINEAR = {"mamba2"}
WAYS: dict[str, Callable[[str], Any]] = {
    "full": lambda family: None,
    "lora": lambda family: "all-linear",
    "experts": lambda family: EXPERTS[family],
    "head": lambda family: (HEADS.get(family, "lm_head"),),
}


def trainable(folder: Path, targets: str | tuple[str, ...] | dict[str, Any] | None) -> Any:
    """The folder's model as a round loads it."""
    lora = None if targets is None else {"rank": 4, "alpha": 8} | given_lora(targets)
    return make_trainable(
        load_model(folder, CPU), TrainSettings.model_validate({"precision": "fp32", "lora": lora}), seed=0
    )


def given_lora(targets: str | tuple[str, ...] | dict[str, Any]) -> dict[str, Any]:
    """Settings of adapters that are given as targets alone, or as a dict."""
    return targets if isinstance(targets, dict) else {"target_modules": targets}


def moved(model: Any) -> Any:
    """The model after some training: every trained parameter has changed."""
    torch.manual_seed(3)
    with torch.no_grad():
        for _, parameter in trained_parameters(model):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def logits(folder: Path) -> Tensor:
    with torch.no_grad():
        return row_logits(load_model(folder, CPU))


def cases() -> Iterator[tuple[str, str]]:
    for family in FAMILIES:
        for way in WAYS:
            if way != "experts" or family in EXPERTS:
                yield family, way


@pytest.mark.parametrize(("family", "way"), list(cases()))
def test_an_export_is_the_trained_model_or_refused(family: str, way: str, tmp_path: Path) -> None:
    policy, targets = build(family, tmp_path / "policy"), WAYS[way](family)
    if (way == "head" and family in TIED) or (way == "lora" and family in NO_ALL_LINEAR):
        with pytest.raises(TrainerError, match=r"the same weight|incompatible with Mamba"):
            trainable(policy, targets)
        return
    model = moved(trainable(policy, targets))
    with torch.no_grad():
        trained, before = row_logits(model), logits(policy)
    assert (trained - before).abs().max() > 0.1
    Publisher().publish(model, tmp_path / "handed" / "0", policy=policy, number_format="float32")
    torch.testing.assert_close(logits(tmp_path / "handed" / "0"), trained, atol=1e-4, rtol=0)
    (tmp_path / "out").mkdir()
    save_candidate(model, tmp_path / "out", policy=policy)
    torch.testing.assert_close(logits(tmp_path / "out"), trained, atol=1e-4, rtol=0)


KINDS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "rank": 9},
    "dropout": {"dropout": 0.3},
    "dora, dropout": {"use_dora": True, "dropout": 0.3},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "olora": {"init_lora_weights": "olora"},
    "pissa": {"init_lora_weights": "pissa"},
    "patterns": {"rank_pattern": {"PROJ": 2}, "alpha_pattern": {"PROJ": 3}},
    "regex": {"target_modules": r".*\.0\..*(PROJ|OTHER)"},
    "name": {"target_modules": "PROJ"},
    "head": {"modules_to_save": ("HEAD",)},
    "norm": {"modules_to_save": ("NORM",), "use_dora": True},
}
"""Kinds of adapters; the words in capitals stand for names of each family."""
NAMES = {
    "qwen2": {"PROJ": "q_proj", "OTHER": "up_proj", "HEAD": "lm_head", "NORM": "norm"},
    "llama-tied": {"PROJ": "v_proj", "OTHER": "down_proj", "HEAD": "lm_head", "NORM": "norm"},
    "gpt2": {"PROJ": "c_attn", "OTHER": "c_fc", "HEAD": "lm_head", "NORM": "ln_f"},
    "mixtral": {"PROJ": "q_proj", "OTHER": "o_proj", "HEAD": "lm_head", "NORM": "norm"},
}


def adapted_as(family: str, kind: str, policy: Path) -> Any:
    """The model with adapters of a kind, as a round loads it."""

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {named(key): one for key, one in value.items()}
        if isinstance(value, tuple):
            return tuple(map(named, value))
        for word, name in NAMES[family].items():
            value = value.replace(word, name) if isinstance(value, str) else value
        return value

    given = {key: named(value) for key, value in KINDS[kind].items()}
    settings = TrainSettings.model_validate({"precision": "fp32", "lora": {"rank": 4, "alpha": 8} | given})
    return make_trainable(load_model(policy, CPU), settings, seed=0)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("qwen2", kind) for kind in KINDS),
        *(("llama-tied", kind) for kind in ("head", "norm", "pissa")),
        *(("gpt2", kind) for kind in ("dora, dropout", "patterns", "head")),
        *(("mixtral", kind) for kind in ("dora", "dropout", "rslora")),
    ],
)
def test_every_kind_of_adapter_exports_the_trained_model_or_is_refused(family: str, kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    policy = build(family, tmp_path / "policy")
    if (kind == "head" and family in TIED) or (
        family == "mixtral" and kind in {"dora", "dropout", "dora, dropout", "norm"}
    ):
        with pytest.raises(TrainerError, match=r"the same weight|does not work with"):
            adapted_as(family, kind, policy)
        return
    model = adapted_as(family, kind, policy)
    with torch.no_grad():
        torch.testing.assert_close(row_logits(model), logits(policy), atol=1e-4, rtol=0)  # new ones change nothing
    try_adapters(model)
    moved(model)
    with torch.no_grad():
        trained = row_logits(model)
    assert (trained - logits(policy)).abs().max() > 0.01
    Publisher().publish(model, tmp_path / "handed" / "0", policy=policy, number_format="float32")
    torch.testing.assert_close(logits(tmp_path / "handed" / "0"), trained, atol=1e-4, rtol=0)
    (tmp_path / "out").mkdir()
    save_candidate(model, tmp_path / "out", policy=policy)
    torch.testing.assert_close(logits(tmp_path / "out"), trained, atol=1e-4, rtol=0)
    if (tmp_path / "out" / "adapter").exists():
        again = PeftModel.from_pretrained(load_model(policy, CPU), str(tmp_path / "out" / "adapter")).eval()
        with torch.no_grad():
            torch.testing.assert_close(row_logits(again), trained, atol=1e-4, rtol=0)
    else:
        assert kind in {"olora", "pissa"}


@pytest.mark.parametrize("family", ["llama-tied", "mixtral"])
def test_the_adapters_are_saved_separately_too(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    policy = build(family, tmp_path / "policy")
    model = moved(trainable(policy, "all-linear"))
    with torch.no_grad():
        trained = row_logits(model)
    (tmp_path / "out").mkdir()
    save_candidate(model, tmp_path / "out", policy=policy)
    again = PeftModel.from_pretrained(load_model(policy, CPU), str(tmp_path / "out" / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(row_logits(again), trained, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_an_online_round_gives_the_sampler_the_experts_updates(
    family: str, make_spec: Callable[..., RoundSpec], toy_data: PreferenceData, tmp_path: Path
) -> None:
    policy = build(family, tmp_path / "policy")
    lora = LoraSettings(rank=4, alpha=8, target_modules=EXPERTS[family])
    options: dict[str, Any] = {"policy": policy, "reference": policy, "lora": lora, "learning_rate": 2e-2}
    spec = make_spec(**options, sync_every=4)
    here = SlicedRound(spec, 1, report=lambda _: None)
    here.train(toy_data)
    here.publish(tmp_path / "handed" / "0", number_format="float32")
    here.close()
    torch.testing.assert_close(logits(tmp_path / "handed" / "0"), logits(spec.out), atol=1e-5, rtol=0)
    assert (logits(spec.out) - logits(policy)).abs().max() > 0.05
    ordinary = make_spec("ordinary", **options)
    train_round(ordinary, toy_data, report=lambda _: None)
    torch.testing.assert_close(logits(ordinary.out), logits(spec.out), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [{"init_lora_weights": "pissa"}, {"modules_to_save": ("norm",), "use_dora": True}])
def test_an_online_round_of_one_slice_trains_the_same_adapters(
    kind: dict[str, Any], make_spec: Callable[..., RoundSpec], toy_data: PreferenceData
) -> None:
    """Its reference is the policy without adapters, or a copy where the adapters took something from the weights."""
    lora = LoraSettings(rank=2, **kind)
    online, ordinary = make_spec("online", lora=lora, sync_every=4), make_spec("ordinary", lora=lora)
    here = SlicedRound(online, 1, report=lambda _: None)
    here.train(toy_data)
    here.close()
    train_round(ordinary, toy_data, report=lambda _: None)
    torch.testing.assert_close(logits(online.out), logits(ordinary.out), atol=1e-5, rtol=0)


# Faults are found


@pytest.fixture
def adapted(tmp_path: Path) -> Any:
    return moved(trainable(build("qwen3_moe", tmp_path / "policy"), "all-linear"))


def test_weights_without_some_updates_are_not_written(
    adapted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Adapter.delta

    def forgets_experts(self: Adapter) -> Tensor:
        return torch.zeros_like(self.weight) if self.name.endswith("experts") else real(self)

    monkeypatch.setattr(Adapter, "delta", forgets_experts)
    with pytest.raises(TrainerError, match=r"not the trained model: on a row of 32 tokens its logits differ by 0\.\d"):
        Publisher().publish(adapted, tmp_path / "handed" / "0", policy=tmp_path / "policy", number_format="float32")
    assert not (tmp_path / "handed").exists()
    with pytest.raises(TrainerError, match="not the trained model"):
        save_candidate(adapted, tmp_path / "out", policy=tmp_path / "policy")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_an_adapter_that_no_weight_takes_is_named(adapted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = adapted.get_base_model()
    kept = {name: tensor for name, tensor in inner.state_dict().items() if "q_proj.base" not in name}
    monkeypatch.setattr(inner, "state_dict", lambda: kept)
    with pytest.raises(TrainerError, match="The adapters on q_proj were not merged"):
        merged_weights(adapted, checked=False)


def test_weights_that_are_tied_when_loaded_but_not_in_training_are_not_written(tmp_path: Path) -> None:
    policy = build("llama-tied", tmp_path / "policy")
    model = load_model(policy, CPU)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight + torch.randn_like(model.lm_head.weight))
    (tmp_path / "out").mkdir()
    with pytest.raises(TrainerError, match="not the trained model"):
        save_candidate(model, tmp_path / "out", policy=policy)


@pytest.mark.parametrize(
    ("gaps", "same"),
    [
        ([0.0, 0.0, 0.0], True),
        ([9e-4, 9e-4, 9e-4], True),
        ([2e-3, 2e-3, 0.0], False),
        ([0.0, 5.0, 0.0], True),  # one token went to another expert
        ([float("nan")] * 3, False),
    ],
)
def test_logits_may_differ_by_rounding_alone(gaps: list[float], same: bool) -> None:
    logits = torch.linspace(-1, 1, 12).reshape(3, 4)
    other = logits + torch.tensor(gaps)[:, None]
    if same:
        merging._check_same(logits, other)
    else:
        with pytest.raises(TrainerError):
            merging._check_same(logits, other)


# Refusals before the round

REFUSED: dict[str, tuple[str, Any, str]] = {
    "first weights of experts": (
        "mixtral",
        {"init_lora_weights": "pissa"},
        "first weights pissa need plain linear layers, which MixtralExperts",
    ),
    "first weights of Conv1D": (
        "gpt2",
        {"init_lora_weights": "olora"},
        "first weights olora need plain linear layers",
    ),
    "a wholly trained tied head": (
        "llama-tied",
        {"modules_to_save": ["lm_head"]},
        "lm_head would also change model.embed_tokens",
    ),
    "both tied modules": ("llama-tied", {"modules_to_save": ["lm_head", "embed_tokens"]}, "has the same weight"),
    "no such module": ("qwen2", {"modules_to_save": ["head"]}, "it has no module head, which modules_to_save names"),
    "no such pattern": ("qwen2", {"rank_pattern": {"wq": 2}}, "no layer with an adapter fits wq, which rank_pattern"),
    "no match": ("qwen2", {"target_modules": "layers.7.*"}, "PEFT cannot put the adapters of train.lora"),
    "dora on experts": ("mixtral", {"use_dora": True}, "does not work with use_dora"),
    "a router of several outputs": ("llama4", "all-linear", "feed_forward.router is no plain linear layer, as its"),
    "mamba": (
        "mamba",
        "all-linear",
        "PEFT cannot put the adapters of train.lora on MambaForCausalLM: Module 'out_pr",
    ),
    "mamba 2": ("mamba2", ("in_proj", "out_proj"), "incompatible with Mamba-based models (model_type='mamba2')"),
    "tied head": ("llama-tied", ("q_proj", "lm_head"), "an adapter on lm_head would also change model.embed_tokens"),
    "tied embeddings": ("gemma3", ("embed_tokens",), "an adapter on model.embed_tokens would also change lm_head"),
    "tied, other names": ("gpt2", ("wte",), "an adapter on transformer.wte would also change lm_head"),
    "no such layer": ("qwen2", ("c_attn",), "Target modules {'c_attn'} not found in the base model. Set train.lora"),
    "one name misspelt": ("qwen2", ("q_proj", "vproj"), "it has no layer vproj, which target_modules names"),
    "names of another family": ("qwen3_moe", ("w1", "q_proj"), "it has no layer w1, which target_modules names"),
    "half of a fused weight": ("olmoe", ("up_proj", "down_proj"), "up_proj without also targeting gate_proj"),
    "a layer that is no matrix": ("qwen2", ("mlp",), "PEFT cannot put the adapters of train.lora on Qwen2ForCausalLM"),
    "a norm": ("qwen2", ("input_layernorm",), "PEFT cannot put the adapters of train.lora on Qwen2ForCausalLM"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_adapters_that_do_not_work_are_refused_without_weights(what: str, tmp_path: Path) -> None:
    family, targets, words = REFUSED[what]
    policy = build(family, tmp_path)
    with pytest.raises(TrainerError) as caught:
        check_adapters(policy, LoraSettings.model_validate(given_lora(targets)))
    said = str(caught.value)
    assert words in said
    assert "\n" not in said
    assert "Set train.lora.target_modules to other names (its linear layers are " in said
    assert "lora_" not in said
    with pytest.raises(TrainerError):
        trainable(policy, targets)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gpt2", "mixtral", "qwen3_next", "rwkv"])
def test_adapters_that_work_are_accepted(family: str, tmp_path: Path) -> None:
    check_adapters(build(family, tmp_path), LoraSettings())


def test_a_layer_that_the_model_reads_past_its_adapter_is_refused(
    make_spec: Callable[..., RoundSpec], toy_data: PreferenceData, tmp_path: Path
) -> None:
    """Jamba multiplies with `dt_proj.weight` itself."""
    policy = build("jamba", tmp_path / "policy")
    spec = make_spec(policy=policy, reference=policy, lora=LoraSettings(rank=4))
    with pytest.raises(TrainerError, match=r"The adapters on dt_proj would not be trained: the code of JambaForCaus"):
        train_round(spec, toy_data, report=lambda _: None)


def test_a_model_that_fails_with_its_adapters_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trainable(build("qwen2", tmp_path), "all-linear")
    monkeypatch.setattr(next(adapters_of(model)).layer, "forward", lambda x: {}["scale"])
    with pytest.raises(TrainerError, match=r"Qwen2ForCausalLM fails with the adapters of train\.lora: 'scale'\. Set"):
        try_adapters(model)


def test_the_trial_before_the_round_leaves_no_trace(tmp_path: Path) -> None:
    model = trainable(build("mixtral", tmp_path), "all-linear")
    before, state = {name: p.clone() for name, p in model.named_parameters()}, torch.get_rng_state()
    try_adapters(model)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
