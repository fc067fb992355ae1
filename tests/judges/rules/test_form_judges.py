"""The judges of length and form: counted by hand, and refused where they would say nothing."""

from typing import Any

import pytest

from judges import Group, JudgeError, Prompt, Response, Verdict, build_judge, judge_groups, self_test


def judged(name: str, text: str, finish_reason: str = "stop", **args: Any) -> Verdict:
    group = Group(Prompt("p", (), None, {}), (Response("r", text, finish_reason),))
    return judge_groups(build_judge(name, args), [group])[0][0]


@pytest.mark.parametrize(
    ("text", "args", "score"),
    [
        ("one two  three\n", {"most": 3}, 1.0),
        ("one two three four", {"most": 3}, 0.0),
        ("", {"most": 3}, 1.0),
        ("", {"least": 1}, 0.0),
        ("one", {"least": 1, "most": 1}, 1.0),
        ("one two three four", {"most": 3, "slope": 2}, 0.5),
        ("one two three four five six seven", {"most": 3, "slope": 2}, -1.0),
        ("one", {"least": 4, "slope": 4}, 0.25),
        ("héé", {"unit": "characters", "most": 3}, 1.0),
        ("héé ", {"unit": "characters", "most": 3}, 0.0),
    ],
)
def test_a_length_is_scored(text: str, args: dict[str, Any], score: float) -> None:
    assert judged("length", text, **args).score == score


def test_the_length_is_described() -> None:
    assert judged("length", "a b c", most=9).why == "3 words"
    assert judged("length", "a b c", most=9, unit="characters").why == "5 characters"


THINK = {"tags": ["think", "answer"]}
KEYS = {"keys": {"answer": "integer", "steps": "array"}}


@pytest.mark.parametrize(
    ("text", "args", "score"),
    [
        (" <think>a < b\n</think>\n\n<answer>4</answer>\n", THINK, 1.0),
        ("<think></think><answer></answer>", THINK, 1.0),
        ("<think>a</think> so <answer>4</answer>", THINK, 0.0),
        ("<answer>4</answer><think>a</think>", THINK, 0.0),
        ("<think>a</think><answer>4", THINK, 0.0),
        ("<think>a<think>b</think></think><answer>4</answer>", THINK, 0.0),
        ("<think>a</think><answer>4</answer><answer>5</answer>", THINK, 0.0),
        ("<Think>a</Think><answer>4</answer>", THINK, 0.0),
        ('{"answer": 4, "steps": []}', KEYS, 1.0),
        ('{"answer": 4, "steps": [], "more": 1}', KEYS, 1.0),
        ('{"answer": 4, "steps": [], "more": 1}', {**KEYS, "more_keys": False}, 0.0),
        ('{"answer": "4", "steps": []}', KEYS, 0.0),
        ('{"answer": true, "steps": []}', KEYS, 0.0),
        ('{"answer": 4.0, "steps": []}', KEYS, 0.0),
        ('{"answer": 4}', KEYS, 0.0),
        ('[{"answer": 4, "steps": []}]', KEYS, 0.0),
        ('Sure: {"answer": 4, "steps": []}', KEYS, 0.0),
        ('```json\n{"answer": 4, "steps": []}\n```', KEYS, 0.0),
        ('```json\n{"answer": 4, "steps": []}\n```', {**KEYS, "fenced": True}, 1.0),
        ('{"answer": NaN, "steps": []}', {"keys": {"answer": "number"}}, 0.0),
        ('{"answer": 4.5}', {"keys": {"answer": "number"}}, 1.0),
        ('{"answer": null}', {"keys": {"answer": "null"}}, 1.0),
        ('{"answer": null}', {"keys": {"answer": "any"}}, 1.0),
        ('{"answer": {}}', {"keys": {"answer": "object"}}, 1.0),
        ('{"answer": false}', {"keys": {"answer": "boolean"}}, 1.0),
        ('{"answer": "x"}', {"keys": {"answer": "string"}}, 1.0),
        ('{"answer": ' + "[" * 100_000, {"keys": {"answer": "any"}}, 0.0),
        ('{"answer": ' + "9" * 10_000 + "}", {"keys": {"answer": "integer"}}, 0.0),
        ("", KEYS, 0.0),
        ("", THINK, 0.0),
        ("yes", {"pattern": "yes|no"}, 1.0),
        ("yes, no", {"pattern": "yes|no"}, 0.0),
        ("a\nb", {"pattern": "a.b"}, 1.0),
    ],
)
def test_the_form_is_whole_or_it_is_not(text: str, args: dict[str, Any], score: float) -> None:
    verdict = judged("format", text, **args)
    assert (verdict.score, verdict.well_formed) == (score, bool(score))
    assert bool(verdict.why) == (score == 0)


def test_every_condition_must_hold_and_is_kept() -> None:
    verdict = judged("format", '{"answer": 4}', pattern=".*5.*", keys={"answer": "integer"})
    assert (verdict.score, verdict.parts, verdict.why) == (0.0, {"pattern": 0.0, "keys": 1.0}, "pattern: no match")


def test_a_response_that_was_cut_off_is_never_in_the_form() -> None:
    verdict = judged("format", '{"answer": 4}', "length", keys={"answer": "integer"})
    assert (verdict.score, verdict.well_formed, verdict.why) == (0.0, False, "cut off")


@pytest.mark.parametrize(
    ("name", "args", "complaint"),
    [
        ("length", {}, "set least, most or both"),
        ("length", {"least": 5, "most": 4}, "no length is at least 5 and at most 4"),
        ("length", {"most": 4, "slope": 0}, "slope: input should be greater than 0"),
        ("length", {"most": 4, "unit": "tokens"}, "unit: input should be 'words' or 'characters'"),
        ("format", {}, "give pattern, tags or keys"),
        ("format", {"tags": ["<think>"]}, "name a tag without its brackets: think, not <think>"),
        ("format", {"tags": ["a", "a"]}, "name each tag once"),
        ("format", {"pattern": "("}, "pattern: not a valid regular expression"),
        ("format", {"keys": {"a": "int"}}, "keys.a: input should be 'string', 'number'"),
        ("format", {"json": True}, "there is no argument 'json'"),
    ],
)
def test_arguments_that_say_nothing_are_refused(name: str, args: dict[str, Any], complaint: str) -> None:
    with pytest.raises(JudgeError, match=complaint) as caught:
        build_judge(name, args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "args"), [("length", {"most": 3}), ("format", THINK)])
def test_each_passes_its_own_examples(name: str, args: dict[str, Any]) -> None:
    assert self_test(build_judge(name, args)) >= 4
