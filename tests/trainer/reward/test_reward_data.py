"""What a reward model reads and what is said of its rewards, in numbers worked out by hand."""

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.data import Pair, PreferenceData
from trainer.errors import TrainerError
from trainer.reward.round import AFTER_END, hold_out, with_end
from trainer.reward.settings import RewardSettings
from trainer.reward.steps import calibration_error, describe_rewards
from trainer.settings import TrainSettings


def test_a_place_follows_every_response_and_nothing_else_changes(toy_data: PreferenceData) -> None:
    readable = with_end(toy_data)
    assert readable.relations == toy_data.relations
    for before, after in zip(toy_data.groups, readable.groups, strict=True):
        assert (before.id, before.token_ids) == (after.id, after.token_ids)
        for short, longer in zip(before.responses, after.responses, strict=True):
            assert list(longer.token_ids) == [*short.token_ids, AFTER_END]


@given(share=st.floats(0.01, 0.5), seed=st.integers(0, 99), sizes=st.lists(st.integers(1, 5), min_size=3, max_size=9))
def test_whole_prompts_are_held_out_and_no_pair_is_lost(share: float, seed: int, sizes: list[int]) -> None:
    pairs = tuple(Pair(f"p{p}", f"w{i}", "l") for p, size in enumerate(sizes) for i in range(size))
    data = PreferenceData((), pairs)
    try:
        trained, held = hold_out(data, share, seed=seed)
    except TrainerError:
        assert max(sizes) >= (1 - share) * len(pairs)
        return
    assert held is not None
    assert sorted(map(repr, trained.relations + held.relations)) == sorted(map(repr, pairs))
    assert not {pair.prompt_id for pair in trained.relations} & {pair.prompt_id for pair in held.relations}
    assert len(held.relations) >= share * len(pairs)
    assert hold_out(data, share, seed=seed) == (trained, held)


def test_one_prompt_cannot_be_divided() -> None:
    data = PreferenceData((), (Pair("p", "a", "b"), Pair("p", "c", "d")))
    with pytest.raises(TrainerError, match=r"leaves nothing to train on: they belong to 1 prompt\. .* held_out to 0"):
        hold_out(data, 0.1, seed=0)
    assert hold_out(data, 0.0, seed=0) == (data, None)


def test_numbers_of_three_pairs() -> None:
    metrics = describe_rewards(torch.tensor([1.0, 0.5, -1.0]), torch.tensor([0.0, 0.5, 1.0]))
    assert metrics.accuracy == 0.5  # right, a tie, wrong
    assert metrics.margin == pytest.approx(-1 / 3)
    assert metrics.loss == pytest.approx((0.313262 + 0.693147 + 2.126928) / 3, abs=1e-6)
    assert metrics.reward_mean == pytest.approx(1 / 3)
    assert metrics.reward_spread == pytest.approx((17 / 36) ** 0.5)  # mean square 3.5 / 6, less 1/9


def test_calibration_error_by_hand() -> None:
    """ln 3 is a belief of 0.75. Three right out of four is calibrated; all right is a quarter too modest; two right
    out of four is a quarter too sure. Two bins weigh by their pairs."""
    gap = torch.tensor(1.0986123)
    assert calibration_error(torch.stack([gap, gap, gap, -gap])) == pytest.approx(0.0, abs=1e-6)
    assert calibration_error(torch.stack([gap, gap])) == pytest.approx(0.25, abs=1e-6)
    assert calibration_error(torch.stack([gap, gap, -gap, -gap])) == pytest.approx(0.25, abs=1e-6)
    assert calibration_error(torch.zeros(3)) == 0.0
    sure = torch.tensor(50.0)
    assert calibration_error(torch.stack([sure, gap, gap, sure])) == pytest.approx(0.125, abs=1e-6)


def test_what_is_shared_with_rounds_means_the_same_there() -> None:
    settings = RewardSettings(learning_rate=3e-6, batch_pairs=5, precision="fp32", layout="plain", checkpoint_every=7)
    shared = TrainSettings.model_fields.keys() & RewardSettings.model_fields.keys()
    assert len(shared) >= 12
    assert all(getattr(settings.as_round, name) == getattr(settings, name) for name in shared)
    precisions = [
        set(get_args(model.model_fields["precision"].annotation)) for model in (RewardSettings, TrainSettings)
    ]
    assert precisions[0] < precisions[1]
