"""Log-probs outside a round: the sums that the model itself gives for each response alone, with or without trees."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.data import PreferenceData, PromptGroup, Response
from trainer.model import load_model
from trainer.score import ResponseScorer


def alone(scorer: ResponseScorer, prompt: list[int], response: list[int]) -> float:
    """Sum of the response's token log-probs in one plain forward pass."""
    model: Any = load_model(scorer.folder, scorer.arithmetic)
    with torch.no_grad():
        logp_TV = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return sum(float(logp_TV[len(prompt) - 1 + i, token]) for i, token in enumerate(response))


@pytest.mark.parametrize("row_tokens", [16, 4096])
def test_sums_are_those_of_each_response_alone(policy: Path, toy_data: PreferenceData, row_tokens: int) -> None:
    scorer = ResponseScorer(policy, precision="fp32", row_tokens=row_tokens)
    ticks: list[int] = []
    sums = scorer.score(toy_data.groups[:3], ticks.append)
    assert ticks == sorted(ticks)
    assert ticks[-1] == 18
    for group, row in zip(toy_data.groups[:3], sums, strict=True):
        expected = [alone(scorer, list(group.token_ids), list(r.token_ids)) for r in group.responses]
        assert row == pytest.approx(expected, abs=1e-4)


def test_a_window_shorter_than_the_row_falls_back_to_plain_rows(make_policy: Callable[..., Path]) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    folder = make_policy()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=97, num_key_value_heads=2, sliding_window=4, initializer_range=0.3, **sizes)
    MistralForCausalLM(config).save_pretrained(folder)
    scorer = ResponseScorer(folder, precision="fp32")
    group = PromptGroup("p", [1, 2, 3, 4, 5, 6], (Response("a", [7, 8, 9, 10, 11]), Response("b", [12, 13, 14])))
    (row,) = scorer.score([group], lambda _: None)
    assert row == pytest.approx(
        [alone(scorer, [1, 2, 3, 4, 5, 6], list(r.token_ids)) for r in group.responses], abs=1e-4
    )


def test_nothing_to_score_is_nothing(policy: Path) -> None:
    assert ResponseScorer(policy, precision="fp32").score([PromptGroup("p", [1], ())], lambda _: None) == [[]]
