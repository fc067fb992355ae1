"""The sum of losses over a step: which relations a term counts, what weights do, and how rows' shares add up."""

from typing import Any

import pytest
import torch

from trainer.data import Pair, PreferenceData, PromptGroup, Ranked, Response, Single, as_kind
from trainer.errors import TrainerError
from trainer.losses.batch import Groups, Pairs, Responses, Singles
from trainer.objective import Objective, Value
from trainer.prepare import with_mismatched
from trainer.relations import gather, join, select
from trainer.settings import TrainSettings

ONE = torch.tensor(1.0)


def objective(*loss: Any) -> Objective:
    return Objective(TrainSettings(loss=loss).terms)


def said(logp: list[float], length: list[int], **more: Any) -> Responses:
    return Responses(torch.tensor(logp), torch.tensor(length), **more)


def evaluate(made: Objective, placed: list[Any], responses: Responses, counts: dict[str, int]) -> Value:
    relations = [relation for relation, _ in placed]
    return made.evaluate(gather(placed, responses, ONE), relations, counts, torch.Generator())


# two good responses of 4 and 2 tokens, a bad one; NPO at log-ratio 0 is (2/0.1) log 2 = 13.862944
LABELLED = [
    (Single("p", "a", True), (0,)),
    (Single("p", "b", True, weight=3.0), (1,)),
    (Single("q", "c", False, weight=0.5), (2,)),
]
THREE = said([-4.0, -6.0, -5.0], [4, 2, 5], ref=torch.tensor([-1.0, -1.0, -5.0]))


def test_each_term_is_averaged_over_the_relations_it_takes() -> None:
    made = objective("sft", {"name": "npo", "weight": 0.5})
    counts = made.counts([relation for relation, _ in LABELLED])
    assert counts == {"sft": 2, "npo": 1}
    value = evaluate(made, LABELLED, THREE, counts)
    assert value.parts == pytest.approx({"sft": 1 * 1.0 + 3 * 3.0, "npo": 0.5 * 13.862944}, rel=1e-6)
    assert float(value.total) == pytest.approx(10 / 2 + 0.5 * 0.5 * 13.862944 / 1, rel=1e-6)


def test_rows_are_divided_by_the_step_s_count_and_add_up() -> None:
    made = objective("sft", "npo")
    counts = made.counts([relation for relation, _ in LABELLED])
    whole = evaluate(made, LABELLED, THREE, counts)
    rows = [evaluate(made, LABELLED[at : at + 1], THREE, counts) for at in range(3)]
    assert [set(row.parts) for row in rows] == [{"sft"}, {"sft"}, {"npo"}]
    assert float(sum(row.total for row in rows)) == pytest.approx(float(whole.total), rel=1e-6)
    assert float(rows[0].total) == pytest.approx(1.0 / 2)


def test_the_same_term_named_alone_and_in_a_sum_has_the_same_mean() -> None:
    relations = [relation for relation, _ in LABELLED]
    alone, both = objective("sft"), objective("sft", "npo")
    one = evaluate(alone, LABELLED, THREE, alone.counts(relations)).parts["sft"]
    assert one == evaluate(both, LABELLED, THREE, both.counts(relations)).parts["sft"]


GROUPS = (
    PromptGroup("p", [1], (Response("a", [2]), Response("b", [3, 4]), Response("c", [5]))),
    PromptGroup("q", [6], (Response("d", [7]), Response("e", [8]))),
)
PAIRS = PreferenceData(
    GROUPS,
    (
        Pair("p", "a", "b", weight=2.0, score_w=5.0, score_l=1.0, win_w=0.9, win_l=0.1),
        Pair("p", "a", "c", win_w=0.9, win_l=0.2),
        Pair("p", "c", "b", win_w=0.3, win_l=0.1),
        Pair("q", "d", "e"),
    ),
)


def test_pairs_as_singles_by_hand() -> None:
    """Each response once for each label; the judge's score, else the win rate, else none."""
    assert as_kind(PAIRS, "singles").relations == (
        Single("p", "a", True, 5.0, 2.0),
        Single("p", "b", False, 1.0, 2.0),
        Single("p", "c", False, 0.2),
        Single("p", "c", True, 0.3),
        Single("q", "d", True, None),
        Single("q", "e", False, None),
    )


def test_pairs_as_groups_by_hand() -> None:
    assert as_kind(PAIRS, "groups").relations[:2] == (
        Ranked("p", ("a", "b"), (5.0, 1.0), 2.0),
        Ranked("p", ("a", "c"), None, 1.0),
    )


@pytest.mark.parametrize(
    ("relation", "kind", "message"),
    [
        (Single("p", "a", True), "pairs", "a single response cannot be converted to a pair"),
        (Ranked("p", ("a", "b")), "pairs", "a ranked group cannot be converted to a pair"),
        (Ranked("p", ("a", "b")), "singles", "a ranked group cannot be converted to a single response"),
    ],
)
def test_what_cannot_be_derived_is_refused(relation: Any, kind: Any, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        as_kind(PreferenceData(GROUPS, (relation,)), kind)


def test_a_mismatched_partner_is_the_next_response_of_another_prompt() -> None:
    singles = (Single("p", "a", True), Single("p", "b", False), Single("q", "d", True))
    data = with_mismatched(PreferenceData(GROUPS, singles))
    assert [r.mismatched_id for r in data.relations if isinstance(r, Single)] == ["q/d", "q/d", "p/a"]
    added = {group.id: {r.id: r.token_ids for r in group.responses} for group in data.groups}
    assert added["p"]["q/d"] == [7]
    assert added["q"]["p/a"] == [2]
    with pytest.raises(TrainerError, match="all responses belong to one prompt"):
        with_mismatched(PreferenceData(GROUPS, singles[:2]))


def test_gathered_pairs_by_hand() -> None:
    pairs = [(Pair("p", "a", "b", margin=2.0, win_w=1.0), (2, 0)), (Pair("p", "c", "b", margin=3.0), (1, 0))]
    batch = gather(pairs, THREE, torch.tensor(7.0))
    assert isinstance(batch, Pairs)
    assert (batch.w.logp.tolist(), batch.l.logp.tolist()) == ([-5.0, -6.0], [-4.0, -4.0])
    assert (batch.w.length.tolist(), batch.delta.tolist()) == ([5, 2], [3.0, -2.0])
    assert batch.margin is not None
    assert (batch.margin.tolist(), batch.win_w, batch.mean_length_w) == ([2.0, 3.0], None, torch.tensor(7.0))
    kept = select(batch, torch.tensor([False, True]))
    assert isinstance(kept, Pairs)
    assert (kept.w.logp.tolist(), kept.delta.tolist(), kept.mean_length_w) == ([-6.0], [-2.0], torch.tensor(7.0))


def test_gathered_groups_are_padded_with_log_prob_0_and_length_1() -> None:
    groups = [(Ranked("p", ("a", "b", "c"), (3.0, 2.0, 1.0)), (2, 0, 1)), (Ranked("q", ("d",), (9.0,)), (1,))]
    batch = gather(groups, THREE, ONE)
    assert isinstance(batch, Groups)
    assert batch.present.tolist() == [[True, True, True], [True, False, False]]
    assert batch.y.logp.tolist() == [[-5.0, -4.0, -6.0], [-6.0, 0.0, 0.0]]
    assert batch.y.length.tolist() == [[5, 4, 2], [2, 1, 1]]
    assert batch.score is not None
    assert batch.score.tolist() == [[3.0, 2.0, 1.0], [9.0, 0.0, 0.0]]


def test_gathered_singles_by_hand() -> None:
    batch = gather([(Single("p", "a", True, mismatched_id="x"), (0, 2)), (Single("p", "b", False), (1, 0))], THREE, ONE)
    assert isinstance(batch, Singles)
    assert batch.good is not None
    assert batch.mismatched is not None
    assert (batch.good.tolist(), batch.mismatched.logp.tolist(), batch.score) == ([True, False], [-5.0, -4.0], None)


def test_joined_rows_pad_tokens_to_the_longest() -> None:
    rows = [said([-3.0], [2], tokens=torch.tensor([[-1.0, -2.0]])), said([-4.0], [1], tokens=torch.tensor([[-4.0]]))]
    whole = join(rows)
    assert whole.tokens is not None
    assert (whole.logp.tolist(), whole.tokens.tolist()) == ([-3.0, -4.0], [[-1.0, -2.0], [-4.0, 0.0]])
