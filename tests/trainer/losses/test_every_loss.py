"""Every row of the table, named in a config, trains a tiny model that then does better by that loss on prompts which it
was not trained on; so do sums, and losses of one's own."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.trainer.conftest import VOCABULARY
from trainer.data import Pair, PreferenceData, PromptGroup, Response
from trainer.errors import TrainerError
from trainer.losses.table import METHODS
from trainer.losses.terms import loss
from trainer.round import train_round
from trainer.settings import TrainSettings
from trainer.spec import RoundSpec

Spec = Callable[..., RoundSpec]
Report = Callable[[dict[str, Any]], None]
OWN = "tests.helpers.own_losses"
OPTIONS: dict[str, Any] = {
    "learning_rate": 2e-3,
    "batch_pairs": 12,
    "row_tokens": 60,
    "probe_pairs": 12,
    "probe_every": 3,
    "epochs": 2,
}


@pytest.fixture(scope="module")
def telling_data() -> PreferenceData:
    """24 prompts; chosen and rejected responses are made of different tokens, so that there is something to learn."""
    rng = random.Random(0)

    def ids(count: int, low: int = 3, high: int = VOCABULARY) -> Sequence[int]:
        return [rng.randrange(low, high) for _ in range(count)]

    def response(r: int) -> Response:
        return Response(f"r{r}", ids(rng.randint(2, 6), *((3, 20) if r < 3 else (60, VOCABULARY))))

    columns: dict[str, Any] = {"score_w": 1.0, "score_l": 0.0, "win_w": 0.8, "win_l": 0.2, "probability": 0.9}
    groups = tuple(PromptGroup(f"p{p}", [1, 2, 3, *ids(4)], tuple(map(response, range(6)))) for p in range(24))
    pairs = (
        Pair(group.id, f"r{chosen}", f"r{chosen + 3}", **columns, margin=1.0, chosen_is_reference=bool(at % 2))
        for at, group in enumerate(groups)
        for chosen in range(3)
    )
    return PreferenceData(groups, tuple(pairs))


def watched(spec: RoundSpec, data: PreferenceData, report: Report) -> list[dict[str, float]]:
    """What the watched prompts say, from before the first step (for losses with a running state: after the first
    steps) to after the last."""
    summary = train_round(spec, data, report=report)
    lines = [json.loads(line) for line in (spec.work / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == summary.steps
    said = [line["probe"] for line in lines if "probe" in line] + [lines[-1]["probe_after"]]
    return [numbers for numbers in said if "loss" in numbers]


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"retain_kl", "wpo"}))
def test_every_loss_falls_on_prompts_it_is_not_trained_on(
    name: str, make_spec: Spec, telling_data: PreferenceData, silent: Report
) -> None:
    said = watched(make_spec(**OPTIONS, loss=name), telling_data, silent)
    assert said[-1]["loss"] < said[0]["loss"]
    assert said[-1]["loss"] == pytest.approx(said[-1][name], rel=1e-5)


SUMS: dict[str, tuple[Any, dict[str, float]]] = {
    "dpo_nll": ("dpo_nll", {"dpo": 1.0, "nll": 1.0}),
    "three": (
        [{"name": "simpo", "weight": 2.0, "beta": 1.0}, "slic", {"name": "nll", "weight": 0.2}],
        {"simpo": 2.0, "slic": 1.0, "nll": 0.2},
    ),
    "forget and retain": (["npo", {"name": "retain_kl", "weight": 0.5}], {"npo": 1.0, "retain_kl": 0.5}),
    "a step's and a row's": (
        [{"name": "kto", "weight": 3.0}, {"name": "sft", "weight": 0.1}],
        {"kto": 3.0, "sft": 0.1},
    ),
    "one's own": (
        [{"name": f"{OWN}:capped", "most": 2.0}, {"name": "nll", "weight": 0.5}],
        {f"{OWN}:capped": 1.0, "nll": 0.5},
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_falls_and_is_the_weighted_sum_of_its_parts(
    name: str, make_spec: Spec, telling_data: PreferenceData, silent: Report
) -> None:
    given, weights = SUMS[name]
    said = watched(make_spec(**OPTIONS, loss=given), telling_data, silent)
    assert said[-1]["loss"] < said[0]["loss"]
    for numbers in said:
        total = sum(weight * numbers[part] for part, weight in weights.items())
        assert numbers["loss"] == pytest.approx(total, rel=1e-5)


def test_wpo_parts_the_responses(make_spec: Spec, telling_data: PreferenceData, silent: Report) -> None:
    """Its value is no measure of progress: the weights, which carry no gradient, rise while responses get likelier."""
    said = watched(make_spec(**OPTIONS, loss="wpo"), telling_data, silent)
    assert said[0]["margin"] == 0.0
    assert said[-1]["margin"] > 0.005
    assert said[-1]["reward_accuracy"] > 0.8


def test_retain_kl_starts_at_its_minimum_and_rises_with_what_is_forgotten(
    make_spec: Spec, telling_data: PreferenceData, silent: Report
) -> None:
    said = watched(make_spec(**OPTIONS, loss=["npo", "retain_kl"]), telling_data, silent)
    assert said[0]["retain_kl"] == 0.0
    assert said[-1]["retain_kl"] > 1e-4
    assert said[-1]["npo"] < said[0]["npo"]


@pytest.mark.parametrize("given", [{"name": f"{OWN}:capped", "most": 2.0}, f"{OWN}:imitate", f"{OWN}:above_the_step"])
def test_a_loss_of_one_s_own_is_trained_like_any_other(
    given: Any, make_spec: Spec, telling_data: PreferenceData, silent: Report
) -> None:
    said = watched(make_spec(**OPTIONS, loss=given), telling_data, silent)
    assert said[-1]["loss"] < said[0]["loss"]


def test_arguments_of_one_s_own_loss_reach_it(make_spec: Spec, telling_data: PreferenceData, silent: Report) -> None:
    """`softplus(-min(βΔ, most))`: softplus(0.25) before the first step, when every Δ is 0."""
    spec = make_spec(**OPTIONS | {"epochs": 1}, loss={"name": f"{OWN}:capped", "most": -0.25, "beta": 0.3})
    assert watched(spec, telling_data, silent)[0]["loss"] == pytest.approx(0.825939, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no_such_package:f", r"'no_such_package:f' cannot be imported \(ModuleNotFoundError.*PYTHONPATH"),
        (f"{OWN}:gone", r"cannot be imported \(AttributeError"),
        (f"{OWN}:unmarked", r"does not declare what it is defined on; put @trainer\.losses\.terms\.loss\("),
        (f"{OWN}:averaged", r"averaged returned \(\) for \d+ relations\. A loss must return one value for each"),
        (
            f"{OWN}:capped",
            r"capped: most has no default, so the config must give it \(.*beta=0\.1, most\)",
        ),
        ({"name": f"{OWN}:capped", "most": "much"}, r"most is 'much': input should be a valid number"),
        ({"name": f"{OWN}:imitate", "beta": 1}, r"there is no argument 'beta'"),
        (f"{OWN}:without_tau", r"needs a moving reference, so it must take `alpha` and `tau`"),
        ([f"{OWN}:imitate", "dpo"], r"same kind of data, but there are .*imitate over singles, dpo over pairs"),
    ],
)
def test_a_mistake_in_one_s_own_loss_is_explained(
    given: Any, message: str, make_spec: Spec, telling_data: PreferenceData, silent: Report
) -> None:
    with pytest.raises(TrainerError, match=message):
        train_round(make_spec(loss=given), telling_data, report=silent)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"kind": "triples"}, "'triples'; a loss is defined on pairs, singles or groups"),
        ({"needs": ["referense"]}, r"no need 'referense' \(did you mean 'reference'\?\)"),
    ],
)
def test_an_unknown_declaration_is_refused(declared: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(**declared)


def test_two_kinds_in_a_sum_are_refused_when_the_config_is_read() -> None:
    with pytest.raises(ValueError, match="same kind of data, but there are dpo over pairs, kto over singles"):
        TrainSettings(loss=("dpo", "kto"))
