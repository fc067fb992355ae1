"""Small real things for the tests of a whole campaign: a two-layer Llama with a byte tokenizer, prompts, a judge.

The model is random, but it ends often enough, so that some responses stop and some are cut off; the judge
looks at the parity of a text's length, so that it finds right and wrong responses with any model.
"""

import json
from pathlib import Path
from typing import Any

TEMPLATE = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}\n{% endfor %}a:"
PAD, EOS = 256, 257

PARITY = '''"""A text of even length is right; one whose first character is ASCII is well formed."""

import os
import time

from judges.contract import PointwiseJudge, Prompt, Response, Verdict


class Parity(PointwiseJudge):
    """What the tests judge with. A response takes SLOW_JUDGE seconds, the first for ever while HANG_ONCE is no file."""

    right: int = 0

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        time.sleep(float(os.environ.get("SLOW_JUDGE", "0")))
        mark = os.environ.get("HANG_ONCE", "/")
        if not os.path.exists(mark):
            open(mark, "x").close()
            time.sleep(3600)
        text = response.text
        return Verdict.of(len(text) % 2 == self.right, str(len(text)), "parity", well_formed=text[:1].isascii())
'''


def save_tokenizer(folder: Path) -> None:
    """A tokenizer whose tokens are the 256 bytes, `<pad>` and `<eos>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<pad>", "<eos>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = TEMPLATE
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (PAD, EOS)
    tokenizer.save_pretrained(folder)


def save_model(folder: Path, seed: int = 0, *, tied: bool = True) -> Path:
    """A random two-layer Llama and its tokenizer; another seed gives other weights of the same shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.15,
            tie_word_embeddings=tied,
            bos_token_id=None,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    )
    with torch.no_grad():
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        embedding.normal_(0, 0.5)
        embedding[:, 0] = 1.0  # a direction common to all inputs, along which the end token's logit is raised
        head[:, 0] = 1.0
        head[EOS, 0] = 16.0
        head[PAD, 0] = -20.0
        model.model.norm.weight.fill_(0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_prompts(path: Path, count: int = 64) -> Path:
    """Sums with their results."""
    rows = [{"prompt": f"{a} + {a % 7} =", "target": str(a + a % 7)} for a in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(model: Path, prompts: Path, judge: Path) -> dict[str, Any]:
    """A campaign of two iterations that takes seconds: four shards to sample in each, some optimizer steps."""
    return {
        "iterations": 2,
        "threads": 1,
        "model": {"base": str(model)},
        "prompts": {"source": "file", "path": str(prompts), "target_column": "target", "train": 48}
        | {"per_iteration": 16, "gate": 6, "test": 8},
        "engine": {"kind": "transformers", "max_model_len": 128, "batch": 16},
        "sampling": {"n": 4, "max_tokens": 12, "shard_prompts": 4},
        "judge": {"name": f"{judge}:Parity"},
        "pairs": {"per_prompt": 2},
        "train": {"precision": "fp32", "learning_rate": 1e-4, "batch_pairs": 4, "checkpoint_every": 1},
        "eval": {"samples": 2},
        "promote": {"rule": "always"},
    }
