"""Preference data as prompt sets, and mixtures of sources: disjoint by content, every pair and every share counted."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from loop.config.prompts_section import PreferencePrompts, PromptsConfig
from loop.errors import UserError
from loop.pairing.data_answers import answers_of, given_pairs, within_cap
from loop.prompts.preferences import read_pairs_of
from loop.prompts.row import PromptRow
from loop.prompts.sets import PromptSets, build_prompt_sets, interleaved, names_of, shares

CONFIG: TypeAdapter[Any] = TypeAdapter(PromptsConfig)


@pytest.fixture(autouse=True, scope="module")
def dataset_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `datasets` keeps of the files it has read stays out of the user's cache."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def written(rows: Sequence[Any], name: str = "pairs.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return written


def build(seed: int = 0, **keys: Any) -> PromptSets:
    return build_prompt_sets(CONFIG.validate_python(keys), seed)


def pair(asked: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": asked, "chosen": chosen, "rejected": rejected, **more}


def everyone(sets: PromptSets) -> list[PromptRow]:
    return [*sets.train, *sets.gate, *sets.test]


# ---- pairs ----


def test_a_prompt_stays_with_all_of_its_pairs_in_one_set(file: Any) -> None:
    rows = [pair(f"q{i % 6}", f"good {i}", "bad") for i in range(12)]
    sets = build(source="preferences", path=file(rows), gate=2, test=1)
    assert [len(rows) for rows in (sets.train, sets.gate, sets.test)] == [3, 2, 1]
    assert len({row.id for row in everyone(sets)}) == 6
    found = {row.messages[-1]["content"]: [p.chosen.text for p in given_pairs(row)] for row in everyone(sets)}
    assert found == {f"q{i}": [f"good {i}", f"good {i + 6}"] for i in range(6)}
    known = {row.messages[-1]["content"]: row.target for row in everyone(sets)}
    assert known == {f"q{i}": f"good {i}" for i in range(6)}, "judges compare with the first chosen answer"


def test_pairs_that_cannot_be_trained_are_dropped_and_counted(file: Any) -> None:
    bad = [pair("b", "x", "x"), pair("", "x", "y"), pair("c", "", "y")]
    sets = build(source="preferences", path=file([*bad, *(pair(q, "x", "y") for q in "def")]), gate=1, test=1)
    assert {row.messages[-1]["content"] for row in everyone(sets)} == set("def")
    assert [sets.counts[what] for what in ("rows", "pairs", "pairs_empty", "pairs_identical")] == [3, 3, 2, 1]


def test_margins_come_from_their_column_or_from_two_scores(file: Any) -> None:
    rows = [pair("a", "x", "y", gap=3, score_chosen=8.5, score_rejected=6)]

    def margin(**keys: Any) -> float | None:
        config = PreferencePrompts(source="preferences", path=file(rows), **keys)
        (row,) = read_pairs_of(config, "prompts", {}).rows
        return row["pairs"][0]["margin"]  # type: ignore[no-any-return]

    assert (margin(), margin(margin_column="gap")) == (2.5, 3.0)


def test_an_answer_of_two_pairs_is_one_response_and_the_cap_cuts_evenly() -> None:
    def turn(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    pairs = [{"chosen": turn("x"), "rejected": turn(bad), "margin": None} for bad in "yz"]
    row = PromptRow("p", [{"role": "user", "content": "a"}], None, {"pairs": pairs})
    found = list(given_pairs(row))
    assert len({one.response_id for one in answers_of(found)}) == 3
    assert found[0].made.chosen_id == found[1].made.chosen_id
    other = PromptRow("q", row.messages, None, row.columns)
    assert Counter(one.chosen.prompt.id for one in within_cap([row, other], 2, 1)) == {"p": 1, "q": 1}


def test_a_second_file_gives_the_test_set_and_its_prompts_are_not_trained_on(file: Any) -> None:
    main = file([pair(f"q{i}", "x", "y") for i in range(6)])
    other = file([pair(f"q{i}", "x", "y") for i in range(4, 7)], "test.jsonl")
    sets = build(source="preferences", path=main, test_path=other, gate=1, test=3)
    assert {row.messages[-1]["content"] for row in sets.test} == {"q4", "q5", "q6"}
    assert len(sets.train) == 3
    assert (sets.counts["also_in_test"], sets.counts["pairs"]) == (2, 9)


def test_data_without_a_usable_pair_are_refused(file: Any) -> None:
    with pytest.raises(UserError, match=r"holds no pair that can be trained on \(2 pairs identical\)"):
        build(source="preferences", path=file([pair("a", "x", "x"), pair("b", "y", "y")]))


# ---- mixtures ----


@given(st.integers(0, 1000), st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_shares_add_up_and_are_within_one_of_the_exact_ones(total: int, weights: list[float]) -> None:
    counts = shares(total, weights)
    assert sum(counts) == total
    assert all(abs(n - total * w / sum(weights)) < 1 + 1e-9 for n, w in zip(counts, weights, strict=True))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_any_slice_from_the_front_has_the_shares(sizes: list[int]) -> None:
    order = interleaved(sizes)
    assert sorted(order) == [(source, j) for source, size in enumerate(sizes) for j in range(size)]
    for end in range(len(order) + 1):
        counts = Counter(source for source, _ in order[:end])
        assert all(abs(counts[s] - end * size / (sum(sizes) or 1)) <= len(sizes) for s, size in enumerate(sizes))


def questions(start: int, stop: int) -> list[dict[str, str]]:
    return [{"prompt": f"question {i}"} for i in range(start, stop)]


@pytest.fixture
def mixed(file: Any) -> dict[str, Any]:
    first, second = file(questions(0, 60), "first.jsonl"), file(questions(40, 100), "second.jsonl")
    sources = [
        {"weight": 3, "prompts": {"source": "file", "path": first, "system": "Be brief."}},
        {"prompts": {"source": "file", "path": second}},
    ]
    return {"source": "mixture", "sources": sources, "train": 40, "gate": 8, "test": 4}


def test_a_mixture_has_its_shares_in_every_set_and_every_slice(mixed: dict[str, Any]) -> None:
    sets = build(**mixed)
    for rows, share in ((sets.train, 10), (sets.gate, 2), (sets.test, 1), (sets.train[:8], 2), (sets.train[8:16], 2)):
        names = Counter(row.columns["prompt_source"] for row in rows)
        assert names == {"file first.jsonl": 3 * share, "file second.jsonl": share}
    assert sets.counts["train from file first.jsonl"] == 30
    assert {row.messages[0]["role"] for row in sets.train if "first" in row.columns["prompt_source"]} == {"system"}


def test_a_prompt_of_two_sources_is_the_first_ones(mixed: dict[str, Any]) -> None:
    del mixed["sources"][0]["prompts"]["system"]
    sets = build(**mixed)
    assert len({row.id for row in everyone(sets)}) == len(everyone(sets)) == 52
    first = {row.messages[-1]["content"] for row in everyone(sets) if "first" in row.columns["prompt_source"]}
    shared = {f"question {i}" for i in range(40, 60)}
    assert sets.counts["elsewhere"] == len(first & shared) > 0


def test_sources_of_one_name_are_told_apart(mixed: dict[str, Any]) -> None:
    mixed["sources"] = [mixed["sources"][0]] * 3
    assert names_of(CONFIG.validate_python(mixed)) == ["file first.jsonl", "file first.jsonl #2", "file first.jsonl #3"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": 5}, "train cannot be set for one source of a mixture; set prompts.train instead"),
        ({"order": "easy_to_hard", "per_iteration": 3}, "per_iteration, order cannot be set for one source"),
    ],
)
def test_sizes_belong_to_the_mixture(mixed: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    mixed["sources"][1]["prompts"] |= changes
    with pytest.raises(ValidationError, match=said):
        CONFIG.validate_python(mixed)
