"""The multiple-choice judge: one letter is read as a person would, two are unparsable, option texts count if given."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges import Group, JudgeError, Prompt, Response, Verdict, build_judge, judge_groups, self_test
from judges.rules.letters import plain_letters, read_letter


def judged(text: str, target: str = "B", finish_reason: str = "stop", **args: Any) -> Verdict:
    columns = {"options": ["Rome", "Paris", "Paris, Texas", "A town"], "named": {"A": "yes", "B": "no"}, "text": "no"}
    group = Group(Prompt("p", (), target, columns), (Response("r", text, finish_reason),))
    return judge_groups(build_judge("multiple-choice", args), [group])[0][0]


FORMS = [
    ("B", "B"),
    ("(B)", "B"),
    ("b", "B"),
    ("b)", "B"),
    ("**B**", "B"),
    ("B.", "B"),
    ("[B]", "B"),
    ("Ｂ", "B"),
    ("B. Paris", "B"),
    ("(B) Paris", "B"),
    ("B) Paris", "B"),
    ("A: Rome", "A"),
    ("a", "A"),
    ("I", "I"),
    ("Answer: B", "B"),
    ("answer: b", "B"),
    ("Answer: I", "I"),
    ("Answer:\nB", "B"),
    ("Answer: option B", "B"),
    ("Answer - B", "B"),
    ("Answer: B) Paris", "B"),
    ("The answer is B.", "B"),
    ("The answer is: (b)", "B"),
    ('The answer is "B"', "B"),
    ("the answer is clearly B", "B"),
    ("The answer is A", "A"),
    ("The answer is A because", "A"),
    ("The answer is B, not A.", "B"),
    ("The correct answer is (B) Paris.", "B"),
    ("The answer is option (B).", "B"),
    ("The right answer would be B.", "B"),
    ("Final Answer: **B**", "B"),
    ("The correct option is B because A is wrong.", "B"),
    ("A is wrong, so the answer is B", "B"),
    ("Option B is correct.", "B"),
    ("So B is the answer.", "B"),
    ("Let me eliminate (A) and (C). (B) is the correct answer.", "B"),
    ("The answer is A. No wait, the answer is B.", "B"),
    ("A. Rome\nB. Paris\nC. Oslo\nAnswer: B", "B"),
    ("my choice: D", "D"),
    ("#### B", "B"),
    ("<answer>B</answer>", "B"),
    ("<answer>(B)</answer>", "B"),
    ("答案是B", "B"),
    ("答案：B", "B"),
    ("\\boxed{B}", "B"),
    ("$\\boxed{\\text{B}}$", "B"),
    ("\\boxed{\\textbf{(B)}}", "B"),
    ("I think it's B", "B"),
    ("I'd go with B.", "B"),
    ("It is A", "A"),
    ("Therefore, A", "A"),
    ("It is not A but B", "B"),
    ("A or B", None),
    ("(A) or (B)", None),
    ("(A), (C)", None),
    ("The answer is A or B.", None),
    ("Answer: A, B", None),
    ("Answer: A B", None),
    ("Answer: A and C", None),
    ("answer is B/C", None),
    ("\\boxed{A, B}", None),
    ("The answer is both A and B", None),
    ("Both A and B are correct", None),
    ("A. Rome\nB. Paris\nC. Oslo", None),
    ("Vitamin C is in lemons, so B", None),
    ("The answer is B or C? I say C.", None),
    ("The answer is a mystery.", None),
    ("The answer is I do not know", None),
    ("The answer is none of them", None),
    ("The answer is not B", None),
    ("The answer isn't B.", None),
    ("It's not B.", None),
    ("B is wrong.", None),
    ("A good question.", None),
    ("None of the above", None),
    ("I do not know", None),
    ("\\boxed{}", None),
    ("Answer: Z", None),
    ("Answer: AB", None),
    ("BB", None),
    ("Z", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "letter"), FORMS)
def test_a_form_is_read_as_a_person_would(text: str, letter: str | None) -> None:
    verdict = judged(text)
    assert verdict.extracted == letter
    assert verdict.score == float(letter == "B")
    assert verdict.why.startswith("unparsable: ") == (letter is None)


@given(st.sampled_from([form for form, letter in FORMS if letter == "B"]), st.sampled_from("CDEFGH"))
def test_every_form_reads_every_letter(form: str, letter: str) -> None:
    text = form.replace("B", letter).replace("Ｂ", letter) if "b" not in form else f"({letter})"
    if "(C)" not in form:
        assert read_letter(plain_letters(text), "ABCDEFGHIJ").letter == letter


@given(st.text(max_size=80))
def test_any_text_can_be_read(text: str) -> None:
    found = read_letter(plain_letters(text), "ABCD")
    assert found.letter is None or found.letter in "ABCD"
    assert (found.letter is None) == bool(found.why)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Paris", "B"),
        ("It must be paris.", "B"),
        ("Paris, Texas", "C"),
        ("Rome or Paris", None),
        ("Comparison", None),
        ("The answer is a town", "D"),
        ("The answer is not known", None),
        ("(A) Paris", "A"),
    ],
)
def test_an_option_text_stands_for_its_letter(text: str, letter: str | None) -> None:
    assert judged(text, options="options").extracted == letter


def test_letters_end_where_the_options_end() -> None:
    assert judged("D", options="options").extracted == "D"
    assert judged("E", options="options").extracted is None
    assert judged("E").extracted == "E"
    assert judged("C", letters="AB").extracted is None
    assert judged("no", options="named").extracted == "B"


@pytest.mark.parametrize(
    ("target", "args"),
    [
        ("B", {}),
        ("(b)", {}),
        ("B.", {}),
        ("Paris", {"options": "options"}),
        ("1", {"target_is": "from-0"}),
        ("2", {"target_is": "from-1"}),
    ],
)
def test_the_target_is_a_letter_a_text_or_a_number(target: str, args: dict[str, Any]) -> None:
    assert [judged(text, target, **args).score for text in ("B", "A")] == [1.0, 0.0]


def test_a_target_or_options_that_make_no_sense_stop_the_stage() -> None:
    with pytest.raises(
        JudgeError, match=r"Prompt 'p' has the target 'Berlin', which is none of the options A, B, C, D"
    ):
        judged("B", "Berlin", options="options")
    with pytest.raises(JudgeError, match="has the target '9'"):
        judged("B", "9", target_is="from-0", options="options")
    with pytest.raises(JudgeError, match=r"in the column 'text': a list of 2 to 10 texts .* it holds 'no'"):
        judged("B", options="text")
    with pytest.raises(JudgeError, match=r"'choices'.* it holds None \(columns: named, options, text\)"):
        judged("B", options="choices")
    with pytest.raises(JudgeError, match="letters: expected two or more different capital letters such as ABCD"):
        judged("B", letters="AAB")


def test_a_cut_off_answer_counts_only_if_it_is_complete() -> None:
    scores = {text: judged(text, finish_reason="length").score for text in ("B", "Answer: B", "Answer: B. Because")}
    assert scores == {"B": 1.0, "Answer: B": 0.0, "Answer: B. Because": 1.0}


def test_well_formed_is_a_statement_in_a_finished_response() -> None:
    assert judged("Answer: B").well_formed is True
    assert judged("Answer: C").well_formed is True
    assert judged("I'd go with B, of course").well_formed is False
    assert judged("B", finish_reason="length").well_formed is False
    assert judged("no idea").well_formed is False


@pytest.mark.parametrize(
    "piece",
    [" ", "\n", "\t\n", "A ", "A\n", "answer is ", "answer ", "(", "B, ", "\\boxed{", "or ", "A or ", "not ", "**"],
)
def test_degenerate_text_is_judged_in_linear_time(piece: str) -> None:
    started = time.perf_counter()
    judged("Answer: A" + piece * (60_000 // len(piece)) + "x")
    judged(piece * (60_000 // len(piece)) + "x", options="options")
    assert time.perf_counter() - started < 2.0


def test_unparsable_may_abstain_and_the_examples_hold() -> None:
    assert judged("A or B", unparsable="abstain").kind == "abstain"
    assert self_test(build_judge("multiple-choice", {})) == 6
