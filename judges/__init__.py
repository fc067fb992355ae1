"""Room judges: text in, verdict out. Knows nothing of training or run folders.

contract.py       Prompt, Response, Group, Verdict; Judge and PointwiseJudge to derive from; judge_groups
resolve.py        from a name in the config to a judge, and a judge's fingerprint
selftest.py       a judge's known right and wrong examples, run before a campaign
numerals.py       numbers as people write them, read exactly
markers.py        explicit final answers: `#### 18`, `\\boxed{18}`, "the answer is 18"
gsm8k.py          judge "gsm8k"
text.py           judges "exact", "contains", "regex", "number"
letters.py        the letter that a response settles on
choice.py         judge "multiple-choice"
length.py         judge "length"
structure.py      judge "format"
maths.py          judge "math"
reasoning_gym.py  judge "reasoning-gym"
combine.py        judge "combine": several judges, one verdict
combine_rules.py  its rules: sum, gates, majority, fallback
scales.py         scores on a common scale
isolated.py       judges of foreign code, in child processes that may be ended
child.py          one child as its parent sees it
child_main.py     the inside of a child
stdout.py         what a judge prints goes to stderr
"""

from judges.contract import Example, Group, Judge, JudgeError, PointwiseJudge, Prompt, Response, Verdict, judge_groups
from judges.resolve import build_judge, fingerprint
from judges.selftest import self_test

__all__ = [
    "Example",
    "Group",
    "Judge",
    "JudgeError",
    "PointwiseJudge",
    "Prompt",
    "Response",
    "Verdict",
    "build_judge",
    "fingerprint",
    "judge_groups",
    "self_test",
]
