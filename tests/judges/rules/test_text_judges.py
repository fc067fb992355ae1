"""The judges of plain text: exact, contains, regex and number, with their options and their refusals."""

from typing import Any

import pytest

from judges import Group, JudgeError, Prompt, Response, Verdict, build_judge, judge_groups, self_test


def judged(name: str, text: str, target: str | None, finish_reason: str = "stop", **args: Any) -> Verdict:
    group = Group(Prompt("p", (), target, {}), (Response("r", text, finish_reason),))
    return judge_groups(build_judge(name, args), [group])[0][0]


@pytest.mark.parametrize(
    ("name", "text", "target", "args", "score"),
    [
        ("exact", "Paris", "Paris", {}, 1.0),
        ("exact", " Paris\n", "Paris", {}, 1.0),
        ("exact", " Paris", "Paris", {"strip": False}, 0.0),
        ("exact", "PARIS", "Paris", {}, 0.0),
        ("exact", "PARIS", "Paris", {"ignore_case": True}, 1.0),
        ("exact", "New  York", "New York", {}, 0.0),
        ("exact", "New \n York", "New York", {"ignore_space": True}, 1.0),
        ("exact", "Straße", "STRASSE", {"ignore_case": True}, 1.0),
        ("exact", "Paris.", "Paris", {}, 0.0),
        ("exact", "", "Paris", {}, 0.0),
        ("contains", "It is Paris.", "Paris", {}, 1.0),
        ("contains", "It is paris.", "Paris", {}, 0.0),
        ("contains", "It is paris.", "Paris", {"ignore_case": True}, 1.0),
        ("contains", "Comparison", "Paris", {"ignore_case": True}, 0.0),
        ("contains", "Comparison", "paris", {"whole_words": False}, 1.0),
        ("contains", "It costs 180", "18", {}, 0.0),
        ("contains", "It costs 3.18", "18", {}, 0.0),
        ("contains", "It costs 18.50", "18", {}, 0.0),
        ("contains", "It costs 18.", "18", {}, 1.0),
        ("contains", "", "18", {}, 0.0),
        ("regex", "Answer: B", "B", {"pattern": "Answer: (?P<answer>[A-D])"}, 1.0),
        ("regex", " Answer: B\n", "B", {"pattern": "Answer: (?P<answer>[A-D])"}, 1.0),
        ("regex", "I say Answer: B", "B", {"pattern": "Answer: (?P<answer>[A-D])"}, 0.0),
        ("regex", "A or B", "B", {"pattern": r"\b(?P<answer>[A-D])\b", "where": "last"}, 1.0),
        ("regex", "A or B", "A", {"pattern": r"\b(?P<answer>[A-D])\b", "where": "last"}, 0.0),
        ("regex", "answer: b", "B", {"pattern": "Answer: (?P<answer>[A-D])", "ignore_case": True}, 1.0),
        ("regex", "x", "B", {"pattern": "(?P<answer>y)?x"}, 0.0),
        ("regex", "yes", None, {"pattern": "yes|no", "compare": "match"}, 1.0),
        ("regex", "perhaps", None, {"pattern": "yes|no", "compare": "match"}, 0.0),
        ("number", "about 3.1 metres", "3.14", {}, 0.0),
        ("number", "about 3.1 metres", "3.14", {"tolerance": 0.04}, 1.0),
        ("number", "about 3.1 metres", "3.14", {"tolerance": 0.03}, 0.0),
        ("number", "99", "100", {"relative": 0.01}, 1.0),
        ("number", "98.9", "100", {"relative": 0.01}, 0.0),
        ("number", "-99", "-100", {"relative": 0.01}, 1.0),
        ("number", "0.3", "0.1", {"tolerance": 0.2}, 1.0),  # floats would say no: 0.3 - 0.1 > 0.2
        ("number", "$4 million", "4", {}, 1.0),
        ("number", "no idea", "4", {"tolerance": 100}, 0.0),
    ],
)
def test_a_rule_judge_scores(name: str, text: str, target: str | None, args: dict[str, Any], score: float) -> None:
    verdict = judged(name, text, target, **args)
    assert (verdict.kind, verdict.score) == ("score", score)


@pytest.mark.parametrize(
    ("name", "text", "target", "args", "score"),
    [
        ("exact", "18", "18", {}, 0.0),
        ("exact", "B", "B", {}, 1.0),  # one token asked for, one token given
        ("contains", "It costs 18", "18", {}, 0.0),
        ("contains", "It costs 18 dollars and", "18", {}, 1.0),
        ("regex", "Answer: 18", "18", {"pattern": r"Answer: (?P<answer>\d+)"}, 0.0),
        ("regex", "B", "B", {"pattern": "(?P<answer>[A-D])"}, 1.0),
        ("number", "It costs 18", "18", {}, 0.0),
        ("number", "It costs 18 and", "18", {}, 0.0),
    ],
)
def test_the_number_a_response_was_cut_off_in_is_not_read(
    name: str, text: str, target: str, args: dict[str, Any], score: float
) -> None:
    verdict = judged(name, text, target, "length", **args)
    assert verdict.score == score
    assert not verdict.well_formed


def test_the_pattern_says_what_is_well_formed() -> None:
    pattern = "Answer: (?P<answer>[A-D])"
    assert judged("regex", "Answer: B", "A", pattern=pattern).well_formed is True
    assert judged("regex", "B", "B", pattern=pattern).well_formed is False
    assert judged("regex", "Answer: B", "B", "length", pattern=pattern).well_formed is False
    assert judged("exact", "B", "B").well_formed is None


@pytest.mark.parametrize(("name", "args"), [("regex", {"pattern": "(?P<answer>[A-D])"}), ("number", {})])
def test_unparsable_may_abstain(name: str, args: dict[str, Any]) -> None:
    wrong = judged(name, "no idea", "4", **args)
    assert (wrong.kind, wrong.score, wrong.extracted) == ("score", 0.0, None)
    assert wrong.why.startswith("unparsable: ")
    assert judged(name, "no idea", "4", unparsable="abstain", **args).kind == "abstain"


@pytest.mark.parametrize("name", ["exact", "contains", "regex", "number", "gsm8k"])
@pytest.mark.parametrize("target", [None, "", " "])
def test_two_missing_answers_are_never_equal(name: str, target: str | None) -> None:
    args = {"pattern": "(?P<answer>.*)"} if name == "regex" else {}
    with pytest.raises(JudgeError, match="Prompt 'p' has no"):
        judged(name, "", target, **args)


@pytest.mark.parametrize("name", ["exact", "contains", "regex", "number"])
def test_each_passes_its_own_examples(name: str) -> None:
    assert self_test(build_judge(name, {"pattern": "(?P<answer>.*)"} if name == "regex" else {})) >= 2
