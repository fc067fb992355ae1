"""The average of two models is the weighted mean of every weight, and is refused where there is none."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import tiny
from trainer.candidates import average_models
from trainer.errors import TrainerError


def test_every_weight_is_the_weighted_mean(tmp_path: Path) -> None:
    one, two = tiny.save_model(tmp_path / "one", seed=1), tiny.save_model(tmp_path / "two", seed=2)
    average_models(one, two, tmp_path / "out", decay=0.75)
    a, b, mean = (load_file(folder / "model.safetensors") for folder in (one, two, tmp_path / "out"))
    assert mean.keys() == a.keys() == b.keys()
    for name, values in mean.items():
        torch.testing.assert_close(values, 0.75 * a[name] + 0.25 * b[name])
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (two / "tokenizer.json").read_bytes()


def test_a_decay_of_0_is_the_newest_model(tmp_path: Path) -> None:
    one, two = tiny.save_model(tmp_path / "one", seed=1), tiny.save_model(tmp_path / "two", seed=2)
    average_models(one, two, tmp_path / "out", decay=0.0)
    ours, newest = load_file(tmp_path / "out" / "model.safetensors"), load_file(two / "model.safetensors")
    assert all(torch.equal(ours[name], newest[name]) for name in newest)


def test_models_of_other_shapes_are_refused(tmp_path: Path) -> None:
    one, two = tiny.save_model(tmp_path / "one"), tiny.save_model(tmp_path / "two", tied=False)
    with pytest.raises(TrainerError, match="cannot be averaged"):
        average_models(one, two, tmp_path / "out", decay=0.5)
    assert not (tmp_path / "out").exists()


def test_a_finished_average_is_left_as_it_is(tmp_path: Path) -> None:
    one = tiny.save_model(tmp_path / "one")
    shutil.copytree(one, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    average_models(one, tiny.save_model(tmp_path / "two", seed=2), tmp_path / "out", decay=0.5)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
