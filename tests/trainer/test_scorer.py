"""One packed tree row gives what the same sequences give one by one: values and gradients, on several architectures."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from trainer.model import disable_dropout
from trainer.scorer import RowScorer, Scores, TokenLogprobs, to_batch
from trainer.tree.attention import use_tree_attention
from trainer.tree.encode import EncodedRow, encode_plain_row, encode_tree_row

CPU = torch.device("cpu")
TREES = [
    ([1, 2, 3, 4, 5], [[6, 7, 8, 9, 10, 11], [6, 7, 12], [13], [14, 15, 16, 17]]),
    ([1, 2, 3, 20], [[21, 22, 23], [24, 22, 23, 25, 26]]),
]
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SMALL),
    "llama-tied": ("Llama", SMALL | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", SMALL),
    "qwen3": ("Qwen3", SMALL | {"head_dim": 8}),
    "gemma": ("Gemma", SMALL | {"head_dim": 8}),
    "gemma2": ("Gemma2", SMALL | {"head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8}),
    "gpt2": ("GPT2", {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "granite": ("Granite", SMALL | {"logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0}),
    "cohere": ("Cohere", SMALL | {"logit_scale": 0.5}),
}


def build(name: str) -> Any:
    import transformers

    family, values = ARCHITECTURES[name]
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**values, attn_implementation="sdpa")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at initialisation, so that mistakes show
            parameter.add_(0.05 * torch.randn_like(parameter))
    disable_dropout(model)
    use_tree_attention(model)
    return model


def score(model: Any, row: EncodedRow) -> tuple[Scores, dict[str, torch.Tensor]]:
    """Scores and the gradients of a weighted sum of the responses' log-probs."""
    model.zero_grad()
    scores = RowScorer(model)(to_batch(row, device=CPU, mask_dtype=torch.float32))
    weights = torch.linspace(-1, 1.3, len(scores.sum_R))
    (scores.sum_R * weights).sum().backward()
    return scores, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def one_by_one(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The plainest way: one unpadded forward for each sequence, torch's own log-softmax."""
    model.zero_grad()
    sums = []
    for prompt, responses in TREES:
        for ids in responses:
            logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0]
            logp = torch.log_softmax(logits.float(), dim=-1)[len(prompt) - 1 : -1]
            sums.append(logp.gather(1, torch.tensor(ids)[:, None]).sum())
    sums_R = torch.stack(sums)
    (sums_R * torch.linspace(-1, 1.3, len(sums_R))).sum().backward()
    return sums_R, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("layout", [encode_tree_row, encode_plain_row])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_row_equals_its_sequences_run_one_by_one(name: str, layout: Callable[..., EncodedRow]) -> None:
    model = build(name)
    expected, expected_gradients = one_by_one(model)
    scores, gradients = score(model, layout(TREES))
    torch.testing.assert_close(scores.sum_R, expected, atol=1e-5, rtol=1e-5)
    for parameter, gradient in expected_gradients.items():
        gap = (gradients[parameter] - gradient).abs().max() / gradient.abs().max().clamp_min(1e-6)
        assert gap < 1e-5, f"{parameter}: {gap}"


def test_a_response_scores_the_same_whatever_shares_its_row() -> None:
    model = build("llama")
    alone, _ = score(model, encode_tree_row([(TREES[0][0], TREES[0][1][:1])]))
    among, _ = score(model, encode_tree_row(TREES[::-1]))
    torch.testing.assert_close(among.sum_R[2], alone.sum_R[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("overwrite", [False, True])
def test_token_logprobs_equal_log_softmax_in_value_and_gradient(overwrite: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(150, 11, dtype=torch.float32, requires_grad=True)
    rows, targets = torch.randint(0, 150, (400,)), torch.randint(0, 11, (400,))
    weights = torch.randn(400)
    theirs = torch.log_softmax(logits, dim=-1)[rows, targets]
    (expected,) = torch.autograd.grad((theirs * weights).sum(), logits)
    ours = TokenLogprobs.apply(logits, rows, targets, overwrite)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), logits)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, expected)


def test_overwritten_logits_that_are_still_needed_are_an_error() -> None:
    logits = torch.randn(4, 11, requires_grad=True).tanh()  # whose gradient needs its own output
    ours = TokenLogprobs.apply(logits, torch.arange(4), torch.arange(4), True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ours.sum().backward()


def test_padding_and_company_change_no_plain_score() -> None:
    model = build("gpt2")
    together, _ = score(model, encode_plain_row(TREES))
    for index, ids in enumerate(TREES[0][1]):
        alone, _ = score(model, encode_plain_row([(TREES[0][0], [ids])]))
        torch.testing.assert_close(together.sum_R[index], alone.sum_R[0], atol=1e-5, rtol=0)


def test_dropout_is_off_wherever_a_model_keeps_it() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    for model in (
        GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=2, attn_pdrop=0.5, resid_pdrop=0.5)),
        LlamaForCausalLM(LlamaConfig(**SMALL, attention_dropout=0.5)),
    ):
        disable_dropout(model)
        model.train()
        ids = torch.arange(20)[None]
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        assert all(module.p == 0.0 for module in model.modules() if isinstance(module, nn.Dropout))
