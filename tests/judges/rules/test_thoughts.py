"""What a model thinks decides nothing: judges read what follows the thought, and a thought that is not closed is no
answer."""

from collections.abc import Sequence
from typing import Any

import pytest

from judges import Group, Prompt, Response, Thinking, Verdict, build_judge, judge_groups
from judges.remember import key_of

USUAL = Thinking()
OPENED = Thinking(opened=True)
BRACKETS = Thinking("[THINK]", "[/THINK]")
COLUMNS = {"options": ["16", "18", "20"], "question": "", "answer": "18", "metadata": {}}


def judged(
    name: str,
    text: str,
    target: str | None = "18",
    finish: str = "stop",
    *,
    thinking: Thinking = USUAL,
    **args: Any,
) -> Verdict:
    response = Response("r", text, finish, thinking)
    return judge_groups(build_judge(name, args), [Group(Prompt("p", (), target, COLUMNS), (response,))])[0][0]


@pytest.mark.parametrize(
    ("thinking", "text", "answer"),
    [
        (Thinking(), "18", "18"),
        (Thinking(), " 18\n", " 18\n"),
        (Thinking(), "<think>maybe 18</think>It is 20 dollars.", "It is 20 dollars."),
        (Thinking(), "<think>a</think>\n\n20", "20"),
        (Thinking(), "<think>a</think>b<think>c</think> d", "d"),
        (Thinking(), "<think><think>a</think>b</think>c", "c"),
        (Thinking(), "a</think>20", "20"),
        (Thinking(), "Well, <think>a</think>20 ", "20 "),
        (Thinking(), "<think>a</think>", ""),
        (Thinking(), "<think>So the answer is 18. Wait", None),
        (Thinking(), "18 <think>or 20", None),
        (Thinking(), "<think>a</think>18<think>b", None),
        (Thinking(), "<think>", None),
        (Thinking(), "", ""),
        (OPENED, "a</think>20", "20"),
        (OPENED, "the answer is 18", None),
        (OPENED, "", None),
        (BRACKETS, "[THINK]18[/THINK]20", "20"),
        (BRACKETS, "[THINK]18", None),
        (BRACKETS, "<think>18", "<think>18"),
    ],
)
def test_the_answer_follows_the_last_thought(thinking: Thinking, text: str, answer: str | None) -> None:
    response = Response("r", text, "stop", thinking)
    assert response.answer == answer
    assert response.alone.text == (answer or "")
    assert response.alone.answer == response.alone.text


def test_without_thinking_all_of_the_text_is_the_answer() -> None:
    assert Response("r", "<think>18", "stop", None).answer == "<think>18"


ANSWERS = [
    ("gsm8k", {}, "It is 20 dollars."),
    ("gsm8k", {"answer": "marker"}, "#### 20"),
    ("math", {}, "\\boxed{20}"),
    ("multiple-choice", {"options": "options"}, "The answer is C."),
    ("contains", {}, "It is 20 dollars."),
    ("number", {}, "It is 20 dollars."),
    ("exact", {}, "20"),
    ("regex", {"pattern": r"(?P<answer>\d+)"}, "20"),
    ("regex", {"pattern": r"(?P<answer>\d+)", "where": "last"}, "It is 20 dollars."),
    ("regex", {"pattern": r"<think>[^<]*(</?answer>[^<]*)*</think>(?P<answer>\d+)"}, "20"),
    ("format", {"pattern": r"\d+"}, "20"),
    ("format", {"keys": {"answer": "integer"}}, '{"answer": 20}'),
    ("format", {"tags": ["answer"]}, "<answer>20</answer>"),
    ("format", {"tags": ["think", "answer"]}, "<answer>20</answer>"),
    ("length", {"least": 1, "most": 4}, "It is 20 dollars."),
]
THOUGHTS = [
    "maybe 18",
    "#### 18\n",
    "\\boxed{18}",
    "The answer is B.",
    '{"answer": "18"}',
    "<answer>18</answer>",
    "x " * 50,
]


def target_of(name: str, number: str) -> str:
    return "BC"[number == "20"] if name == "multiple-choice" else number


@pytest.mark.parametrize(("name", "args", "answer"), ANSWERS)
@pytest.mark.parametrize("thought", THOUGHTS)
def test_the_thought_is_not_judged(name: str, args: dict[str, Any], answer: str, thought: str) -> None:
    text = f"<think>{thought}</think>{answer}"
    right, wrong = (judged(name, text, target_of(name, number), **args) for number in ("20", "18"))
    assert right.score == 1.0
    assert wrong.score == float(name in ("format", "length"))


@pytest.mark.parametrize(("name", "args", "answer"), ANSWERS)
@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize("before", ["<think>So it is ", "<think>a</think><think>", "Now <think>\n"])
def test_a_thought_without_an_end_has_no_answer(
    name: str, args: dict[str, Any], answer: str, finish: str, before: str
) -> None:
    verdict = judged(name, before + answer, target_of(name, "20"), finish, **args)
    assert (verdict.kind, verdict.score, verdict.extracted, verdict.well_formed) == ("score", 0.0, None, False)


@pytest.mark.parametrize("name", ["gsm8k", "math", "multiple-choice", "number"])
def test_such_a_response_abstains_where_unparsable_ones_do(name: str) -> None:
    verdict = judged(name, "<think>So the answer is 18. Wait", target_of(name, "18"), "length", unparsable="abstain")
    assert (verdict.kind, verdict.why, verdict.well_formed) == (
        "abstain",
        "unparsable: the thought is not closed",
        False,
    )


def test_the_prompt_may_have_opened_the_thought() -> None:
    assert judged("gsm8k", "18 maybe</think>#### 20", "20", thinking=OPENED).score == 1.0
    assert judged("gsm8k", "So it is\n#### 18", "18", thinking=OPENED).well_formed is False


@pytest.mark.parametrize(
    ("text", "score"),
    [("<think>a b c d</think>one two", 1.0), ("<think>a</think>one two three four", 0.5), ("<think>a b c d e f", -0.5)],
)
def test_only_the_answer_is_long(text: str, score: float) -> None:
    assert judged("length", text, None, most=3, slope=2).score == score


def test_an_open_thought_never_gains_by_its_length() -> None:
    assert judged("length", "<think>a", None, most=3, slope=2).score == 0.0


def test_the_penalty_of_a_combination_is_for_the_answer() -> None:
    combined = {"parts": [{"judge": "contains"}], "length_penalty": {"per_unit": 1}}
    assert judged("combine", "<think>a b c d</think>the 18", **combined).score == -1.0
    assert judged("combine", "<think>a b c d", **combined).score == -4.0


@pytest.mark.parametrize("fallback", ["text", "last-number"])
def test_reasoning_gym_reads_the_answer(fallback: str) -> None:
    pytest.importorskip("reasoning_gym")
    args = {"task": "chain_sum", "fallback": fallback}
    assert judged("reasoning-gym", "<think>20</think>18", **args).score == 1.0
    assert judged("reasoning-gym", "<think>18</think>20", **args).score != 1.0
    assert judged("reasoning-gym", "<think>18", **args).well_formed is False


def key(*responses: Response) -> str:
    return key_of(build_judge("exact", {}), Prompt("p", (), "18", {}), responses)


def test_the_cache_tells_answers_apart_only_where_there_are_thoughts() -> None:
    text = "a</think>b"
    assert key(Response("r", "18", "stop")) == key(Response("s", "18", "stop", BRACKETS))
    assert key(Response("r", text, "stop")) != key(Response("r", text, "stop", BRACKETS))
    assert key(Response("r", "18", "stop")) != key(Response("r", "18", "stop", OPENED))


def test_a_judge_of_many_sees_answers_only() -> None:
    from judges.contract import BatchJudge

    seen: list[str] = []

    class Seeing(BatchJudge):
        def many(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
            seen.extend(response.text for _, response in items)
            return [Verdict.of(float(len(response.text))) for _, response in items]

    texts = ["abc", "<think>a</think>b", "<think>a", "<think>long</think>long"]
    group = Group(Prompt("p", (), None, {}), tuple(Response(str(i), t, "stop") for i, t in enumerate(texts)))
    (verdicts,) = judge_groups(Seeing(), [group])
    assert seen == ["abc", "b", "long"]
    assert [verdict.score for verdict in verdicts] == [3.0, 1.0, None, 4.0]
    assert (verdicts[2].kind, verdicts[2].well_formed) == ("abstain", False)


def test_a_thought_without_an_end_loses_every_game() -> None:
    from judges import Game, PairwiseJudge, Preference

    asked: list[tuple[str, str]] = []

    class Longer(PairwiseJudge):
        def compare_all(self, games: Sequence[Game]) -> list[Preference]:
            asked.extend((game.first.text, game.second.text) for game in games)
            return [Preference.of(len(game.first.text) > len(game.second.text)) for game in games]

    texts = ["<think>a very long one", "b", "<think>another", "cd"]
    group = Group(Prompt("p", (), None, {}), tuple(Response(str(i), t, "stop") for i, t in enumerate(texts)))
    (verdicts,) = judge_groups(Longer(), [group])
    assert asked == [("b", "cd"), ("cd", "b")]
    assert [verdict.score for verdict in verdicts] == [pytest.approx(s) for s in (0.5 / 3, 2 / 3, 0.5 / 3, 1.0)]
    assert [verdict.well_formed for verdict in verdicts] == [False, None, False, None]
