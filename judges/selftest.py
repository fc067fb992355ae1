"""Room judges: before a campaign starts, a judge answers its own known examples; a wrong word stops the run."""

from pydantic import ValidationError

from judges.contract import Example, Group, Judge, JudgeError, Response, Verdict, judge_groups


def self_test(judge: Judge) -> int:
    """Runs the known examples of the judge and of those that it is made of, and returns how many there were;
    JudgeError at the first that comes out wrong."""
    inside = sum(self_test(member) for member in judge.members())
    examples = judge.known_examples()
    for example in examples:
        asked = judge if example.args is None else _with_arguments(judge, example)
        group = Group(example.prompt, (Response("example", example.text, "stop"),))
        verdict = judge_groups(asked, [group])[0][0]
        if not _as_expected(example, verdict):
            raise JudgeError(_complaint(judge, example, verdict))
    return inside + len(examples)


def _with_arguments(judge: Judge, example: Example) -> Judge:
    try:
        return type(judge)(**(example.args or {}))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise JudgeError(
            f"Judge {type(judge).__name__} cannot be built with the arguments {example.args} of its own example "
            f"{example.text!r} ({problems}). Give the class `examples` that fit its arguments."
        ) from None


def _as_expected(example: Example, verdict: Verdict) -> bool:
    return verdict.kind == ("abstain" if example.score is None else "score") and verdict.score == example.score


def _complaint(judge: Judge, example: Example, verdict: Verdict) -> str:
    said = f"{verdict.kind} {verdict.score if verdict.kind == 'score' else ''}".strip()
    wanted = "abstain" if example.score is None else f"score {example.score}"
    return (
        f"Judge {type(judge).__name__} fails its own self-test: for the answer {example.text!r} to target "
        f"{example.prompt.target!r} it said {said} ({verdict.why or 'no reason'}; extracted {verdict.extracted!r}), "
        f"expected {wanted}. Nothing was judged; fix the judge, or correct its `examples`."
    )
