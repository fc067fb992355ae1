"""Judges score responses. This package knows nothing of training or run folders.

contract.py       Prompt, Response, Group, Verdict; Judge and PointwiseJudge to derive from; judge_groups
pairwise.py       Preference, Game; PairwiseJudge to derive from: games in both orders become win rates
games.py          game schedules: round robin, sampled, tournament
resolve.py        builds a judge from its name and arguments in the config
selftest.py       runs a judge's own examples and the user's before a campaign
catalog.py        describes the installed judges
labelled.py       reads labelled examples from a file
versions.py       fingerprints: whether two verdicts are comparable
trial.py          runs a judge on labelled examples
report.py         agreement, calibration and biases measured by a trial
external.py       judge "external": people; the labelling sheet, and labels to verdicts
label_page.py     the page on which people label, from its template label_page.html
handed.py         what the loop provides to a judge: store, models, progress
found.py          finds models in local folders, for a judge used outside a campaign
reward_model.py   judge "reward-model"
classifier.py     judge "classifier"
preference_model.py  judge "preference-model"
model_judge.py    base of these three: arguments, scoring
log_prob.py       judge "log-prob", and the base of judges that use the loop's models
implicit_reward.py  judge "implicit-reward"
classification.py the model behind the three: texts to logits, in batches
remember.py       the verdict cache
llm_grade.py      judge "llm-grade"
llm_compare.py    judge "llm-compare"
llm.py            base of both: arguments, questions, replies
llm_question.py   one question: prompt and responses as texts
llm_template.py   templates, and the marks around foreign text
llm_verdict.py    strict parser for the verdict in a reply
templates/        the questions, as text files
asking.py         many requests: concurrency, retries, deadlines
api.py            one request: the only file that uses the network
budget.py         spending limits of a judge
numerals.py       exact parser for numbers as people write them
markers.py        explicit final answers: `#### 18`, `\\boxed{18}`, "the answer is 18"
gsm8k.py          judge "gsm8k"
text.py           judges "exact", "contains", "regex", "number"
letters.py        reads the final letter of a response
choice.py         judge "multiple-choice"
length.py         judge "length"
structure.py      judge "format"
maths.py          judge "math"
reasoning_gym.py  judge "reasoning-gym"
combine.py        judge "combine": several judges, one verdict
combine_rules.py  its rules: sum, gates, majority, fallback
scales.py         scores on a common scale
isolated.py       runs foreign code in child processes that can be killed
child.py          the parent's side of a child process
child_main.py     entry point of a child process
stdout.py         sends a judge's prints to stderr
"""

from judges.contract import Judge, PointwiseJudge
from judges.pairwise import Game, PairwiseJudge, Preference
from judges.resolve import build_judge
from judges.run import judge_groups
from judges.trial.selftest import self_test
from judges.types import Example, Group, JudgeError, Prompt, Response, Verdict
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
