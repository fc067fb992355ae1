# A package of prefloop; loop/cli/start.py looks for this line.
"""Judges score responses; the contract to implement is in contract.py and pairwise.py. No training, no run folders."""

from judges.contract import Judge, PointwiseJudge
from judges.pairwise import Game, PairwiseJudge, Preference
from judges.resolve import build_judge
from judges.run import judge_groups
from judges.trial.selftest import self_test
from judges.types import Example, Group, JudgeError, Prompt, Response, Thinking, Verdict
from judges.versions import fingerprint

__all__ = [
    "Example",
    "Game",
    "Group",
    "Judge",
    "JudgeError",
    "PairwiseJudge",
    "PointwiseJudge",
    "Preference",
    "Prompt",
    "Response",
    "Thinking",
    "Verdict",
    "build_judge",
    "fingerprint",
    "judge_groups",
    "self_test",
]
