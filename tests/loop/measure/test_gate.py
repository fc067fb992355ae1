"""The gate by simulation, in a decision and over campaigns: benchmarks/gate.py at small sizes, with the seeds fixed."""

import pytest

from benchmarks.gate import equal_passes, false_promotions, passes, predicted, selected, walks
from loop.config.load import load_config, shipped_configs
from loop.measure.power import Gate, describe_gate, gate_of


def test_ten_small_losses_do_not_add_up():
    assert walks(128, 16, 120, hold=False) > 0.5
    assert walks(128, 16, 120) < 0.05


@pytest.mark.parametrize("spending", ["bonferroni", "pocock"])
def test_ten_decisions_of_better_err_as_seldom_as_one(spending):
    assert false_promotions(spending, 128, 4, 200) <= 0.05


def test_without_spending_ten_decisions_err_more_often():
    assert false_promotions("none", 128, 4, 200) > 0.08


@pytest.mark.parametrize(
    ("rule", "prompts", "samples", "change"),
    [
        ("not_worse", 128, 2, 0.0),
        ("not_worse", 128, 4, 0.0),
        ("not_worse", 256, 4, 0.0),
        ("not_worse", 40, 16, 0.0),
        ("not_worse", 256, 2, -0.02),
        ("better", 128, 4, 0.06),
        ("better", 256, 4, 0.04),
    ],
)
def test_the_plan_foresees_how_often_a_candidate_passes(rule, prompts, samples, change):
    assert predicted(rule, prompts, samples, change) == pytest.approx(
        passes(rule, prompts, samples, 2000, change), abs=0.03
    )


def test_an_equal_candidate_passes_at_the_defaults():
    defaults = gate_of(load_config("quickstart", ["prompts.gate=256", "eval.samples=4"]))
    assert defaults is not None
    assert (defaults.prompts, defaults.samples) == (256, 4)
    assert passes("not_worse", 256, 4, 500) > 0.8
    assert min(equal_passes(256, 4, 200, iterations=3)) > 0.75


def test_choosing_among_checkpoints_does_not_loosen_the_gate():
    assert selected(128, 4, 8, 400, corrected=False) > 0.07
    assert selected(128, 4, 8, 400) < 0.04


def test_the_plan_says_what_a_gate_can_see():
    assert describe_gate(Gate(128, 2, -0.05, 0.95)) == (
        "128 prompts x 2 samples: half-width about 6.1 points, limit 5: an equal candidate passes 37 % of the time; "
        "510 x 2 or 128 x 9 would make it 90 %"
    )
    assert describe_gate(Gate(512, 4, -0.05, 0.95)).endswith("limit 5: an equal candidate passes 100 % of the time")
    assert "an equal candidate never passes; " in describe_gate(Gate(1, 4, -0.05, 0.95))
    assert describe_gate(Gate(250, 4, 0.0, 0.95)) == (
        "250 prompts x 4 samples: half-width about 3.1 points: a candidate that is 4.6 points better passes 80 % of "
        "the time"
    )


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_an_equal_candidate_can_pass_the_gate_of_every_shipped_campaign(name):
    for toy in (False, True):
        if name == "reward":
            continue
        gate = gate_of(load_config(name, toy=toy))
        if gate is not None and gate.bound < 0:
            assert gate.passes(0.0) > (0.3 if toy or name == "quickstart" else 0.8), (name, toy)
