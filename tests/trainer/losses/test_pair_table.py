"""The rows of the losses over pairs say the truth: arguments, needs, and that reading them loads no torch."""

import inspect
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from tests.helpers.loss_cases import VARIANT_IDS, VARIANTS, every_column, every_leaf, loss
from trainer.losses import table_others, table_pairs
from trainer.losses.batch import Pairs, Responses
from trainer.losses.method import Need
from trainer.losses.table import METHODS

ROWS = table_pairs.ROWS
OF_RESPONSES: dict[Need, tuple[str, ...]] = {
    "reference": ("ref", "ref_tokens"),
    "tokens": ("tokens", "ref_tokens"),
    "sequence_kl": ("kl",),
    "collision": ("collision",),
}
OF_PAIRS: dict[Need, tuple[str, ...]] = {
    "scores": ("score_w", "score_l"),
    "win_rates": ("win_w", "win_l"),
    "probability": ("probability",),
    "margin": ("margin",),
    "origin": ("chosen_is_reference",),
}


def without(pairs: Pairs, needs: set[Need]) -> Pairs:
    """The pairs as the trainer would give them if nobody had these needs."""

    def cleared(y: Responses) -> Responses:
        return replace(y, **{name: None for need in needs for name in OF_RESPONSES.get(need, ())})

    columns: dict[str, Any] = {name: None for need in needs for name in OF_PAIRS.get(need, ())}
    return replace(pairs, w=cleared(pairs.w), l=cleared(pairs.l), **columns)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_the_arguments_of_its_function(name: str) -> None:
    parameters = list(inspect.signature(ROWS[name].load()).parameters.values())
    relation, arguments = parameters[0], parameters[1:]
    assert relation.name == "pairs"
    assert {parameter.kind for parameter in arguments} == {inspect.Parameter.KEYWORD_ONLY}
    assert {parameter.default for parameter in arguments} == {inspect.Parameter.empty}
    assert [parameter.name for parameter in arguments] == list(ROWS[name].arguments)


@pytest.mark.parametrize(("name", "arguments"), VARIANTS, ids=VARIANT_IDS)
def test_a_loss_works_with_what_it_declares_and_with_nothing_less(name: str, arguments: dict[str, Any]) -> None:
    pairs = every_column(*every_leaf(seed=0))
    declared: set[Need] = set(ROWS[name].needs)
    assert declared <= OF_RESPONSES.keys() | OF_PAIRS.keys()
    others = (OF_RESPONSES.keys() | OF_PAIRS.keys()) - declared
    given = without(pairs, others)
    assert loss(name, given, **arguments).tolist() == loss(name, pairs, **arguments).tolist()
    for need in declared:
        with pytest.raises(AssertionError, match=f"must declare the need `{need}`"):
            loss(name, without(given, {need}), **arguments)


def test_every_row_explains_itself() -> None:
    for name, method in ROWS.items():
        assert method.kind == "pairs"
        assert all((method.paper, method.about, method.notes)), f"{name} leaves something empty"
        described = [field.description for field in method.settings.model_fields.values()]
        assert all(described), f"an argument of {name} has no description"


@pytest.mark.parametrize("name", ROWS)
def test_defaults_are_within_their_own_bounds(name: str) -> None:
    settings = ROWS[name].settings
    assert settings.model_validate(settings().model_dump()) == settings()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("dpo", {"beta": 0.0}),
        ("robust", {"label_smoothing": 0.5}),  # divides by 1 - 2ε
        ("exo", {"label_smoothing": 0.0}),  # log ε
        ("discopop", {"tau": 1.1}),  # would overflow
        ("f_dpo", {"alpha": 1.0}),
        ("ipo", {"normalise": "means"}),
        ("simpo", {"gamma": 0.5}),
    ],
)
def test_arguments_out_of_bounds_are_refused(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ROWS[name].settings(**arguments)


def test_no_name_is_taken_twice() -> None:
    assert table_pairs.CONTRASTIVE_ROWS.keys().isdisjoint(
        table_pairs.LOG_RATIO_ROWS.keys() | table_pairs.TOKEN_LEVEL_ROWS.keys() | table_pairs.REFERENCE_FREE_ROWS.keys()
    )
    assert len(METHODS) == len(table_pairs.ROWS) + len(table_others.ROWS)


def test_reading_the_table_and_its_page_loads_no_torch() -> None:
    code = "import sys, trainer.losses.methods_page as page; page.page(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
