"""The data schedule: which prompts an iteration takes, by order, pass and part."""

from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.campaign.stages.take_prompts import given_rates, ordered, part_for, pass_of, slice_for
from loop.config.prompts_section import FilePrompts, MixedPrompts, MixturePrompts
from loop.errors import UserError
from loop.prompts.row import PromptRow
from loop.prompts.sets import ORIGIN
from tests.helpers import tiny
from tests.helpers.campaigns import rows
from tests.helpers.inprocess import run_here

IDS = ["a", "b", "c", "d", "e"]
EASE = {"a": 0.25, "b": 1.0, "d": 0.25, "e": 0.0}


def test_prompts_come_from_easy_to_hard_or_back_and_unknown_ones_in_the_middle() -> None:
    assert ordered(IDS, EASE, "easy_to_hard") == ["b", "a", "c", "d", "e"]  # the median of 0, 1/4, 1/4, 1 is 1/4
    assert ordered(IDS, EASE, "hard_to_easy") == ["e", "a", "c", "d", "b"]
    assert ordered(IDS, EASE, "random") == IDS
    assert ordered(IDS, {}, "easy_to_hard") == IDS


def test_prompts_are_gone_through_again_once_all_slices_are_used() -> None:
    assert [pass_of(k, 7, 3) for k in range(1, 6)] == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)]
    assert pass_of(2, 3, 3) == (1, 1)


@given(st.sets(st.text(min_size=1), min_size=1, max_size=40), st.data())
def test_parts_hold_every_prompt_once_in_order_and_differ_by_one_in_size(ids: set[str], data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, len(ids)))
    train = sorted(ids)
    cut = [part_for(k, train, parts) for k in range(1, parts + 1)]
    assert [id for part in cut for id in part] == train
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


def test_more_parts_than_prompts_are_refused() -> None:
    with pytest.raises(UserError, match=r"prompts\.parts is 6, but only 5 prompts have pairs"):
        part_for(1, IDS, 6)


@given(st.dictionaries(st.text(min_size=1), st.floats(0, 1), min_size=2, max_size=30), st.integers(1, 5))
def test_slices_of_a_pass_are_disjoint_and_each_is_no_harder_than_the_next(ease: dict[str, float], size: int) -> None:
    size = min(size, len(ease))
    ids = ordered(list(ease), ease, "easy_to_hard")
    cut = [[ids[i] for i in slice_for(k, ids, size, seed=0)] for k in range(1, len(ids) // size + 1)]
    assert len({id for part in cut for id in part}) == sum(map(len, cut))
    for easier, harder in pairwise(cut):
        assert min(ease[id] for id in easier) >= max(ease[id] for id in harder)


# ---- solve rates that the prompts bring ----


def file_of(name: str, column: str | None) -> FilePrompts:
    return FilePrompts(source="file", path=name, solve_rate_column=column, train=2, gate=1, test=1)


def row(id: str, **columns: object) -> PromptRow:
    return PromptRow(id, [{"role": "user", "content": id}], None, dict(columns))


def test_rates_come_from_the_column_and_empty_cells_are_unknown() -> None:
    rows = [row("a", solved="0.25"), row("b", solved=None), row("c", solved=1)]
    assert given_rates(file_of("f.jsonl", "solved"), rows) == {"a": 0.25, "c": 1.0}
    assert given_rates(file_of("f.jsonl", None), rows) == {}


def test_each_source_of_a_mixture_has_its_own_column_or_none() -> None:
    sources = [file_of("x.jsonl", "solved"), file_of("y.jsonl", "ease"), file_of("z.jsonl", None)]
    mixture = MixturePrompts.model_construct(sources=[MixedPrompts.model_construct(prompts=one) for one in sources])
    rows = [
        row("a", solved=0.5, **{ORIGIN: "file x.jsonl"}),
        row("b", ease=0.75, solved=0.1, **{ORIGIN: "file y.jsonl"}),
        row("c", solved=0.2, **{ORIGIN: "file z.jsonl"}),
    ]
    assert given_rates(mixture, rows) == {"a": 0.5, "b": 0.75}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"other": 1}, "prompt a has no column 'solved'; it has other."),
        ({"solved": 1.5}, "prompt a, column 'solved': the solve rate is 1.5, expected a share from 0 to 1."),
        ({"solved": "often"}, "prompt a, column 'solved': the solve rate is 'often', expected a finite number."),
    ],
)
def test_what_is_no_solve_rate_is_refused(columns: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as refused:
        given_rates(file_of("f.jsonl", "solved"), [row("a", **columns)])
    assert str(refused.value) == f"prompts.solve_rate_column: {words}"


# ---- solve rates that the run measures ----


def test_a_second_pass_takes_first_what_the_first_pass_solved_most_often(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings(toys / "model", toys / "prompts.jsonl", toys / "parity.py") | {"iterations": 3}
    settings["prompts"] |= {"train": 16, "per_iteration": 8, "order": "easy_to_hard", "gate": 2, "test": 2}
    settings["eval"] = {"samples": 1}
    run = run_here(monkeypatch, tmp_path, settings)
    right: dict[str, list[bool]] = defaultdict(list)
    for path in sorted(run.glob("iter-00[12]/judge/shard-*.parquet")):
        for verdict in rows(path):
            right[verdict["prompt_id"]].append(verdict["score"] >= 0.5)
    rate = {id: sum(each) / len(each) for id, each in right.items()}
    assert len(rate) == 16
    assert len(set(rate.values())) > 1
    taken = {verdict["prompt_id"] for path in run.glob("iter-003/judge/shard-*.parquet") for verdict in rows(path)}
    assert len(taken) == 8
    assert min(rate[id] for id in taken) >= max(rate[id] for id in rate.keys() - taken)
