"""What a user may write, and that reading it costs nothing."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from trainer.settings import LoraSettings, TrainSettings


def test_settings_and_data_import_no_heavy_library() -> None:
    code = (
        "import sys, trainer, trainer.settings, trainer.data, trainer.errors, trainer.tree.rows\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'safetensors') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        TrainSettings.model_validate({"learning_rat": 1e-6})


def test_lora_with_bf16_weights_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValidationError, match="use bf16-autocast"):
        TrainSettings(precision="bf16", lora=LoraSettings())


def test_every_field_is_documented_and_read() -> None:
    assert all(field.description for field in TrainSettings.model_fields.values())
    assert all(field.description for field in LoraSettings.model_fields.values())


def test_adapters_from_before_their_other_settings_keep_their_identity() -> None:
    assert TrainSettings(lora=LoraSettings()).deciding["lora"] == {
        "rank": 16,
        "alpha": 32,
        "target_modules": "all-linear",
    }
    assert LoraSettings(use_dora=True).deciding["use_dora"] is True
    assert TrainSettings().deciding["lora"] is None


@pytest.mark.parametrize("init", ["eva", "loftq", False, "pissa_niter_x"])
def test_first_weights_that_need_more_than_the_model_are_refused(init: str | bool) -> None:
    with pytest.raises(ValidationError, match=r"init_lora_weights .* cannot be used: choose true, gaussian"):
        LoraSettings(init_lora_weights=init)


def test_first_weights_of_the_base_need_the_model_in_one_piece() -> None:
    with pytest.raises(ValidationError, match="cannot be used with distribute fsdp or select best"):
        TrainSettings(distribute="fsdp", lora=LoraSettings(init_lora_weights="pissa"))
