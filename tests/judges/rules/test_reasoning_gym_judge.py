"""The reasoning-gym judge: the task's verifier decides, the pattern says what is well-formed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from judges import Group, JudgeError, Prompt, Response, Verdict, build_judge, judge_groups, self_test

reasoning_gym = pytest.importorskip("reasoning_gym")

ENTRY = {"question": "12 - 30 =", "answer": "-18", "metadata": {"expression": "12 - 30"}}
EQUATION = r"(?P<expr>.+?)\s*=\s*(?P<answer>-?\d+)\s*\.?"
ASKED = {"task": "chain_sum", "pattern": EQUATION, "must_contain": "{metadata[expression]}"}


def judged(text: str, args: dict[str, Any], finish_reason: str = "stop", columns: dict[str, Any] = ENTRY) -> Verdict:
    prompt = Prompt("p", (), columns.get("answer"), columns)
    return judge_groups(build_judge("reasoning-gym", args), [Group(prompt, (Response("r", text, finish_reason),))])[0][
        0
    ]


@pytest.mark.parametrize(
    ("text", "score", "well_formed", "extracted"),
    [
        ("12 - 30 = -18", 1.0, True, "-18"),
        (" 12-30=-18.\n", 1.0, True, "-18"),
        ("12 – 30 = -18", 1.0, True, "-18"),
        ("12 - 30 = -17", 0.0, True, "-17"),
        ("12 - 30 = −18", 1.0, False, "-18"),
        ("**12 - 30** = -18", 1.0, True, "-18"),
        ("2 + 12 - 30 = -18", 1.0, False, "-18"),
        ("12 - 301 = -18", 1.0, False, "-18"),
        ("-18", 1.0, False, "-18"),
        ("The answer is -18.", 1.0, False, "-18"),
        ("12 - 30 = -18\nIs that right?", 1.0, False, "-18"),
        ("12 - 30 = 18", 0.0, True, "18"),
        ("12 - 30 = -180", 0.0, True, "-180"),
        ("12 - 30", 0.0, False, None),
        ("no idea", 0.0, False, None),
        ("", 0.0, False, None),
    ],
)
def test_the_verifier_scores_and_the_pattern_says_well_formed(
    text: str, score: float, well_formed: bool, extracted: str | None
) -> None:
    verdict = judged(text, ASKED)
    assert (verdict.score, verdict.well_formed, verdict.extracted) == (score, well_formed, extracted)


def test_a_cut_off_response_is_unparsable_even_if_it_matches() -> None:
    verdict = judged("12 - 30 = -18", ASKED, "length")
    assert (verdict.score, verdict.well_formed, verdict.extracted) == (0.0, False, None)
    assert verdict.why == "unparsable: cut off before its end"
    assert judged("12 - 30 = -18", {**ASKED, "unparsable": "abstain"}, "length").kind == "abstain"


def test_partial_credit_is_kept_in_parts_and_is_not_right() -> None:
    verdict = judged("so -18 it is", {"task": "chain_sum", "fallback": "text"})
    assert verdict.score == 0.0
    assert 0.0 < verdict.parts["verifier"] < 1.0
    assert judged("so -18 it is", {"task": "chain_sum", "fallback": "text", "threshold": 0.1}).score == 1.0


def test_the_fallback_is_the_users_choice() -> None:
    text = "I think it is -18"
    scores = {how: judged(text, {**ASKED, "fallback": how}).score for how in ("last-number", "text", "none")}
    assert scores == {"last-number": 1.0, "text": 0.0, "none": 0.0}
    assert judged(text, {**ASKED, "fallback": "none"}).why == "unparsable: no answer in the requested format"


def test_without_a_format_there_is_no_notion_of_well_formed() -> None:
    assert judged("-18", {"task": "chain_sum"}).well_formed is None
    assert judged("no idea", {"task": "chain_sum"}).well_formed is None
    assert judged("12 - 30 is -18", {"task": "chain_sum", "must_contain": "{metadata[expression]}"}).well_formed is True


def test_a_verifier_that_raises_is_an_error_and_no_score() -> None:
    entry = {"question": "?", "answer": "2 × 3", "metadata": {"number": 6, "factors": [2, 3]}}
    args = {"task": "prime_factorization", "fallback": "text"}
    verdict = judged("no idea", args, columns=entry)
    assert (verdict.kind, verdict.score) == ("error", None)
    assert "ValueError" in verdict.why
    assert judged("2 × 3", args, columns=entry).score == 1.0


def test_a_verifier_that_never_ends_is_an_error_and_the_next_answer_is_judged(tmp_path: Path) -> None:
    """countdown evaluates what the model wrote; a tower of powers keeps it busy for longer than anybody lives."""
    source = (
        "from judges.rules.reasoning_gym import ReasoningGym\n\n\nclass Quick(ReasoningGym):\n    time_limit = 1.5\n"
    )
    (tmp_path / "quick.py").write_text(source, encoding="utf-8")
    judge = build_judge("quick.py:Quick", {"task": "countdown", "fallback": "text"}, base_dir=tmp_path)
    entry = {"question": "?", "answer": "9*2", "metadata": {"numbers": [9, 2], "target": 18}}
    texts = ["9**9**9**9", "9*2", "9+2"]
    responses = tuple(Response(str(number), text, "stop") for number, text in enumerate(texts))
    verdicts = judge_groups(judge, [Group(Prompt("p", (), "9*2", entry), responses)])[0]
    assert [(v.kind, v.score) for v in verdicts] == [("error", None), ("score", 1.0), ("score", 0.0)]
    assert verdicts[0].why == "the judge took longer than 1.5 s and was killed"


def test_prompts_of_another_kind_stop_the_stage() -> None:
    with pytest.raises(JudgeError, match=r"prompt 'p' lacks question, metadata \(it has: answer\)"):
        judged("-18", {"task": "chain_sum"}, columns={"answer": "-18"})
    with pytest.raises(JudgeError, match="cannot fill must_contain"):
        judged("1 = 1", {**ASKED, "must_contain": "{metadata[nothing]}"})


def test_an_unknown_task_is_named_with_the_nearest_one() -> None:
    with pytest.raises(JudgeError, match=r"knows no task 'chain_smu'\. Did you mean 'chain_sum'\?"):
        self_test(build_judge("reasoning-gym", {"task": "chain_smu"}))
    with pytest.raises(JudgeError, match="cannot make the task 'composite'"):
        self_test(build_judge("reasoning-gym", {"task": "composite"}))


@pytest.mark.parametrize("task", ["chain_sum", "basic_arithmetic", "gcd", "spell_backward", "prime_factorization"])
def test_a_task_verifies_its_own_answer(task: str) -> None:
    assert self_test(build_judge("reasoning-gym", {"task": task})) == 2


def test_a_verifier_that_accepts_nonsense_fails_the_self_test() -> None:
    with pytest.raises(JudgeError, match="fails its own self-test"):
        self_test(build_judge("reasoning-gym", {"task": "game_of_life_halting"}))


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from judges.rules.reasoning_gym import _dataset

    _dataset.cache_clear()
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(JudgeError, match=r"pip install 'prefloop\[reasoning-gym\]'"):
        build_judge("reasoning-gym", {"task": "chain_sum"}).known_examples()


def test_building_the_judge_does_not_import_the_package() -> None:
    code = (
        "import sys; from judges import build_judge; build_judge('reasoning-gym', {'task': 'chain_sum'}); "
        "heavy = {'reasoning_gym', 'torch', 'transformers', 'vllm', 'datasets', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
