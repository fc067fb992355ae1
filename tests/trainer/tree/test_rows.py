"""The plan: whatever the data, every pair is trained once per epoch, in one row, within the budget."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data import Pair, PreferenceData, PromptGroup, Response
from trainer.settings import TrainSettings
from trainer.tree.rows import Layout, Plan, Row, encode_row, plan_rows, row_trees, separate_tokens


@st.composite
def preference_data(draw: st.DrawFn) -> PreferenceData:
    groups, pairs = [], []
    token = st.integers(0, 5)  # few tokens, so that prefixes coincide
    for p in range(draw(st.integers(1, 6))):
        responses = draw(st.lists(st.lists(token, min_size=1, max_size=8), min_size=2, max_size=5))
        group = PromptGroup(
            f"p{p}",
            draw(st.lists(token, min_size=1, max_size=6)),
            tuple(Response(f"r{r}", ids) for r, ids in enumerate(responses)),
        )
        groups.append(group)
        names = st.sampled_from(range(len(responses)))
        for w, l in draw(st.lists(st.tuples(names, names).filter(lambda two: two[0] != two[1]), max_size=7)):  # noqa: E741
            pairs.append(Pair(group.id, f"r{w}", f"r{l}"))
    return PreferenceData(tuple(groups), tuple(pairs or [Pair("p0", "r0", "r1")]))


SETTINGS = st.builds(
    TrainSettings,
    batch_pairs=st.integers(1, 9),
    row_tokens=st.integers(16, 60),
    grouping=st.sampled_from(["prompt", "shuffled"]),
    epochs=st.integers(1, 3),
)
LAYOUTS = st.sampled_from(["tree", "plain"])


def rows(plan: Plan) -> list[Row]:
    return [row for step in plan.steps for row in step.rows]


@settings(max_examples=60, deadline=None)
@given(preference_data(), SETTINGS, LAYOUTS, st.integers(0, 9))
def test_every_pair_once_per_epoch(data: PreferenceData, options: TrainSettings, layout: Layout, seed: int) -> None:
    plan = plan_rows(data, options, seed=seed, layout=layout)
    assert sorted(pair.index for row in rows(plan) for pair in row.relations) == list(range(len(data.relations)))
    assert Counter(plan.order) == dict.fromkeys(range(len(plan.steps)), options.epochs)


@settings(max_examples=60, deadline=None)
@given(preference_data(), SETTINGS, LAYOUTS)
def test_both_members_of_a_pair_lie_in_its_row(data: PreferenceData, options: TrainSettings, layout: Layout) -> None:
    for row in rows(plan_rows(data, options, seed=0, layout=layout)):
        held = [(tree.group, r) for tree in row.trees for r in tree.responses]
        for planned in row.relations:
            pair = data.relations[planned.index]
            for place, name in zip(planned.places, pair.responses, strict=True):
                group, response = held[place]
                assert data.groups[group].id == pair.prompt_id
                assert data.groups[group].responses[response].id == name


@settings(max_examples=60, deadline=None)
@given(preference_data(), SETTINGS, LAYOUTS)
def test_rows_keep_the_budget_unless_one_pair_exceeds_it(
    data: PreferenceData, options: TrainSettings, layout: Layout
) -> None:
    for row in rows(plan_rows(data, options, seed=0, layout=layout)):
        if encode_row(data, row, layout).tokens_BT.size > options.row_tokens:
            kinds = {data.relations[pair.index].responses for pair in row.relations}
            assert len(row.trees) == 1
            assert len(kinds) == 1 or row.responses <= 2


@settings(max_examples=30, deadline=None)
@given(preference_data(), SETTINGS, LAYOUTS)
def test_steps_of_single_pairs_never_exceed_the_batch(
    data: PreferenceData, options: TrainSettings, layout: Layout
) -> None:
    options = options.model_copy(update={"grouping": "shuffled"})
    sizes = [step.relations for step in plan_rows(data, options, seed=0, layout=layout).steps]
    assert max(sizes) <= options.batch_pairs
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=30, deadline=None)
@given(preference_data(), SETTINGS, LAYOUTS, st.integers(0, 3), st.integers(0, 3))
def test_the_digest_changes_iff_the_plan_changes(
    data: PreferenceData, options: TrainSettings, layout: Layout, one: int, other: int
) -> None:
    first = plan_rows(data, options, seed=one, layout=layout)
    second = plan_rows(data, options, seed=other, layout=layout)
    assert (first == second) == (first.digest == second.digest)
    assert (replace(first, digest="") == replace(second, digest="")) == (first.digest == second.digest)


def edited(data: PreferenceData, **changes: Any) -> PreferenceData:
    response = replace(data.groups[0].responses[0], token_ids=changes.pop("ids", data.groups[0].responses[0].token_ids))
    group = replace(data.groups[0], responses=(response, *data.groups[0].responses[1:]))
    pairs = (replace(data.relations[0], **changes), *data.relations[1:])
    return PreferenceData((group, *data.groups[1:]), pairs)


def test_the_digest_covers_token_ids_and_weights(toy_data: PreferenceData) -> None:
    def digest(data: PreferenceData) -> str:
        return plan_rows(data, TrainSettings(), seed=0, layout="tree").digest

    digests = {digest(toy_data), digest(edited(toy_data, ids=[9, 9])), digest(edited(toy_data, weight=0.5))}
    assert len(digests) == 3


def test_grouping_prompt_keeps_each_prompt_in_one_step(toy_data: PreferenceData) -> None:
    plan = plan_rows(toy_data, TrainSettings(batch_pairs=8), seed=0, layout="tree")
    homes = [{tree.group for row in step.rows for tree in row.trees} for step in plan.steps]
    assert [step.relations for step in plan.steps] == [8, 8, 8, 8]
    assert sum(map(len, homes)) == 8


def test_max_steps_plans_only_what_is_trained(toy_data: PreferenceData) -> None:
    plan = plan_rows(toy_data, TrainSettings(batch_pairs=8, max_steps=3, epochs=2), seed=0, layout="tree")
    assert plan.order == (0, 1, 2)
    assert len(plan.steps) == 3


def test_a_tree_that_is_too_large_is_split_by_pairs() -> None:
    responses = tuple(Response(f"r{r}", [10 + r] * 20) for r in range(6))
    data = PreferenceData(
        (PromptGroup("p", [1, 2, 3], responses),), tuple(Pair("p", f"r{w}", f"r{w + 3}") for w in range(3))
    )
    plan = plan_rows(data, TrainSettings(row_tokens=48), seed=0, layout="tree")
    assert [len(row.relations) for row in rows(plan)] == [1, 1, 1]
    assert [encode_row(data, row, "tree").encoded for row in rows(plan)] == [3 + 19 + 19] * 3


def test_separate_tokens_count_two_sequences_for_each_pair(toy_data: PreferenceData) -> None:
    plan = plan_rows(toy_data, TrainSettings(), seed=0, layout="tree")
    lengths = {(g.id, r.id): len(g.token_ids) + len(r.token_ids) for g in toy_data.groups for r in g.responses}
    expected = sum(lengths[p.prompt_id, p.chosen_id] + lengths[p.prompt_id, p.rejected_id] for p in toy_data.relations)
    assert sum(separate_tokens(toy_data, row) for row in rows(plan)) == expected


@pytest.mark.parametrize("layout", ["tree", "plain"])
def test_rows_of_a_step_are_alike(toy_data: PreferenceData, layout: Layout) -> None:
    plan = plan_rows(toy_data, TrainSettings(batch_pairs=32, row_tokens=100), seed=0, layout=layout)
    sizes = [encode_row(toy_data, row, layout).encoded for row in rows(plan)]
    assert len(sizes) > 1
    assert min(sizes) > 0.5 * max(sizes)


def test_row_trees_follow_the_plan(toy_data: PreferenceData) -> None:
    for row in rows(plan_rows(toy_data, TrainSettings(), seed=0, layout="tree")):
        for (prompt, responses), tree in zip(row_trees(toy_data, row), row.trees, strict=True):
            assert prompt == toy_data.groups[tree.group].token_ids
            assert len(responses) == len(tree.responses)
