"""The model that `not_worse` is held against besides the incumbent: the promoted one with the highest gate metric."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loop.campaign.context import Iteration, ModelRoles
from loop.campaign.stages.promote import against_best, compare_with_incumbent, confidence_of
from loop.config.promote_section import PromoteConfig
from loop.measure.stats import ratio_interval
from loop.store.model_refs import Model
from loop.store.run_records import Evaluation, SetMetrics

PROMPTS = 400


def evaluated(right: int) -> Evaluation:
    """A model that solves the first prompts."""
    cells: dict[str, list[int | float]] = {f"p{i:03}": [int(i < right), 1] for i in range(PROMPTS)}
    interval = ratio_interval([one[0] for one in cells.values()], [1] * PROMPTS, 0.95)
    gate = SetMetrics(sampled_accuracy=interval, counts={"sampled_accuracy": cells})
    return Evaluation(gate, gate)


def iteration(k: int, incumbents: list[int], **promote: Any) -> Iteration:
    """Iteration `k` of ten; `incumbents` are those after each earlier iteration, from the base model's on."""
    run = SimpleNamespace(policy=lambda i: SimpleNamespace(iteration=incumbents[i]))
    campaign: Any = SimpleNamespace(run=run, loaded=SimpleNamespace(iterations=10))
    base, incumbent = Model(Path("base"), "b", 0), Model(Path("one"), "i", incumbents[-1])
    config: Any = SimpleNamespace(promote=PromoteConfig(**promote), eval=SimpleNamespace(samples=1))
    return Iteration(campaign, k, config, ModelRoles(incumbent, base, base), {})


@pytest.mark.parametrize(
    ("incumbents", "right", "best"),
    [
        ([0], [200], None),  # the base model is the incumbent
        ([0, 1], [200, 190], 0),  # the base model counts
        ([0, 1], [200, 200], None),  # of equals the incumbent
        ([0, 1], [200, 210], None),
        ([0, 1, 2], [200, 220, 210], 1),
        ([0, 1, 1], [200, 210, 250], None),  # iteration 2 was rejected
        ([0, 1, 2, 2], [200, 230, 220, 300], 1),
    ],
)
def test_the_best_is_the_promoted_model_with_the_highest_metric(
    incumbents: list[int], right: list[int], best: int | None
) -> None:
    it = iteration(len(incumbents), incumbents)
    evaluations = {k: evaluated(n) for k, n in enumerate([*right, 205])}
    found = against_best(it, evaluations[it.k].gate, evaluations, 0.95)
    assert (found.iteration if found else None) == best
    if found is not None and best is not None:
        assert found.gain.value == pytest.approx((205 - right[best]) / PROMPTS)


def test_a_candidate_that_is_only_a_little_worse_than_its_incumbent_may_be_too_bad() -> None:
    it = iteration(3, [0, 1, 2], margin=0.05)
    evaluations = {k: evaluated(n) for k, n in enumerate([200, 240, 226, 214])}
    attempt = compare_with_incumbent(it, 1, Model(Path("c"), "c", 3), {}, {}, evaluations, 0.95).record
    assert attempt.gain.low is not None
    assert attempt.gain.low > -0.05, "it would pass against its incumbent"
    assert (attempt.promoted, attempt.outcome) == (False, "worse")
    assert attempt.best is not None
    assert attempt.best.iteration == 1
    assert "against iteration 1, the best promoted model so far" in attempt.reason


def test_the_deciding_confidence_knows_the_iterations_the_attempts_and_the_checkpoints() -> None:
    retrying = {"on_reject": "retry", "retries": 1}
    it = iteration(3, [0, 1, 2], rule="better", alpha_spending="bonferroni", **retrying)
    assert 1 - confidence_of(it, 1) == pytest.approx(0.05 / 10 / 2)
    assert 1 - confidence_of(it, 5) == pytest.approx(0.05 / 10 / 2 / 5)
    assert 1 - confidence_of(iteration(3, [0, 1, 2]), 5) == pytest.approx(0.01)
