"""Tiny models of many families, made from configs; weights larger than at initialisation, so that mistakes show."""

from pathlib import Path
from typing import Any

import torch

VOCABULARY = 97
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2}
CONV = {"state_size": 8, "expand": 2, "conv_kernel": 4}
LINEAR = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GEMMA_LAYERS = ["sliding_attention", "full_attention"]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("Llama", SMALL | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", SMALL),
    "qwen3": ("Qwen3", SMALL | {"head_dim": 8}),
    "mistral": ("Mistral", SMALL | {"sliding_window": 16}),
    "gemma2": ("Gemma2", SMALL | {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}),
    "gemma3": (
        "Gemma3Text",
        SMALL | {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8, "layer_types": GEMMA_LAYERS},
    ),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "granite": ("Granite", SMALL | {"logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0}),
    "cohere": ("Cohere", SMALL | {"logit_scale": 0.5}),
    "gpt_neo": (
        "GPTNeo",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
        | {"attention_types": [[["global", "local"], 1]], "window_size": 20},
    ),
    "mamba": ("Mamba", LAYERS | CONV),
    "mamba2": ("Mamba2", LAYERS | CONV | {"head_dim": 16, "num_heads": 4, "n_groups": 1, "chunk_size": 16}),
    "rwkv": ("Rwkv", LAYERS | {"context_length": 64}),
    "qwen3_next": ("Qwen3Next", SMALL | LINEAR),
    "mixtral": ("Mixtral", SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3Moe", SMALL | EXPERTS | {"head_dim": 8, "decoder_sparse_step": 1}),
    "olmoe": ("Olmoe", SMALL | {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": ("GptOss", SMALL | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "llama4": ("Llama4Text", SMALL | {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 64}),
    "jamba": (
        "Jamba",
        SMALL
        | {"num_experts": 2, "num_experts_per_tok": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}
        | {"mamba_d_state": 8, "mamba_dt_rank": 4},
    ),
}


def build(family: str, folder: Path, **changes: Any) -> Path:
    """A folder with the family's model; `changes` replace values of its config."""
    import transformers

    name, values = FAMILIES[family]
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(vocab_size=VOCABULARY, **values | changes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
