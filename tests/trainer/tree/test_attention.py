"""Attention branch by branch equals dense attention with the tree mask, and models really use it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.model import choose_arithmetic, load_model
from trainer.scorer import RowScorer, to_batch
from trainer.settings import TrainSettings
from trainer.tree import attention
from trainer.tree.attention import attach, to_tensors, tree_attention
from trainer.tree.branches import find_branches
from trainer.tree.encode import encode_tree_row

CPU = torch.device("cpu")
TREES = [([1, 2, 3], [[4, 5, 6, 7], [4, 5, 8, 9], [10]]), ([1, 2, 20, 21], [[22, 23], [24]])]


def parents_of(draws: list[int]) -> list[int]:
    """Any tree: each token's parent is an earlier token (or none)."""
    return [draw % (index + 1) - 1 if draw % 3 else index - 1 for index, draw in enumerate(draws)]


def visible(parents: list[int]) -> torch.Tensor:
    sees = torch.eye(len(parents), dtype=torch.bool)
    for index, parent in enumerate(parents):
        if parent >= 0:
            sees[index] |= sees[parent]
    return sees


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    return (scores.masked_fill(~sees, -torch.inf).softmax(dim=-1) @ value).transpose(1, 2)


@given(st.lists(st.integers(0, 999), min_size=1, max_size=60), st.sampled_from([(4, 4), (4, 2), (3, 1)]))
def test_branches_equal_the_dense_mask(draws: list[int], heads: tuple[int, int]) -> None:
    parents = parents_of(draws)
    torch.manual_seed(len(draws))
    shapes = [(1, count, len(parents), 8) for count in (heads[0], heads[1], heads[1])]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    output = tree_attention(*inputs, to_tensors(find_branches(parents), CPU), 8**-0.5)
    expected = dense(*inputs, visible(parents))
    weights = torch.randn_like(expected)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad((output * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_branches_by_hand() -> None:
    #   0-1-2-3 and 1-4, 1-5: three branches; 6 stands alone
    branches = find_branches([-1, 0, 1, 2, 1, 1, -1])
    (group,) = branches.groups
    assert group.queries_SQ.tolist() == [[0, 1, 2, 3], [4, 0, 0, 0], [5, 0, 0, 0], [6, 0, 0, 0]]
    assert group.keys_SK.tolist() == [[0, 1, 2, 3], [0, 1, 4, 0], [0, 1, 5, 0], [6, 0, 0, 0]]
    assert group.sees_SQK[1].astype(int).tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert branches.place_T.tolist() == [0, 1, 2, 3, 4, 8, 12]


@pytest.fixture
def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    real = attention.tree_attention

    def counted(*args: Any) -> torch.Tensor:
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(attention, "tree_attention", counted)
    return calls


def test_a_loaded_model_uses_branches_for_trees(policy: Path, count_calls: list[int]) -> None:
    arithmetic = choose_arithmetic(TrainSettings(precision="fp32"))
    scorer = RowScorer(load_model(policy, arithmetic))
    batch = to_batch(encode_tree_row(TREES), device=CPU, mask_dtype=torch.float32)
    fast = scorer(batch).sum_R
    assert len(count_calls) == 2  # one for each layer
    slow = scorer(batch._replace(attention=batch.attention.clone())).sum_R  # a copy of the mask knows no branches
    assert len(count_calls) == 2
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)


def test_the_saved_config_does_not_name_our_attention(make_spec: Callable[..., Any], toy_data: Any) -> None:
    from trainer.round import train_round

    spec = make_spec(max_steps=1)
    train_round(spec, toy_data, report=lambda _: None)
    assert attention.NAME not in (spec.out / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", attention.UNUSUAL)
def test_unusual_attention_goes_to_sdpa(option: str, monkeypatch: pytest.MonkeyPatch, count_calls: list[int]) -> None:
    from transformers.integrations import sdpa_attention

    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", lambda *args, **options: ("sdpa", options))
    row = to_tensors(find_branches([-1, 0]), CPU)
    mask = attach(torch.zeros(1, 1, 2, 2), row)
    query = torch.zeros(1, 1, 2, 8)
    answer = attention.attention(torch.nn.Module(), query, query, query, mask, **{option: 4})
    assert answer == ("sdpa", {option: 4})
    assert not count_calls
