"""Tiny random classification models with a byte tokenizer, for the tests of judges that hold one."""

from pathlib import Path
from typing import Any

import torch

from tests.helpers.tiny import EOS, PAD, save_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def config_of(kind: str, **changes: Any) -> Any:
    """The config of a two-layer model of that kind, with one output."""
    import transformers

    sizes: dict[str, Any] = {
        "Llama": {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 96, "initializer_range": 0.2},
        "Qwen2": {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 96, "initializer_range": 0.2},
        "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "initializer_range": 0.2},
        "Bert": {**SIZES, "max_position_embeddings": 96, "initializer_range": 0.2},
        "Roberta": {**SIZES, "max_position_embeddings": 96, "initializer_range": 0.2, "pad_token_id": 1},
    }
    common = {"vocab_size": 258, "num_labels": 1, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
    return getattr(transformers, f"{kind}Config")(**common | sizes[kind] | changes)


def save_classifier(folder: Path, kind: str = "Llama", *, seed: int = 0, dtype: Any = None, **changes: Any) -> Path:
    """A folder with a random classification model and the byte tokenizer."""
    import transformers

    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config_of(kind, **changes))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(("score", "classifier")) and weight.dim() == 2:
                weight.normal_(0, 0.5)
    model.to(dtype or torch.float32).save_pretrained(folder)
    save_tokenizer(folder)
    return folder
