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
