"""Every row over groups, singles and steps: arguments and needs are the function's, gradients are those of central
differences, and nothing overflows."""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.helpers.loss_relations import (
    Relation,
    evaluate,
    gradients,
    leaves,
    mapped,
    random_relation,
    with_leaves,
)
from trainer.losses.batch import Groups, Singles
from trainer.losses.table_others import ROWS

# What the gradient leaves out on purpose has a test of its own; here it is switched off, or the row is left out.
PLAIN = {"beta_dpo": {"alpha": 0.0}}
NOT_A_GRADIENT_OF_THE_VALUE = {"nash_md", "nash_md_token"}
FIELDS_OF_NEED = {
    "reference": ("ref", "ref_tokens"),
    "tokens": ("tokens",),
    "sequence_kl": ("kl",),
    "value": ("value",),
}


@pytest.mark.parametrize("name", ROWS)
def test_arguments_are_the_keyword_only_parameters_without_defaults(name: str) -> None:
    method = ROWS[name]
    parameters = list(inspect.signature(method.load()).parameters.values())[1:]
    given_by_the_trainer = {"state"} if method.update else set()
    given_by_the_trainer |= {"generator"} if "random" in method.needs else set()
    assert {p.name for p in parameters} == set(method.arguments) | given_by_the_trainer
    assert all(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)


@pytest.mark.parametrize("name", ROWS)
def test_every_argument_says_what_it_is_and_its_numbers_are_bounded(name: str) -> None:
    for annotation, field in ROWS[name].arguments.values():
        assert field.description
        assert field.metadata or annotation is not float


@pytest.mark.parametrize("name", ROWS)
def test_a_relation_with_just_the_needs_gives_one_value_each(name: str) -> None:
    assert evaluate(name, random_relation(ROWS[name])).shape == (6,)


def needs_by_row() -> Iterator[tuple[str, str]]:
    """Each row with each need that is a tensor of the relation. Labels of a row that `takes` some are the trainer's."""
    for name, method in ROWS.items():
        for need in sorted(method.needs & {*FIELDS_OF_NEED, "scores", "mismatched", "labels"}):
            if need != "labels" or method.takes == "all":
                yield name, need


def without(relation: Relation, need: str) -> Any:
    if need in FIELDS_OF_NEED:
        parts = ("y",) if isinstance(relation, (Singles, Groups)) else ("w", "l")
        nothing: dict[str, Any] = dict.fromkeys(FIELDS_OF_NEED[need])
        return replace(relation, **{part: replace(getattr(relation, part), **nothing) for part in parts})
    return replace(relation, **{{"scores": "score", "labels": "good", "mismatched": "mismatched"}[need]: None})


@pytest.mark.parametrize(("name", "need"), [*needs_by_row()])
def test_no_need_is_declared_in_vain(name: str, need: str) -> None:
    with pytest.raises(AssertionError, match=f"declare the needs? .*`{need}`"):
        evaluate(name, without(random_relation(ROWS[name]), need))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [name for name in ROWS if name not in NOT_A_GRADIENT_OF_THE_VALUE])
def test_gradients_equal_central_differences(name: str, seed: int) -> None:
    relation = random_relation(ROWS[name], seed=seed)
    start = ROWS[name].load_update()
    arguments = ROWS[name].settings(**PLAIN.get(name, {})).model_dump()
    state = start(relation, {}, **arguments) if start else None

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        return evaluate(name, with_leaves(relation, tensors), state=state, **arguments)

    inputs = tuple(leaf.clone().requires_grad_() for leaf in leaves(relation))
    assert torch.autograd.gradcheck(loss, inputs, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1000.0, -1000.0, 1e-9])
@pytest.mark.parametrize("name", ROWS)
def test_extreme_log_probs_stay_finite(name: str, size: float, dtype: torch.dtype) -> None:
    """Log-ratios of about ±1000 (half of them the other way round) and of next to 0, responses of one token."""
    relation = random_relation(ROWS[name])
    sign = torch.tensor([1.0, -1.0]).double().repeat(3).reshape(6, *[1] * (leaves(relation)[0].dim() - 1))

    def stretched(tensor: torch.Tensor) -> torch.Tensor:
        return tensor * (size / 12.0) * (sign if tensor.dim() == sign.dim() else sign[..., None])

    extreme = with_leaves(relation, [stretched(leaf) for leaf in leaves(relation)])
    extreme = mapped(extreme, lambda t: t.to(dtype) if t.is_floating_point() else t)
    values, slopes = evaluate(name, extreme), gradients(name, extreme)
    assert values.dtype == dtype
    assert torch.isfinite(values).all()
    assert all(torch.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("name", ROWS)
def test_single_precision_agrees_with_double(name: str) -> None:
    double = random_relation(ROWS[name])
    single = mapped(double, lambda t: t.float() if t.is_floating_point() else t)
    torch.testing.assert_close(evaluate(name, single).double(), evaluate(name, double), rtol=1e-4, atol=1e-4)


def test_the_rows_load_no_torch() -> None:
    code = "import sys, trainer.losses.table_others; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
