"""The probe of a layout is made once for each kind of model, and again when something that decides it changes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.architectures import build
from trainer import layout_proof
from trainer.data import PreferenceData
from trainer.files import default_cache
from trainer.layout_probe import MOST_GAP, Gaps, probe_rows
from trainer.layout_proof import LIBRARIES, Proof, lengths_matter, proof_key, proven_gaps, read_proof
from trainer.model import choose_arithmetic, load_model, make_trainable
from trainer.round import train_round
from trainer.scorer import RowScorer
from trainer.settings import LoraSettings, TrainSettings
from trainer.spec import RoundSpec

CPU = torch.device("cpu")
FP32 = choose_arithmetic(TrainSettings(precision="fp32"))


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the models that were probed."""
    seen: list[str] = []

    def counted(scorer: RowScorer, *args: Any, **options: Any) -> Gaps:
        seen.append(type(scorer.model).__name__)
        return probe_rows(scorer, *args, **options)

    monkeypatch.setattr(layout_proof, "probe_rows", counted)
    return seen


def gaps(model: Any, data: PreferenceData, *, row_tokens: int = 48) -> Gaps:
    return proven_gaps(RowScorer(model), data, device=CPU, seed=0, row_tokens=row_tokens)


def files() -> list[Path]:
    return sorted((default_cache() / "layouts").glob("*"))


def test_a_second_round_repeats_no_proof_and_trains_the_same_weights(
    make_spec: Callable[..., RoundSpec], toy_data: PreferenceData, probes: list[str], silent: Any
) -> None:
    first, second = make_spec("first", max_steps=2), make_spec("second", max_steps=2)
    one, other = (train_round(spec, toy_data, report=silent) for spec in (first, second))
    assert probes == ["LlamaForCausalLM"]
    assert (one.layout, one.probe_gap) == (other.layout, other.probe_gap)
    assert (first.out / "model.safetensors").read_bytes() == (second.out / "model.safetensors").read_bytes()
    candidate = make_spec("third", policy=first.out, reference=first.out, max_steps=1)
    train_round(candidate, toy_data, report=silent)
    assert len(probes) == 1  # the candidate differs from its policy in weights alone


def test_another_config_version_device_dtype_or_adapter_is_proven_anew(
    make_policy: Callable[..., Path], policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(folder: Path = policy, **settings: Any) -> str:
        model = make_trainable(load_model(folder, FP32), TrainSettings(**settings), seed=0)
        return str(proof_key(model, CPU))

    keys = [key(), key(make_policy(rms_norm_eps=1e-3)), key(lora=LoraSettings()), key(lora=LoraSettings(rank=2))]
    model = load_model(policy, FP32)
    patches: tuple[tuple[Any, str, Any], ...] = (
        *((layout_proof, "version", lambda name, other=other: name + "9" * (name == other)) for other in LIBRARIES),
        (layout_proof.platform, "machine", lambda: "other"),
        (layout_proof, "OWN", ("scorer.py",)),
    )
    for owner, name, value in patches:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            keys.append(str(proof_key(model, CPU)))
    keys.append(str(proof_key(model.to(torch.bfloat16), CPU)))
    assert len(set(keys)) == len(keys) == 10
    assert key(make_policy(seed=5)) == keys[0] == key(gradient_checkpointing=True)


@pytest.mark.parametrize(
    "damaged",
    [
        *("", "{", "[]", "null", "\udcff"),
        *({"key": {}}, {"tree": -1}, {"tree": "x"}, {"plain": float("nan")}, {"longest": None}, {"more": 1}),
    ],
)
def test_a_damaged_proof_is_made_again(
    damaged: str | dict[str, Any], policy: Path, toy_data: PreferenceData, probes: list[str]
) -> None:
    model = load_model(policy, FP32)
    found = gaps(model, toy_data)
    (path,) = files()
    whole = path.read_text(encoding="utf-8")
    text = damaged if isinstance(damaged, str) else json.dumps(json.loads(whole) | damaged)
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert read_proof(path, proof_key(model, CPU)) is None
    assert gaps(model, toy_data) == found
    assert len(probes) == 2
    assert path.read_text(encoding="utf-8") == whole
    assert files() == [path]


def test_without_a_cache_that_can_be_written_every_round_proves_its_layout(
    policy: Path, toy_data: PreferenceData, probes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFLOOP_CACHE", str(tmp_path / "file"))
    model = load_model(policy, FP32)
    assert gaps(model, toy_data) == gaps(model, toy_data)
    assert len(probes) == 2
    monkeypatch.undo()
    monkeypatch.setenv("PREFLOOP_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    gaps(model, toy_data)
    assert not list((tmp_path / "full").rglob("*.json"))


def test_what_trees_get_wrong_is_kept_too(tmp_path: Path, toy_data: PreferenceData, probes: list[str]) -> None:
    refused, windowed = build("mamba", tmp_path / "mamba"), build("mistral", tmp_path / "mistral", sliding_window=14)
    for folder in (refused, windowed):
        model = load_model(folder, FP32)
        first = gaps(model, toy_data)
        assert first.tree > MOST_GAP
        assert gaps(model, toy_data) == first
    assert len(probes) == 2


@pytest.mark.parametrize(
    ("tree", "longest", "rows", "matters", "holds"),
    [
        (0.0, 99, 9999, False, True),
        (0.0, 20, 2048, True, True),
        (0.0, 21, 2048, True, False),  # a longer sequence may leave the window
        (0.0, 20, 4096, True, False),
        (None, 99, 9999, False, True),
        (0.5, 21, 2048, True, True),
        (0.5, 19, 2048, True, False),  # a shorter sequence may fit into the window
    ],
)
def test_a_proof_holds_where_other_lengths_show_no_more(
    tree: float | None, longest: int, rows: int, matters: bool, holds: bool
) -> None:
    assert Proof(tree, 0.0, 20, 2048).covers(longest, rows, lengths_matter=matters) is holds


def test_lengths_matter_to_windows_places_and_scaled_positions(tmp_path: Path, policy: Path) -> None:
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    folders = {
        "plain": policy,
        "window": build("mistral", tmp_path / "window", sliding_window=20),
        "places": build("gpt_neo", tmp_path / "places"),
        "scaled": build("llama-tied", tmp_path / "scaled", rope_parameters=scaled),
    }
    found = {name: lengths_matter(load_model(folder, FP32), 48) for name, folder in folders.items()}
    assert found == {"plain": False, "window": True, "places": True, "scaled": True}


def test_data_that_show_little_leave_no_proof(policy: Path, toy_data: PreferenceData) -> None:
    one = PreferenceData(toy_data.groups[:1], toy_data.relations[:4])
    gaps(load_model(policy, FP32), one)
    assert files() == []
