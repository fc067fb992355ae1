"""The GSM8K judge on real gold answers and on the forms in which models write, garble, hide and cut off an answer."""

import json
import time
from pathlib import Path

import pytest

from judges import Group, JudgeError, Prompt, Response, Verdict, build_judge, judge_groups, self_test
from judges.contract import Judge
from judges.numerals import parse_number

RIGHT, WRONG, UNPARSABLE = "right", "wrong", "unparsable"

# (what the model wrote, the target, the outcome); all of them finished by themselves ("stop")
FORMS = [
    # --- the number and its clothes
    ("#### 18", "18", RIGHT),
    ("####18", "18", RIGHT),
    ("####  18  ", "18", RIGHT),
    ("####\n18", "18", RIGHT),
    ("##### 18", "18", RIGHT),
    ("She sells 9.\n#### 18\n", "18", RIGHT),
    ("#### 18.", "18", RIGHT),
    ("#### 18.00", "18", RIGHT),
    ("#### 18.0 dollars", "18", RIGHT),
    ("#### 018", "18", RIGHT),
    ("#### +18", "18", RIGHT),
    ("#### $18", "18", RIGHT),
    ("#### $ 18", "18", RIGHT),
    ("#### $18.00", "18", RIGHT),
    ("#### \\$18", "18", RIGHT),
    ("#### €18", "18", RIGHT),
    ("#### USD 18", "18", RIGHT),
    ("#### USD18", "18", RIGHT),
    ("#### 18 USD", "18", RIGHT),
    ("#### Rs. 18", "18", RIGHT),
    ("#### 18%", "18", RIGHT),
    ("#### 18 %", "18", RIGHT),
    ("#### 18\\%", "18", RIGHT),
    ("#### 18 dollars", "18", RIGHT),
    ("#### 18 eggs.", "18", RIGHT),
    ("#### 18km", "18", RIGHT),
    ("#### 18 km/h", "18", RIGHT),
    ("#### 18 m^2", "18", RIGHT),
    ("#### 18 m²", "18", RIGHT),
    ("#### 18 (eighteen)", "18", RIGHT),
    ("#### 18!", "18", RIGHT),
    ("#### **18**", "18", RIGHT),
    ("#### *18*", "18", RIGHT),
    ("#### `18`", "18", RIGHT),
    ("#### __18__", "18", RIGHT),
    ("#### [18]", "18", RIGHT),
    ("#### (18)", "18", RIGHT),
    ('#### "18"', "18", RIGHT),
    ("#### = 18", "18", RIGHT),
    ("#### x = 18", "18", RIGHT),
    ("#### 9 * 2 = 18", "18", RIGHT),
    ("#### about 18", "18", RIGHT),
    ("#### 18 dollars for 3 days", "18", RIGHT),
    ("#### Answer: 18", "18", RIGHT),
    ("#### The answer is 18", "18", RIGHT),
    ("#### 19", "18", WRONG),
    ("#### 181", "18", WRONG),
    ("#### 1", "18", WRONG),
    ("#### 18.5", "18", WRONG),
    ("#### 18.001", "18", WRONG),
    ("#### 0.18", "18", WRONG),
    ("#### 1.8", "18", WRONG),
    # --- thousands, decimals, fractions, scales
    ("#### 1,234", "1234", RIGHT),
    ("#### 1234", "1,234", RIGHT),
    ("#### 1,234.00", "1234", RIGHT),
    ("#### 1 234", "1234", RIGHT),
    ("#### 1 234", "1", WRONG),
    ("#### 1 234", "234", WRONG),
    ("#### 1\u00a0234", "1234", RIGHT),
    ("#### 1\u202f234", "1234", RIGHT),
    ("#### 1'234", "1234", RIGHT),
    ("#### 1_234", "1234", RIGHT),
    ("#### 1{,}234", "1234", RIGHT),
    ("#### 1\\,234", "1234", RIGHT),
    ("#### 1,\\!234", "1234", RIGHT),
    ("#### 1.234.567", "1234567", RIGHT),
    ("#### 1,234,567", "1234567", RIGHT),
    ("#### 12,34,567", "1234567", RIGHT),
    ("#### 1.234,50", "1234.5", RIGHT),
    ("#### 1.234", "1234", WRONG),
    ("#### 1,23,4", "1234", UNPARSABLE),
    ("#### 18,50", "18.5", RIGHT),
    ("#### .5", "0.5", RIGHT),
    ("#### 1/2", "0.5", RIGHT),
    ("#### 36/2", "18", RIGHT),
    ("#### ½", "0.5", RIGHT),
    ("#### 2½", "2.5", RIGHT),
    ("#### 2 1/2", "2.5", RIGHT),
    ("#### \\frac{1}{2}", "0.5", RIGHT),
    ("#### 18/0", "18", UNPARSABLE),
    ("#### 5k", "5000", RIGHT),
    ("#### $4 million", "4", RIGHT),
    ("#### $4 million", "4000", WRONG),
    ("#### 300 M&M's", "300", RIGHT),
    ("#### $2 million", "2000000", RIGHT),
    ("#### 2.5 thousand", "2500", RIGHT),
    ("#### 1.8e1", "18", RIGHT),
    ("#### 1.8 × 10^1", "18", RIGHT),
    ("#### 10^2", "10", UNPARSABLE),
    ("#### 5²", "5", UNPARSABLE),
    ("#### 3√2", "3", UNPARSABLE),
    ("#### 18\\pi", "18", UNPARSABLE),
    # --- negative numbers
    ("#### -7", "-7", RIGHT),
    ("#### −7", "-7", RIGHT),
    ("#### –7", "-7", RIGHT),
    ("#### - 7", "-7", RIGHT),
    ("#### -$7", "-7", RIGHT),
    ("#### $-7", "-7", RIGHT),
    ("#### negative 7", "-7", RIGHT),
    ("#### minus 7", "-7", RIGHT),
    ("#### -7", "7", WRONG),
    ("#### 7", "-7", WRONG),
    ("He owes 7, so x = -7", "-7", RIGHT),
    ("He owes 7, so x = - 7", "7", WRONG),
    ("- 7 apples are left", "7", RIGHT),
    # --- other scripts' digits
    ("#### १८", "18", RIGHT),
    ("#### ١٨", "18", RIGHT),
    ("#### １８", "18", RIGHT),
    ("#### ١٬٢٣٤٫٥", "1234.5", RIGHT),
    ("答案是18元。", "18", RIGHT),
    ("答案是１，２３４元。", "1234", RIGHT),
    ("#### 十八", "18", UNPARSABLE),
    ("#### eighteen", "18", UNPARSABLE),
    ("#### H₁₈", "18", UNPARSABLE),
    # --- boxes
    ("\\boxed{18}", "18", RIGHT),
    ("$\\boxed{18}$", "18", RIGHT),
    ("\\[ \\boxed{18} \\]", "18", RIGHT),
    ("\\boxed{\\$18}", "18", RIGHT),
    ("\\boxed{18\\%}", "18", RIGHT),
    ("\\boxed{18 \\text{ dollars}}", "18", RIGHT),
    ("\\boxed{\\text{18 dollars}}", "18", RIGHT),
    ("\\boxed{\\textbf{18}}", "18", RIGHT),
    ("\\boxed{1,\\!234}", "1234", RIGHT),
    ("\\boxed{1{,}234}", "1234", RIGHT),
    ("\\boxed{\\frac{36}{2}}", "18", RIGHT),
    ("\\boxed{\\dfrac{1}{2}}", "0.5", RIGHT),
    ("\\boxed{-\\frac{1}{2}}", "-0.5", RIGHT),
    ("\\boxed{2\\frac{1}{2}}", "2.5", RIGHT),
    ("\\boxed{x = 18}", "18", RIGHT),
    ("\\boxed{9 \\times 2 = 18}", "18", RIGHT),
    ("\\fbox{18}", "18", RIGHT),
    ("\\boxed 18", "18", RIGHT),
    ("The answer is $\\boxed{18}$.", "18", RIGHT),
    ("\\boxed{19} since 9*2 = 18", "18", WRONG),
    ("\\boxed{9 \\times 2}", "9", UNPARSABLE),
    ("\\boxed{3\\sqrt{2}}", "3", UNPARSABLE),
    ("\\boxed{18, 20}", "18", UNPARSABLE),
    ("\\boxed{(18, 20)}", "20", UNPARSABLE),
    ("\\boxed{}", "18", UNPARSABLE),
    ("18 \\boxed{}", "18", UNPARSABLE),
    ("so 18, \\boxed{\\text{no answer}}", "18", UNPARSABLE),
    ("so 18, \\boxed{18", "18", UNPARSABLE),
    # --- phrases
    ("The answer is 18.", "18", RIGHT),
    ("the answer is: 18", "18", RIGHT),
    ("The answer is:\n\n18", "18", RIGHT),
    ("The final answer is **18**.", "18", RIGHT),
    ("The answer is **$18.00**.", "18", RIGHT),
    ("**Answer:** 18", "18", RIGHT),
    ("**Final Answer**: $18", "18", RIGHT),
    ("Answer: 18 dollars", "18", RIGHT),
    ("ANSWER: 18", "18", RIGHT),
    ("Answer = 18", "18", RIGHT),
    ("The answer to the question is 18.", "18", RIGHT),
    ("The answer should be 18.", "18", RIGHT),
    ("So the answer is 9 * 2 = 18.", "18", RIGHT),
    ("The answer is 18 dollars per day, for 7 days a week.", "18", RIGHT),
    ("The answer is 18 (9 + 9).", "18", RIGHT),
    ("The answer is 18. That was problem 5 of 20.", "18", RIGHT),
    ("The answer is 18. Paid in 2024.", "18", RIGHT),
    ("The answer is not 18.", "18", UNPARSABLE),
    ("The answer is unknown, maybe 18.", "18", UNPARSABLE),
    ("The answer is 18 or 20.", "18", UNPARSABLE),
    ("The answer is 18 or 20.", "20", UNPARSABLE),
    ("The answer is 18 dollars or 20 dollars.", "18", UNPARSABLE),
    ("The answer is between 18 and 20.", "20", UNPARSABLE),
    ("The answer is 18-20.", "18", UNPARSABLE),
    ("The answer is 18, 20.", "18", UNPARSABLE),
    ("The answer is 3 * 6.", "3", UNPARSABLE),
    ("The answer is 16 - 3.", "16", UNPARSABLE),
    ("The answer is 3:30.", "3", UNPARSABLE),
    ("Answer: She has 16 - 3 = 13 eggs. 13 - 4 = 9. She makes 9 * 2 = 18.", "18", RIGHT),
    ("Answer: She has 16 - 3 = 13 eggs. 13 - 4 = 9. She makes 9 * 2 = 18.", "13", WRONG),
    ("Answer:\n1. She buys eggs.\n2. She makes 9 * 2 = 18", "18", RIGHT),
    ("The answer is:\n\n1. She buys eggs.\n2. She makes 9 * 2 = 18", "1", WRONG),
    ("The answer is therefore $18$.", "18", RIGHT),
    ("The final answer is $18$. I hope it is correct.", "18", RIGHT),
    ("The answer is eighteen (18).", "18", RIGHT),
    ("Answer: 18\n\nExplanation: 16 - 7 = 9 and 9 * 2 = 18, from 3 hens", "18", RIGHT),
    ("<answer>18</answer>", "18", RIGHT),
    # --- two answers, doubt, order
    ("#### 20\n#### 18", "18", RIGHT),
    ("#### 18\n#### 20", "18", WRONG),
    ("#### 18 or 20", "18", UNPARSABLE),
    ("#### 18 (or 20)", "18", UNPARSABLE),
    ("#### 18 and 20", "20", UNPARSABLE),
    ("#### 18 20", "20", UNPARSABLE),
    ("\\boxed{20}\n#### 18", "18", RIGHT),
    ("#### 18\n\\boxed{20}", "18", WRONG),
    ("The answer is 20. No wait, the answer is 18.", "18", RIGHT),
    ("The answer is 18. No wait, the answer is 20.", "18", WRONG),
    ("#### 18\nHmm, is it 20? I am not sure.", "18", RIGHT),
    ("It is 18. No, 20.", "18", WRONG),
    ("It is either 18 or 20", "20", UNPARSABLE),
    ("#### 18\n\nQuestion: what is 2 + 2?\n#### 4", "18", WRONG),
    # --- no marker: the last number
    ("18", "18", RIGHT),
    ("She makes 9 * 2 = $<<9*2=18>>18 every day.", "18", RIGHT),
    ("She makes 9 * 2 = 18 dollars.", "18", RIGHT),
    ("9 × 2 = 18", "18", RIGHT),
    ("She makes $18 every day.\n\nI hope this helps!", "18", RIGHT),
    ("Step 3: 18", "18", RIGHT),
    ("She makes $18 in 2024.", "18", WRONG),
    ("She makes $18 every day, 7 days a week.", "18", WRONG),
    ("9 * 2 = 18, so she keeps 20.", "18", WRONG),
    ("First 18 eggs, then 4 more.", "18", WRONG),
    ("She makes 9 * 2", "2", UNPARSABLE),
    ("It is 16 - 3", "3", UNPARSABLE),
    ("They meet at 3:30", "30", UNPARSABLE),
    ("They meet at 3:00 pm", "3", RIGHT),
    ("180 rings, or 180 years", "180", RIGHT),
    ("on 5/12/2024", "2024", UNPARSABLE),
    ("from 3-5", "5", UNPARSABLE),
    ("COVID-19", "-19", WRONG),
    # --- Markdown headings are not answers
    ("#### Step 1\n9 * 2 = 18", "18", RIGHT),
    ("#### Step 18\n9 * 2 = 20", "18", WRONG),
    ("#### 1. Eggs left\n16 - 7 = 9\n#### 2. Money\n9 * 2 = 18", "18", RIGHT),
    ("#### 18\n#### Explanation\n9 each, twice", "18", RIGHT),
    # --- no answer at all
    ("", "18", UNPARSABLE),
    ("   \n\t ", "18", UNPARSABLE),
    ("I do not know.", "18", UNPARSABLE),
    ("no answer", "18", UNPARSABLE),
    ("9 * 2 = 18\n#### no answer", "18", UNPARSABLE),
    ("9 * 2 = 18\n#### None", "18", UNPARSABLE),
    ("9 * 2 = 18\n#### N/A", "18", UNPARSABLE),
    ("9 * 2 = 18\n#### ?", "18", UNPARSABLE),
    ("9 * 2 = 18\n####", "18", UNPARSABLE),
    ("####", "18", UNPARSABLE),
    ("#### ", "18", UNPARSABLE),
    ("#### $", "18", UNPARSABLE),
    ("#### -", "18", UNPARSABLE),
    ("#### NaN", "18", UNPARSABLE),
    ("#### infinity", "18", UNPARSABLE),
    ("x2 and H2O", "2", UNPARSABLE),
    ("1" * 5000, "1", UNPARSABLE),
    ("#### " + "9" * 5000, "9", UNPARSABLE),
    ("#### 1e999999999", "1", UNPARSABLE),
]

# the same, cut off at the token limit ("length")
CUT_OFF = [
    ("#### 18", "18", UNPARSABLE),  # may have been 180 on its way
    ("#### 18.", "18", UNPARSABLE),  # may have been 18.5
    ("#### 18 ", "18", UNPARSABLE),  # the line has not ended: may have been "18 or 20"
    ("#### ", "18", UNPARSABLE),
    ("9 * 2 = 18", "18", UNPARSABLE),
    ("9 * 2 = 18. Then", "18", UNPARSABLE),
    ("The answer is 18", "18", UNPARSABLE),
    ("\\boxed{18", "18", UNPARSABLE),
    ("\\boxed{18}", "18", RIGHT),
    ("The answer is \\boxed{18}. Now", "18", RIGHT),
    ("The answer is 18. Now", "18", RIGHT),
    ("#### 18\nQuestion: If", "18", RIGHT),
    ("#### 20\nQuestion: If", "18", WRONG),
    ("#### 20\n#### 18", "20", UNPARSABLE),
    ("", "18", UNPARSABLE),
]

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


def gold_answers() -> list[str]:
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k"
    files = [folder / "train.jsonl", folder / "test.jsonl"]
    if not all(file.exists() for file in files):
        return EMBEDDED_GOLD
    return [json.loads(line)["answer"] for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_gold_answer_is_right_and_every_perturbed_one_wrong() -> None:
    judge = build_judge("gsm8k", {})
    for answer in gold_answers():
        working, _, gold = answer.rpartition("####")
        value = parse_number(gold)
        assert value is not None
        right = [answer, gold, f"{working}\\boxed{{{gold.strip()}}}", f"{working}The answer is ${gold.strip()}.00."]
        wrong = [f"{working}#### {value + 1}", f"{working}#### {-value - 1}", f"{working}#### {gold.strip()}.5"]
        wrong += [f"{working}The answer is {value}1.", f"{working}\\boxed{{{value}/7}}"] if value else []
        for text, score in [(t, 1.0) for t in right] + [(t, 0.0) for t in wrong]:
            verdict = judged(text, answer, judge=judge)
            assert (verdict.score, verdict.well_formed is not None) == (score, True), (text, verdict)
            assert verdict.extracted is not None, (text, verdict)


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
