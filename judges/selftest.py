"""Room judges: before a campaign starts, a judge answers its own known examples; a wrong word stops the run."""

from judges.contract import Example, Group, Judge, JudgeError, Response, Verdict, judge_groups


def self_test(judge: Judge) -> int:
    """Runs the judge's known examples and returns how many there were; JudgeError at the first that comes out wrong."""
    examples = judge.known_examples()
    for example in examples:
        asked = judge if example.args is None else type(judge)(**example.args)
        group = Group(example.prompt, (Response("example", example.text, "stop"),))
        verdict = judge_groups(asked, [group])[0][0]
        if not _as_expected(example, verdict):
            raise JudgeError(_complaint(judge, example, verdict))
    return len(examples)


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
