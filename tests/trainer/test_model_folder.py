"""Model folders that are not what they say are refused before anything runs; good ones pass."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers import architectures, tiny
from trainer.errors import TrainerError
from trainer.model import Arithmetic, load_model, rebuild, save_candidate, trained_parameters
from trainer.model_folder import check_fit, check_model, check_numbers, load_tokenizer, read_config, stop_ids
from trainer.settings import TrainSettings

Tensors = dict[str, torch.Tensor]
UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("models") / "sound")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes a key."""
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in {**before, **values}.items() if value is not None}))


def reweigh(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(TrainerError) as caught:
        check_model(folder, **options)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_sound_model_passes(folder: Path) -> None:
    check_model(folder, longest=512)
    check_numbers(folder)


@pytest.mark.parametrize("family", sorted(architectures.FAMILIES))
def test_every_architecture_fits_itself(family: str, tmp_path: Path) -> None:
    check_fit(architectures.build(family, tmp_path), read_config(tmp_path))


MISFITS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "compiled": (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, "every name begins with '_orig_mod.'"),
    "parallel": (lambda w: {f"module.{k}": v for k, v in w.items()}, "every name begins with 'module.'"),
    "peft": (lambda w: {f"base_model.model.{k}": v for k, v in w.items()}, "merge_and_unload"),
    "own wrapper": (lambda w: {f"policy.{k}": v for k, v in w.items()}, "it has no weights for"),
    "a weight missing": (lambda w: {k: v for k, v in w.items() if k != UP}, f"it has no weights for {UP}"),
    "a layer missing": (lambda w: {k: v for k, v in w.items() if ".1." not in k}, "and 6 more"),
    "other shape": (lambda w: w | {UP: torch.zeros(64, 64)}, f"{UP} has the shape [64, 64], not [128, 64]"),
    "a layer too many": (lambda w: w | {UP.replace("1", "2"): w[UP].clone()}, "has no place for model.layers.2"),
    "larger vocabulary": (
        lambda w: w | {"model.embed_tokens.weight": torch.zeros(300, 64)},
        "[300, 64], not [258, 64]",
    ),
    "a classifier's head": (lambda w: w | {"score.weight": torch.zeros(1, 64)}, "has no place for score.weight"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_weights_that_do_not_fit_are_refused_by_name_everywhere(folder: Path, what: str) -> None:
    change, words = MISFITS[what]
    reweigh(folder, change)
    assert words in refusal(folder)
    with pytest.raises(TrainerError, match="do not fit the architecture LlamaForCausalLM"):
        load_model(folder, Arithmetic(torch.device("cpu"), "fp32"))


def test_an_untied_head_must_be_there(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "untied", tied=False)
    reweigh(folder, lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"})
    assert "it has no weights for lm_head.weight" in refusal(folder)


def test_a_classifier_needs_no_end_token(sound: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(sound, num_labels=1).save_pretrained(tmp_path)
    tiny.save_tokenizer(tmp_path)
    edit(tmp_path / "tokenizer_config.json", eos_token=None)
    check_model(tmp_path)
    reweigh(tmp_path, lambda w: {k: v for k, v in w.items() if k != "score.weight"})
    assert "it has no weights for score.weight" in refusal(tmp_path)


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "adapter beside weights": (lambda f: edit(f / "adapter_config.json", r=8), "and a LoRA adapter"),
    "quantised": (lambda f: edit(f / "config.json", quantization_config={"quant_method": "awq"}), "quantised (awq"),
    "quantised, odd": (lambda f: edit(f / "config.json", quantization_config="int8"), "are quantised (quantised"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "holds list instead of a JSON object"),
    "config is cut": (lambda f: (f / "config.json").write_text('{"model_type": "lla'), "is not JSON"),
    "unknown type": (lambda f: edit(f / "config.json", model_type="llama99"), "transformers cannot load config.json"),
    "own code": (
        lambda f: edit(f / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        "needs code of its own (auto_map), which prefloop does not run",
    ),
    "no end token": (
        lambda f: (
            edit(f / "tokenizer_config.json", eos_token=None),
            edit(f / "generation_config.json", eos_token_id=None),
        ),
        "no token that ends a response",
    ),
    "end tokens outside": (lambda f: edit(f / "generation_config.json", eos_token_id=[257, 300, -1]), "end token -1"),
    "end token as text": (lambda f: edit(f / "generation_config.json", eos_token_id="<eos>"), 'not "<eos>"'),
    "end token true": (lambda f: edit(f / "generation_config.json", eos_token_id=[True]), "not true"),
    "generation settings are a list": (lambda f: (f / "generation_config.json").write_text("[1]"), "holds list"),
    "tokenizer is damaged": (lambda f: (f / "tokenizer.json").write_text("{"), "cannot load the tokenizer"),
    "integers": (
        lambda f: reweigh(f, lambda w: {k: v.to(torch.int8) for k, v in w.items()}),
        "quantised (model.embed_tokens.weight is stored as I8), and config.json does not say how",
    ),
    "eight bits": (
        lambda f: reweigh(f, lambda w: {k: v.to(torch.float8_e4m3fn) for k, v in w.items()}),
        "is stored as F8_E4M3",
    ),
    "a head of its own": (
        lambda f: reweigh(f, lambda w: w | {"lm_head.weight": torch.ones(258, 64)}),
        "but lm_head.weight and model.embed_tokens.weight in its weights differ",
    ),
    "stray shard": (
        lambda f: (
            edit(f / "model.safetensors.index.json", weight_map={"a": "model-00001-of-00001.safetensors"}),
            shutil.copy(f / "model.safetensors", f / "model-00001-of-00001.safetensors"),
        ),
        "has model.safetensors beside the files that its index names",
    ),
    "shards without index": (
        lambda f: shutil.copy(f / "model.safetensors", f / "model-00001-of-00002.safetensors"),
        "without model.safetensors.index.json, and a whole model.safetensors",
    ),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_folders_that_are_no_plain_model_are_refused(folder: Path, what: str) -> None:
    change, words = FOLDERS[what]
    change(folder)
    assert words in refusal(folder)


def test_a_tied_head_may_be_in_the_weights_twice(folder: Path) -> None:
    reweigh(folder, lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"].clone()})
    check_model(folder)


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(folder)
    assert "token ids up to 258, but the model has 258 embeddings" in refusal(folder)


def test_a_context_longer_than_the_model_is_refused(folder: Path) -> None:
    assert "engine.max_model_len=513 is more than the 512 positions" in refusal(folder, longest=513)
    edit(folder / "config.json", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    check_model(folder, longest=1024)
    assert "more than the 1024 positions" in refusal(folder, longest=1025)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(folder: Path, value: float) -> None:
    reweigh(folder, lambda w: w | {UP: torch.full_like(w[UP], value)})
    with pytest.raises(TrainerError, match=f"NaN or infinity .first in {UP}"):
        check_numbers(folder)


def test_the_end_tokens_are_the_tokenizer_s_and_the_generation_config_s(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[3, tiny.EOS])
    assert stop_ids(folder, load_tokenizer(folder)) == {3, tiny.EOS}


def test_a_candidate_is_saved_whatever_generation_settings_its_policy_has(folder: Path, tmp_path: Path) -> None:
    edit(folder / "generation_config.json", do_sample=False, temperature=0.9, top_p=0.6)
    settings = TrainSettings()
    policy = load_model(folder, Arithmetic(torch.device("cpu"), "fp32"))
    trained = {name: parameter + 1 for name, parameter in trained_parameters(policy)}
    save_candidate(rebuild(folder, trained, settings, seed=0), tmp_path / "out", policy=folder)
    check_model(tmp_path / "out")
    assert (tmp_path / "out/generation_config.json").read_bytes() == (folder / "generation_config.json").read_bytes()
    saved = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(saved[name], trained[name]) for name in saved)
