"""Runs a judge on labelled cases and collects the outcomes; pairs in both orders, unless the judge sees no order."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from judges.contract import Judge, PointwiseJudge
from judges.pairwise import PairwiseJudge, Preference, both
from judges.run import judge_groups
from judges.trial.labelled import Case
from judges.types import Group, JudgeError, Response, Verdict

TOLERANCE = 1e-6
"""Scores that differ by no more are equal."""

AT_A_TIME = 64
"""Groups in one call of the judge: enough for it to work on many at once, few enough to show progress."""

Decision = Literal["right", "wrong", "score", "chosen", "rejected", "tie", "abstain", "error"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A judge's answer to a case; `verdicts` of a pair: chosen, rejected; `orders`: the preference in both orders."""

    case: Case
    decision: Decision
    agrees: bool
    why: str
    verdicts: tuple[Verdict, ...]
    orders: tuple[Preference, ...] = ()


def try_cases(
    judge: Judge,
    cases: Sequence[Case],
    *,
    correct_at: float = 1.0,
    tolerance: float = TOLERANCE,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """One outcome per case; `correct_at` is the lowest score of a right response. JudgeError if the judge fails."""
    if isinstance(judge, PairwiseJudge) and (single := next((case for case in cases if case.kind != "pair"), None)):
        raise JudgeError(
            f"Judge {type(judge).__name__} compares two responses, but the labelled example at {single.where} has one "
            f"response with a {single.kind}. Give rows with prompt, chosen and rejected."
        )
    groups, asked = list(_groups(judge, cases)), judge
    if isinstance(judge, PairwiseJudge):  # the trial plays both orders itself and keeps them apart
        asked = judge.model_copy(update={"both_orders": False, "games": "all"})
    verdicts: dict[tuple[str, bool], Verdict] = {}
    for start in range(0, len(groups), AT_A_TIME):
        part = groups[start : start + AT_A_TIME]
        for (group, swapped), row in zip(part, judge_groups(asked, [g for g, _ in part]), strict=True):
            verdicts |= {(r.id, swapped): verdict for r, verdict in zip(group.responses, row, strict=True)}
        on_progress(sum(not swapped for _, swapped in verdicts))
    return [_outcome(judge, case, verdicts, correct_at, tolerance) for case in cases]


def _groups(judge: Judge, cases: Sequence[Case]) -> Iterator[tuple[Group, bool]]:
    """The groups that the judge is shown, and whether each is the second order of a pair."""
    together: dict[str, list[Case]] = {}
    for case in cases:
        if isinstance(judge, PointwiseJudge):
            yield from ((Group(case.prompt, (response,)), False) for response in case.responses)
        elif case.kind == "pair":
            yield Group(case.prompt, case.responses), False
            yield Group(case.prompt, case.responses[::-1]), True
        else:
            together.setdefault(repr((case.prompt.messages, case.prompt.target)), []).append(case)
    for members in together.values():
        responses: list[Response] = [response for case in members for response in case.responses]
        yield Group(members[0].prompt, tuple(responses)), False


def _outcome(
    judge: Judge, case: Case, verdicts: dict[tuple[str, bool], Verdict], correct_at: float, tolerance: float
) -> Outcome:
    seen = tuple(verdicts[response.id, False] for response in case.responses)
    if case.kind == "pair":
        preference = _preference(*seen)
        orders: tuple[Preference, ...] = ()
        if not isinstance(judge, PointwiseJudge):
            other = _preference(*(verdicts[response.id, True] for response in case.responses))
            orders, preference = (preference, other), _effective(judge, case, preference, other)
        winner = _winner(preference)
        return Outcome(case, winner, winner == "chosen", preference.why, seen, orders)
    (verdict,) = seen
    if verdict.score is None:
        return Outcome(case, verdict.kind, case.wanted == verdict.kind == "abstain", verdict.why, seen)
    if isinstance(case.wanted, float):
        return Outcome(case, "score", abs(verdict.score - case.wanted) <= tolerance, verdict.why, seen)
    decision: Decision = "right" if verdict.score >= correct_at else "wrong"
    return Outcome(case, decision, decision == case.wanted, verdict.why, seen)


def _preference(chosen: Verdict, rejected: Verdict) -> Preference:
    """The preference for the chosen response from two verdicts; a pairwise judge's win rate is the probability."""
    for verdict in sorted((chosen, rejected), key=lambda verdict: verdict.kind != "error"):
        if verdict.kind != "score":
            return Preference(verdict.kind, None, verdict.why)
    assert chosen.score is not None
    assert rejected.score is not None
    why = "; ".join(dict.fromkeys(verdict.why for verdict in (chosen, rejected) if verdict.why))
    if "beats 1" in chosen.parts or "beats 0" in chosen.parts:
        return Preference.of(chosen.score, why)
    return Preference.of((1 + (chosen.score > rejected.score) - (chosen.score < rejected.score)) / 2, why)


def _effective(judge: Judge, case: Case, one: Preference, other: Preference) -> Preference:
    """The preference that a campaign would use: from both orders, or from one, chosen by a hash of the text."""
    if isinstance(judge, PairwiseJudge) and judge.both_orders:
        return both(one, other)[0]
    return (one, other)[zlib.crc32(case.responses[0].text.encode("utf-8", "surrogatepass")) % 2]


def _winner(preference: Preference) -> Decision:
    if preference.probability is None:
        return preference.kind
    return "chosen" if preference.probability > 0.5 else "rejected" if preference.probability < 0.5 else "tie"
