"""The GSM8K judge on real gold answers and on the forms in which models write, garble, hide and cut off an answer."""

import json
import os
import time
from pathlib import Path

import pytest

from judges import Group, JudgeError, Prompt, Response, Verdict, build_judge, judge_groups, self_test
from judges.contract import Judge
from judges.rules.numerals import parse_number
from tests.helpers.gsm8k_forms import CUT_OFF, FORMS, RIGHT, UNPARSABLE, WRONG

EMBEDDED_GOLD = [
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether 48+24 = <<48+24=72>>72.\n#### 72",
    "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute, so 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
    "He made a profit of 200,000-130,000=$<<200000-130000=70000>>70,000\n#### 70,000",
    "It gets 10 degrees colder: 3 - 10 = <<3-10=-7>>-7\n#### -7",
]


def judged(text: str, target: str | None, finish_reason: str = "stop", judge: Judge | None = None) -> Verdict:
    group = Group(Prompt("p", (), target, {}), (Response("r", text, finish_reason),))
    return judge_groups(judge or build_judge("gsm8k", {}), [group])[0][0]


def outcome(verdict: Verdict) -> str:
    assert verdict.kind == "score"
    unparsable = verdict.why.startswith("unparsable: ")
    assert unparsable == (verdict.extracted is None)
    assert not (unparsable and (verdict.score or verdict.well_formed))
    return UNPARSABLE if unparsable else RIGHT if verdict.score == 1.0 else WRONG


@pytest.mark.parametrize(("text", "target", "expected"), FORMS)
def test_a_form_is_read_as_a_person_would(text: str, target: str, expected: str) -> None:
    assert outcome(judged(text, target)) == expected


@pytest.mark.parametrize(("text", "target", "expected"), CUT_OFF)
def test_a_cut_off_answer_is_never_right_by_accident(text: str, target: str, expected: str) -> None:
    verdict = judged(text, target, "length")
    assert outcome(verdict) == expected
    assert verdict.well_formed is False


def gsm8k() -> list[str]:
    """The 8,792 worked solutions of GSM8K, from $PREFLOOP_GSM8K or from shared/data/gsm8k beside the checkout."""
    beside = Path(__file__).resolve().parents[4] / "shared" / "data" / "gsm8k"
    folder = Path(os.environ.get("PREFLOOP_GSM8K", beside))
    files = [folder / "train.jsonl", folder / "test.jsonl"]
    if not all(file.exists() for file in files):
        pytest.skip(f"GSM8K's train.jsonl and test.jsonl are not in {folder}; name their folder in PREFLOOP_GSM8K")
    return [json.loads(line)["answer"] for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def check_gold(answers: list[str]) -> None:
    """Every answer is right in every form, and every answer near it is wrong: read, and told apart from unparsable."""
    judge = build_judge("gsm8k", {})
    groups, expected = [], []
    for number, answer in enumerate(answers):
        forms = perturbed(answer)
        responses = tuple(Response(f"{number}/{index}", text, "stop") for index, (text, _) in enumerate(forms))
        groups.append(Group(Prompt(str(number), (), answer, {}), responses))
        expected.append([score for _, score in forms])
    for group, row, scores in zip(groups, judge_groups(judge, groups), expected, strict=True):
        for response, verdict, score in zip(group.responses, row, scores, strict=True):
            assert (verdict.kind, verdict.score) == ("score", score), (response.text, verdict)
            assert verdict.extracted is not None, (response.text, verdict)
            assert verdict.well_formed is not None


def perturbed(answer: str) -> list[tuple[str, float]]:
    """The gold solution in several forms (1.0), and solutions with another number in the gold one's place (0.0)."""
    working, _, gold = answer.rpartition("####")
    gold, value = gold.strip(), parse_number(gold)
    assert value is not None
    right = [answer, gold, f"{working}\\boxed{{{gold}}}", f"{working}The answer is ${gold}.00."]
    wrong = [f"{working}#### {value + 1}", f"{working}#### {-value - 1}", f"{working}#### {gold}.5"]
    if value:
        wrong += [f"{working}The answer is {value}1.", f"{working}\\boxed{{{value}/7}}", f"{answer}\n#### {value * 10}"]
    return [(text, 1.0) for text in right] + [(text, 0.0) for text in wrong]


def test_a_few_gold_answers_are_right_and_what_is_near_them_wrong() -> None:
    check_gold(EMBEDDED_GOLD)


def test_every_gold_answer_of_gsm8k_is_right_and_every_perturbed_one_wrong() -> None:
    answers = gsm8k()
    assert len(answers) == 8_792
    check_gold(answers)


def test_there_are_enough_forms_and_each_is_listed_once() -> None:
    assert len(FORMS) + len(CUT_OFF) >= 350
    assert len({form[:2] for form in FORMS}) == len(FORMS)
    assert len({form[:2] for form in CUT_OFF}) == len(CUT_OFF)
    assert {form[2] for form in CUT_OFF} == {form[2] for form in FORMS} == {RIGHT, WRONG, UNPARSABLE}


def test_well_formed_is_a_marker_that_closes_a_finished_response() -> None:
    assert judged("9 * 2 = 18\n#### 18", "18").well_formed
    assert judged("9 * 2 = 18\n#### 19", "18").well_formed
    assert not judged("9 * 2 = 18", "18").well_formed
    assert not judged("#### 18\nWait, or is it 20?", "18").well_formed
    assert not judged("#### 18\n", "18", "length").well_formed
    hashes_only = build_judge("gsm8k", {"markers": ["####"]})
    assert not judged("The answer is 18.", "18", judge=hashes_only).well_formed
    assert judged("The answer is 18.", "18", judge=hashes_only).score == 1.0


def test_the_answer_convention_is_the_users_choice() -> None:
    text = "The answer is 18. Paid in 2024"
    scores = {how: judged(text, "18", judge=build_judge("gsm8k", {"answer": how})).score for how in ("marker", "last")}
    assert scores == {"marker": 1.0, "last": 0.0}
    only_marker = judged("so it is 18", "18", judge=build_judge("gsm8k", {"answer": "marker"}))
    assert outcome(only_marker) == UNPARSABLE


def test_unparsable_may_abstain_and_then_has_no_score() -> None:
    verdict = judged("I do not know.", "18", judge=build_judge("gsm8k", {"unparsable": "abstain"}))
    assert (verdict.kind, verdict.score, verdict.extracted) == ("abstain", None, None)
    assert verdict.why == "unparsable: no number in the text"


@pytest.mark.parametrize("target", [None, "", "no answer", "#### ", "18 or 20", "1e999999999"])
def test_a_target_without_a_number_stops_the_run_and_names_the_prompt(target: str | None) -> None:
    with pytest.raises(JudgeError, match="Prompt 'p' has no number to compare with"):
        judged("no answer", target)


@pytest.mark.parametrize(
    "piece",
    ["9", "9 ", "9,", "9.", "9/", "#", "#### ", "\\boxed{", "answer is ", "{", "\\frac{1", "-", "x\n", "9\n", "(or "],
)
def test_degenerate_text_is_judged_in_linear_time(piece: str) -> None:
    started = time.perf_counter()
    judged(piece * (60_000 // len(piece)), "18")
    assert time.perf_counter() - started < 2.0


def test_the_judge_passes_its_own_examples() -> None:
    assert self_test(build_judge("gsm8k", {"answer": "marker", "unparsable": "abstain"})) >= 6
