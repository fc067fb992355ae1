"""Why the need `step` exists: a loss that declares it is another loss on the halves of a step, any other is not."""

from typing import Any

import pytest
import torch

from tests.helpers.loss_relations import evaluate, mapped, random_relation
from trainer.losses.table_others import ROWS

ARGUMENTS: dict[str, dict[str, Any]] = {
    "beta_dpo": {"keep": 1.0},  # its filter would differ by the draw alone
    "bco": {"beta": 1.0},  # far from the straight part of the loss, where a statistic cancels out
    "aot": {"beta": 1.0},
    "aot_unpaired": {"beta": 1.0},
}
WHOLE = 8


def mean_over_parts(name: str, parts: list[slice]) -> float:
    """The mean over a step's relations when each part of it is evaluated on its own, state included."""
    relation = random_relation(ROWS[name], count=WHOLE)
    values = [evaluate(name, mapped(relation, lambda t, p=part: t[p]), **ARGUMENTS.get(name, {})) for part in parts]
    return float(torch.cat(values).mean())


@pytest.mark.parametrize("name", ROWS)
def test_only_a_loss_of_the_whole_step_changes_when_the_step_is_split(name: str) -> None:
    whole = mean_over_parts(name, [slice(None)])
    split = mean_over_parts(name, [slice(0, 3), slice(3, WHOLE)])
    if "step" in ROWS[name].needs:
        assert abs(split - whole) > 1e-4 * abs(whole)
    else:
        assert split == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("name", ROWS)
def test_the_order_of_a_steps_relations_does_not_matter(name: str) -> None:
    relation = random_relation(ROWS[name], count=WHOLE)
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    arguments = ARGUMENTS.get(name, {})
    shuffled = evaluate(name, mapped(relation, lambda t: t[order]), **arguments)
    torch.testing.assert_close(shuffled, evaluate(name, relation, **arguments)[order])
