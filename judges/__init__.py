"""Room judges: text in, verdict out. Knows nothing of training or run folders.

contract.py       Prompt, Response, Group, Verdict; Judge and PointwiseJudge to derive from; judge_groups
pairwise.py       Preference, Game; PairwiseJudge to derive from: games in both orders become win rates
games.py          who plays whom: everyone, a sample, a tournament
resolve.py        from a name in the config to a judge, and a judge's fingerprint
selftest.py       a judge's known right and wrong examples, and the user's, run before a campaign
catalog.py        which judges are installed, in words
labelled.py       labelled examples: files to cases
versions.py       what makes two verdicts comparable
trial.py          a judge on labelled examples: what it said of each
report.py         agreement, calibration, biases: what a trial comes to
external.py       judge "external": people; what to label, and labels to verdicts
label_page.py     the page on which people label, from its template label_page.html
handed.py         what the loop hands to a judge: store, models, progress
found.py          models by name, for a judge that runs alone
reward_model.py   judge "reward-model"
classifier.py     judge "classifier"
preference_model.py  judge "preference-model"
model_judge.py    what these share: arguments; items become scores
log_prob.py       judge "log-prob", and what measures with models that the loop holds
implicit_reward.py  judge "implicit-reward"
classification.py the model behind them: texts to logits, in batches
remember.py       one verdict per content, given once
llm_grade.py      judge "llm-grade"
llm_compare.py    judge "llm-compare"
llm.py            what both share: arguments; questions become replies
llm_question.py   one question: prompt and responses as texts
llm_template.py   templates, and the marks around foreign text
llm_verdict.py    the verdict in a reply, read strictly
templates/        the questions, as text files
asking.py         many requests: concurrency, retries, deadlines
api.py            one request: the only file with a network
budget.py         what a judge may spend
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
from judges.pairwise import Game, PairwiseJudge, Preference
from judges.resolve import build_judge
from judges.selftest import self_test
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
    "Verdict",
    "build_judge",
    "fingerprint",
    "judge_groups",
    "self_test",
]
