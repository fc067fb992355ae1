"""Command `prefloop judge new`: writes a judge file and its test."""

import keyword
import re
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from judges.registry import BUILT_IN
from loop.errors import UserError
from loop.store.locate import check_name

Kind = Literal["pointwise", "pairwise", "group"]

POINTWISE = '''\
"""Judge CLASS: does the response hold the known answer, in few words?"""

from judges import Example, PointwiseJudge, Prompt, Response, Verdict


class CLASS(PointwiseJudge):
    """Right if the response holds the known answer and is short."""

    words: int = 50
    """Longest response that counts, as a number of words; higher allows longer answers."""

    examples = (Example.on("Paris", "It is Paris.", 1.0), Example.on("Paris", "It is Rome.", 0.0))

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        if prompt.target is None:
            return Verdict.abstain("the prompt has no known answer")
        answer = response.answer or ""  # the text after the model's thought
        short = len(answer.split()) <= self.words
        return Verdict.of(short and prompt.target in answer, why="" if short else "too long")
'''

PAIRWISE = '''\
"""Judge CLASS: which of two responses is better?"""

from judges import Example, PairwiseJudge, Preference, Prompt, Response


class CLASS(PairwiseJudge):
    """The one that holds the known answer; of two that do, or two that do not, the shorter one."""

    examples = (Example(Prompt("capital", (), "Paris", {}), "It is Paris.", 1.0, against="Rome."),)

    def compare(self, prompt: Prompt, first: Response, second: Response) -> Preference:
        if prompt.target is None:
            return Preference.abstain("the prompt has no known answer")
        answers = (first.answer or "", second.answer or "")  # the texts after the model's thoughts
        a, b = ((prompt.target in answer, -len(answer)) for answer in answers)
        return Preference.of(0.5 if a == b else a > b)
'''

GROUP = '''\
"""Judge CLASS: does a response say what most responses to its prompt say?"""

from collections import Counter
from collections.abc import Sequence

from judges import Example, Group, Judge, Verdict


class CLASS(Judge):
    """Right if the response's last word is the one that most responses end with; abstains if none leads."""

    examples = (Example.on(None, "It is Paris.", None),)

    def __call__(self, groups: Sequence[Group]) -> list[list[Verdict]]:
        return [self._judge([_last_word(response.answer or "") for response in g.responses]) for g in groups]

    def _judge(self, answers: list[str]) -> list[Verdict]:
        (top, votes), *others = Counter(answers).most_common()
        if votes == 1 or (others and others[0][1] == votes):
            return [Verdict.abstain("no answer leads") for _ in answers]
        return [Verdict.of(answer == top, extracted=answer) for answer in answers]


def _last_word(answer: str) -> str:
    return answer.strip(" .\\n").rpartition(" ")[2]
'''

TEST = '''\
"""The judge CLASS on cases whose answer is known. Run with: pytest FILE_TEST"""

from pathlib import Path

from judges import Group, Prompt, Response, build_judge, judge_groups, self_test

JUDGE = build_judge("FILE:CLASS", {}, base_dir=Path(__file__).parent)


def scores(target: str | None, *texts: str) -> list[float | None]:
    """What the judge says of texts as responses to one prompt; None where it gives no score."""
    responses = tuple(Response(str(number), text, "stop") for number, text in enumerate(texts))
    (verdicts,) = judge_groups(JUDGE, [Group(Prompt("prompt", (), target, {}), responses)])
    return [verdict.score for verdict in verdicts]


def test_the_judge_gets_its_own_examples_right() -> None:
    assert self_test(JUDGE) > 0


def test_better_and_worse_responses_are_told_apart() -> None:
    assert scores("Paris", *BETTER) == SCORES


def test_the_judge_abstains_where_it_cannot_tell() -> None:
    assert scores(None, "It is Paris.", "It is Rome.") == [None, None]
'''

TEXTS = {"pointwise": POINTWISE, "pairwise": PAIRWISE, "group": GROUP}
BETTER = {
    "pointwise": (("It is Paris.", "It is Rome."), [1.0, 0.0]),
    "pairwise": (("It is Paris.", "It is Rome."), [1.0, 0.0]),
    "group": (("It is Paris.", "Paris", "It is Rome."), [1.0, 1.0, 0.0]),
}
"""Responses to a prompt with the answer "Paris", and the scores they get."""


class NewJudgeFiles(NamedTuple):
    """The two files, and the class in the first."""

    judge: Path
    test: Path
    kind: str


def write_judge(name: str, kind: Kind, folder: Path) -> NewJudgeFiles:
    """Write NAME.py and test_NAME.py. UserError if the name cannot be one, or if a file is there already."""
    stem = check_name(name, "a judge").replace("-", "_")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", stem) or keyword.iskeyword(stem):
        raise UserError(f"A judge cannot be called {name!r}; take letters, digits, - and _, a letter first.")
    if stem in sys.stdlib_module_names or name in BUILT_IN:
        taken = "judge that comes with prefloop" if name in BUILT_IN else "module of Python's"
        raise UserError(f"{name!r} is the name of a {taken}; take another one, e.g. my-{name}.")
    class_name = "".join(part[:1].upper() + part[1:] for part in stem.split("_"))
    judge, test = folder / f"{stem}.py", folder / f"test_{stem}.py"
    if there := [str(path) for path in (judge, test) if path.exists()]:
        exist = "exist" if len(there) > 1 else "exists"
        raise UserError(f"{' and '.join(there)} {exist} already; nothing was written. Take another name or --dir.")
    better, scores = BETTER[kind]
    texts = {
        judge: TEXTS[kind],
        test: TEST.replace("*BETTER", ", ".join(f'"{text}"' for text in better)).replace("SCORES", str(scores)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        filled = text.replace("FILE_TEST", test.name).replace("FILE", judge.name).replace("CLASS", class_name)
        path.write_text(filled, encoding="utf-8")
    return NewJudgeFiles(judge, test, class_name)


def what_next(written: NewJudgeFiles) -> str:
    """What to do with the files."""
    name = f"{written.judge}:{written.kind}"
    return (
        f"Wrote {written.judge} and {written.test}.\n\n"
        f"Change the judge, and try it:\n"
        f"  pytest {written.test}\n"
        f"  prefloop judge test {name} --data LABELLED.jsonl\n\n"
        f"Use it in a campaign's YAML file:\n"
        f'  judge:\n    name: "{name}"'
    )
