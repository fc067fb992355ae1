"""The math judge: equal as mathematics is right, whatever the spelling; what its parsers do costs one response."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from judges import Group, JudgeError, Prompt, Response, Verdict, build_judge, judge_groups, self_test

pytest.importorskip("math_verify")

# (what the model wrote, the target, score, whether an answer was read)
FORMS = [
    ("\\boxed{0.5}", "\\frac{1}{2}", 1.0, True),
    ("\\boxed{\\frac12}", "0.5", 1.0, True),
    ("\\boxed{\\frac{1}{2}}", "\\dfrac{2}{4}", 1.0, True),
    ("\\boxed{\\frac{1}{3}}", "0.5", 0.0, True),
    ("\\boxed{(x+1)^2}", "x^2+2x+1", 1.0, True),
    ("\\boxed{(x-1)^2}", "x^2+2x+1", 0.0, True),
    ("\\boxed{\\sqrt{8}}", "2\\sqrt{2}", 1.0, True),
    ("\\boxed{x = 3}", "3", 1.0, True),
    ("\\boxed{\\{2, 1\\}}", "\\{1, 2\\}", 1.0, True),
    ("\\boxed{(2, 1)}", "(1, 2)", 0.0, True),
    ("\\boxed{18 \\text{ dollars}}", "\\$18", 1.0, True),
    ("\\boxed{1{,}234}", "1234", 1.0, True),
    ("\\boxed{\\text{east}}", "\\text{east}", 1.0, True),
    ("\\boxed{\\text{west}}", "\\text{east}", 0.0, True),
    ("\\boxed{18}", "She sells 9 * 2.\n#### 18", 1.0, True),
    ("\\boxed{18}", "So it is \\boxed{18}.", 1.0, True),
    ("The answer is $\\frac{1}{2}$.", "0.5", 1.0, True),
    ("It is 18.", "18", 1.0, True),
    ("\\boxed{20} is wrong, it is \\boxed{18}", "18", 1.0, True),
    ("\\boxed{18} is wrong, it is \\boxed{20}", "18", 0.0, True),
    ("\\boxed{18}, no: \\boxed{20", "18", 0.0, False),
    ("18, so \\boxed{}", "18", 0.0, False),
    ("I do not know.", "18", 0.0, False),
    ("", "18", 0.0, False),
]


def group(name: str, text: str, target: str | None, finish_reason: str = "stop") -> Group:
    return Group(Prompt(name, (), target, {}), (Response(name, text, finish_reason),))


def judged(text: str, target: str | None = "18", finish_reason: str = "stop", **args: Any) -> Verdict:
    return judge_groups(build_judge("math", args), [group("p", text, target, finish_reason)])[0][0]


def test_answers_are_compared_as_mathematics() -> None:
    groups = [group(str(number), text, target) for number, (text, target, _, _) in enumerate(FORMS)]
    for form, (verdict,) in zip(FORMS, judge_groups(build_judge("math", {}), groups), strict=True):
        assert (verdict.kind, verdict.score, verdict.extracted is not None) == ("score", *form[2:]), (form, verdict)
        assert verdict.why.startswith("unparsable: ") == (not form[3]), (form, verdict)


def test_a_parser_that_never_ends_is_an_error_and_the_next_answer_is_judged(tmp_path: Path) -> None:
    source = "from judges.rules.maths import Math\n\n\nclass Quick(Math):\n    time_limit = 1.0\n"
    (tmp_path / "quick.py").write_text(source, encoding="utf-8")
    judge = build_judge("quick.py:Quick", {}, base_dir=tmp_path)
    texts = ["\\boxed{9^{9^{9^{9}}}}", "\\boxed{18}", "9**9**9**9", "\\boxed{20}"]
    verdicts = judge_groups(judge, [group(str(number), text, "18") for number, text in enumerate(texts)])
    assert [(v.kind, v.score) for (v,) in verdicts] == [
        ("error", None),
        ("score", 1.0),
        ("error", None),
        ("score", 0.0),
    ]
    assert verdicts[0][0].why == "the judge took longer than 1 s and was killed"


def test_what_was_cut_off_counts_only_in_a_closed_box() -> None:
    assert judged("\\boxed{18} because", finish_reason="length").score == 1.0
    assert judged("\\boxed{18} because", finish_reason="length").well_formed is False
    assert judged("it is 18", finish_reason="length").why == "unparsable: cut off"
    assert judged("\\boxed{18} or \\boxed{2", finish_reason="length").score == 0.0


def test_the_options_do_what_they_say() -> None:
    assert judged("It is 18.", only_boxed=True).why == "unparsable: no boxed answer"
    assert judged("I pass.", unparsable="abstain").kind == "abstain"
    assert [judged("\\boxed{3.14}", "3.14159", decimals=places).score for places in (2, 5)] == [1.0, 0.0]
    assert judged("\\boxed{18}").well_formed is True
    assert judged("It is 18.").well_formed is False


def test_a_target_that_cannot_be_read_stops_the_stage() -> None:
    with pytest.raises(JudgeError, match="Judge math cannot parse the target '#### ' as mathematics"):
        judged("\\boxed{18}", "#### ")
    with pytest.raises(JudgeError, match="Prompt 'p' has no target"):
        judged("\\boxed{18}", None)


def test_the_examples_hold() -> None:
    assert self_test(build_judge("math", {})) == 4


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = build_judge("math", {})
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(JudgeError, match=r"pip install 'prefloop\[math\]'"):
        judge.warm_up()  # type: ignore[attr-defined]


def test_building_the_judge_does_not_import_the_package() -> None:
    code = (
        "import sys; from judges import build_judge; build_judge('math', {}); "
        "assert not {'math_verify', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
