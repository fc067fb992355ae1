"""The contract: three states that cannot be mixed up, and no way for a failing judge to become a label."""

import io
import json
import math
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from judges import Example, Group, Judge, JudgeError, PointwiseJudge, Prompt, Response, Verdict, judge_groups, self_test


def group(*texts: str, target: str | None = "18", prompt_id: str = "p") -> Group:
    responses = tuple(Response(f"{prompt_id}/{index}", text, "stop") for index, text in enumerate(texts))
    return Group(Prompt(prompt_id, ({"role": "user", "content": "?"},), target, {}), responses)


def pointwise(act: Callable[[str], Any]) -> PointwiseJudge:
    class Acting(PointwiseJudge):
        def one(self, prompt: Prompt, response: Response) -> Verdict | float | bool:
            return act(response.text)  # type: ignore[no-any-return]

    return Acting()


def groupwise(act: Callable[[Sequence[Group]], Any]) -> Judge:
    class Grouped(Judge):
        def __call__(self, groups: Sequence[Group]) -> list[list[Verdict]]:
            return act(groups)  # type: ignore[no-any-return]

    return Grouped()


def only(judge: Judge) -> Verdict:
    return judge_groups(judge, [group("x")])[0][0]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, "1", None, b"1", [1.0], 1j, float("1e400"), 10**400])
def test_a_score_is_a_finite_number(score: Any) -> None:
    with pytest.raises(ValueError, match="must be a finite number"):
        Verdict.of(score)


def test_only_a_score_carries_a_score() -> None:
    for kind in ("abstain", "error"):
        with pytest.raises(ValueError, match=f"kind {kind} must have no score"):
            Verdict(kind, 0.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be a finite number"):
        Verdict("score", None)
    with pytest.raises(ValueError, match="not 'maybe'"):
        Verdict("maybe", None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"extracted": 18}, {"why": None}, {"well_formed": "yes"}, {"parts": {"a": math.nan}}]
)
def test_the_rest_of_a_verdict_is_checked_too(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}|part 'a'"):
        Verdict.of(1.0, **wrong)


def test_verdicts_do_not_share_their_parts() -> None:
    first, second = Verdict.of(1.0), Verdict.of(1.0)
    first.parts["a"] = 1.0
    assert second.parts == {}


@pytest.mark.parametrize(
    ("returned", "score"),
    [
        (True, 1.0),
        (False, 0.0),
        (2, 2.0),
        (0.5, 0.5),
        (np.float32(0.5), 0.5),
        (np.bool_(True), 1.0),
        (np.array(0.5), 0.5),
        (Fraction(1, 4), 0.25),
        (Decimal("0.25"), 0.25),
        (Verdict.of(0.25), 0.25),
    ],
)
def test_a_plain_number_is_a_score(returned: Any, score: float) -> None:
    verdict = only(pointwise(lambda _: returned))
    assert (verdict.kind, verdict.score) == ("score", score)
    assert type(verdict.score) is float


@pytest.mark.parametrize("returned", [None, "1.0", math.nan, math.inf, [1.0], np.array([0.0, 1.0]), object()])
def test_what_is_no_score_becomes_an_error_and_never_a_number(returned: Any) -> None:
    verdict = only(pointwise(lambda _: returned))
    assert (verdict.kind, verdict.score) == ("error", None)
    assert "what one() returns must be a finite number" in verdict.why


@pytest.mark.parametrize(
    "error", [TypeError("no"), SystemExit(0), RecursionError(), MemoryError(), Exception("a\nb\udc80")]
)
def test_an_exception_costs_one_response_its_verdict_and_says_where(error: BaseException) -> None:
    def act(text: str) -> bool:
        if text == "bad":
            raise error
        return text == "good"

    verdicts = judge_groups(pointwise(act), [group("good", "bad", "other"), group("good")])
    assert [[v.kind for v in row] for row in verdicts] == [["score", "error", "score"], ["score"]]
    why = verdicts[0][1].why
    assert type(error).__name__ in why
    assert "test_contract.py:" in why
    assert "\n" not in why
    json.dumps(why).encode("utf-8")


def test_a_mistake_in_the_data_stops_the_stage() -> None:
    def act(_: str) -> bool:
        raise JudgeError("prompt p has no target")

    with pytest.raises(JudgeError, match="prompt p has no target"):
        only(pointwise(act))


@pytest.mark.parametrize("make", [pointwise, groupwise])
def test_an_interrupt_passes_through(make: Callable[[Any], Judge]) -> None:
    def act(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        only(make(act))


V = Verdict.of(1.0)


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        (None, r"returned None \(a NoneType\) for 2 groups"),
        ([], "returned 0 lists for 2 groups"),
        ([[V, V]], "returned 1 lists for 2 groups"),
        ([[V, V], [V, V, V]], "returned 3 verdicts for prompt 'q' with 2 responses"),
        ([[V, V], []], "returned 0 verdicts for prompt 'q' with 2 responses"),
        ([V, V], r"returned Verdict.* \(a Verdict\) for prompt 'p' with 2 responses"),
        ([[V, V], [V, 1.0]], r"returned 1.0 \(a float\) for prompt 'q' .* Verdict.of\(score\)"),
        ([[V, V], [V, None]], r"returned None \(a NoneType\) for prompt 'q'"),
        ({"p": [V, V], "q": [V, V]}, r"returned \{.*\(a dict\) for 2 groups"),
    ],
)
def test_a_group_judge_that_breaks_the_contract_stops_with_one_paragraph(returned: Any, complaint: str) -> None:
    judge = groupwise(lambda _: returned)
    with pytest.raises(JudgeError, match=f"Judge Grouped {complaint}") as caught:
        judge_groups(judge, [group("a", "b"), group("a", "b", prompt_id="q")])
    assert "\n" not in str(caught.value)
    assert "one list per group" in str(caught.value)


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), SystemExit(3)])
def test_a_group_judge_that_fails_stops_and_gives_no_verdicts(error: BaseException) -> None:
    def act(_: Any) -> None:
        raise error

    expected = (
        rf"Judge Grouped failed on 1 groups, the first with prompt 'p': {type(error).__name__}: .*_contract.py:\d+"
    )
    with pytest.raises(JudgeError, match=expected):
        only(groupwise(act))
    with pytest.raises(JudgeError, match="failed on 0 groups"):
        judge_groups(groupwise(act), [])


def test_order_and_empty_groups_are_kept() -> None:
    verdicts = judge_groups(pointwise(len), [group("a", "bbb"), group(), group("cc")])
    assert [[v.score for v in row] for row in verdicts] == [[1.0, 3.0], [], [2.0]]
    assert judge_groups(pointwise(len), []) == []


def test_what_a_judge_prints_goes_to_stderr_and_other_threads_keep_stdout() -> None:
    out, err = io.StringIO(), io.StringIO()
    inside, printed = threading.Event(), threading.Event()

    def act(_: str) -> bool:
        print("from the judge")
        inside.set()
        return printed.wait(5)

    with redirect_stdout(out), redirect_stderr(err):
        before = sys.stdout
        thread = threading.Thread(target=only, args=(pointwise(act),))
        thread.start()
        assert inside.wait(5)
        print("from the command")
        printed.set()
        thread.join()
        assert sys.stdout is before
    assert (out.getvalue(), err.getvalue()) == ("from the command\n", "from the judge\n")


def test_arguments_are_frozen_and_unknown_ones_refused() -> None:
    class Threshold(PointwiseJudge):
        least: float = 0.5

        def one(self, prompt: Prompt, response: Response) -> float:
            return self.least

    with pytest.raises(ValidationError):
        Threshold(leest=0.1)  # type: ignore[call-arg]
    judge = Threshold()
    with pytest.raises(ValidationError):
        judge.least = 0.1  # type: ignore[misc]


def test_the_prompt_text_is_the_last_user_message() -> None:
    messages = [("system", "s"), ("user", "first"), ("assistant", "a"), ("user", "last"), ("assistant", "b")]
    prompt = Prompt("p", tuple({"role": role, "content": content} for role, content in messages), None, {})
    assert prompt.text == "last"
    assert Prompt("p", (), None, {}).text == ""


def test_a_judge_that_fails_its_own_examples_is_stopped_with_what_it_said() -> None:
    class Generous(PointwiseJudge):
        examples = (Example.on("18", "18", 1.0), Example.on("18", "19", 0.0))

        def one(self, prompt: Prompt, response: Response) -> bool:
            return True

    with pytest.raises(JudgeError, match=r"Generous fails its own self-test: .*'19'.* it gave score 1.0 .* score 0.0"):
        self_test(Generous())
    assert self_test(pointwise(len)) == 0


def test_examples_that_do_not_fit_the_arguments_are_named() -> None:
    class Needy(PointwiseJudge):
        examples = (Example.on("18", "18", 1.0, {}),)
        limit: int

        def one(self, prompt: Prompt, response: Response) -> bool:
            return True

    with pytest.raises(JudgeError, match=r"Needy cannot be built with the arguments \{\} .*limit: Field required"):
        self_test(Needy(limit=1))


def test_an_example_may_expect_an_abstain() -> None:
    class Careful(PointwiseJudge):
        examples = (Example.on(None, "?", None),)
        sure: bool = False

        def one(self, prompt: Prompt, response: Response) -> Verdict:
            return Verdict.of(0.0) if self.sure else Verdict.abstain("cannot tell")

    assert self_test(Careful()) == 1
    with pytest.raises(JudgeError, match="expected abstain"):
        self_test(Careful(sure=True))
