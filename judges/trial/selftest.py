"""Tests a judge before a campaign starts, on its own examples and on the user's labelled ones."""

from pathlib import Path

from pydantic import ValidationError

from judges.context import JudgeContext
from judges.contract import Judge
from judges.run import judge_groups
from judges.trial.labelled import read_cases
from judges.trial.trial import Outcome, try_cases
from judges.types import USUAL, Example, Group, JudgeError, Response, Thinking, Verdict


def self_test(judge: Judge) -> int:
    """Run the known examples of the judge and its members; return their number. JudgeError at the first mistake."""
    judge.ready()
    inside = sum(self_test(member) for member in judge.members())
    examples = judge.known_examples()
    for example in examples:
        asked = judge if example.args is None else _with_arguments(judge, example)
        texts = [text for text in (example.text, example.against) if text is not None]
        group = Group(example.prompt, tuple(Response(f"example {i}", t, "stop") for i, t in enumerate(texts)))
        verdict = judge_groups(asked, [group])[0][0]
        if verdict.kind != ("abstain" if example.score is None else "score") or verdict.score != example.score:
            raise JudgeError(_complaint(judge, example, verdict))
    return inside + len(examples)


def agree_with(
    judge: Judge, examples: Path, *, agreement: float, correct_at: float, thinking: Thinking | None = USUAL
) -> int:
    """Run the user's labelled examples; return their number. JudgeError if the judge agrees with too few of them."""
    outcomes = try_cases(judge, read_cases(examples, thinking), correct_at=correct_at)
    missed = [outcome for outcome in outcomes if not outcome.agrees]
    agreed = len(outcomes) - len(missed)
    if agreed / len(outcomes) < agreement - 1e-9:  # 0.7 of 10 is 7, despite rounding
        raise JudgeError(
            f"Judge {type(judge).__name__} agrees with {agreed} of {len(outcomes)} labelled examples in {examples}; "
            f"judge.examples_agreement={agreement:g} requires more. {_first(missed[0])} Nothing was judged; fix the "
            f"judge or the label, or lower judge.examples_agreement. `prefloop judge test` lists all mistakes."
        )
    return len(outcomes)


def _first(outcome: Outcome) -> str:
    case, verdict = outcome.case, outcome.verdicts[0]
    wanted = f"score {case.wanted:g}" if isinstance(case.wanted, float) else case.wanted
    given = f"score {verdict.score:g}" if outcome.decision == "score" else outcome.decision
    extracted = "" if verdict.extracted is None else f"; extracted {verdict.extracted!r}"
    return (
        f"The first mistake is at {case.where}: {case.responses[0].text[:200]!r} is labelled {wanted}, but the judge "
        f"gave {given} ({outcome.why or 'no reason'}{extracted})."
    )


def _with_arguments(judge: Judge, example: Example) -> Judge:
    try:
        built = type(judge)(**(example.args or {}))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise JudgeError(
            f"Judge {type(judge).__name__} cannot be built with the arguments {example.args} of its own example "
            f"{example.text!r} ({problems}). Give the class `examples` that fit its arguments."
        ) from None
    built.bind(JudgeContext(on_item=judge.context.on_item))
    return built


def _complaint(judge: Judge, example: Example, verdict: Verdict) -> str:
    given = f"{verdict.kind} {verdict.score if verdict.kind == 'score' else ''}".strip()
    other = "" if example.against is None else f" against {example.against!r}"
    wanted = "abstain" if example.score is None else f"score {example.score}"
    return (
        f"Judge {type(judge).__name__} fails its own self-test: for the answer {example.text!r}{other} to target "
        f"{example.prompt.target!r} it gave {given} ({verdict.why or 'no reason'}; extracted {verdict.extracted!r}), "
        f"expected {wanted}. Nothing was judged; fix the judge, or correct its `examples`."
    )
