"""The gap between the sampler's and the trainer's log-probs: worked out by hand."""

import pytest
import torch

from trainer.data import Pair, PreferenceData, PromptGroup, Response
from trainer.reference import RowReference, sampler_gap
from trainer.settings import TrainSettings
from trainer.tree.rows import plan_rows


def data_with(first: float | None, second: float | None) -> PreferenceData:
    responses = (Response("a", [4, 5], first), Response("b", [6, 7, 8], second))
    return PreferenceData((PromptGroup("p", [1, 2, 3], responses),), (Pair("p", "a", "b"),))


def gap_of(first: float | None, second: float | None) -> float | None:
    data = data_with(first, second)
    plan = plan_rows(data, TrainSettings(), seed=0, layout="tree")
    order = [data.groups[0].responses[i].id for i in plan.steps[0].rows[0].trees[0].responses]
    scored = torch.tensor([{"a": -1.0, "b": -4.0}[name] for name in order])
    return sampler_gap(data, plan, [[RowReference(scored, None)]])


def test_gap_is_the_mean_over_tokens_of_both_responses() -> None:
    # |-1.5 + 1| + |-3 + 4| over 2 + 3 tokens
    assert gap_of(-1.5, -3.0) == pytest.approx(1.5 / 5)


def test_gap_leaves_out_responses_whose_sampler_said_nothing() -> None:
    assert gap_of(-1.5, None) == pytest.approx(0.5 / 2)
    assert gap_of(None, None) is None
