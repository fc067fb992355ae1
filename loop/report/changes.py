"""Compare greedy answers of the base model and the incumbent on the same test prompts, with differences marked."""

import difflib
import re
from dataclasses import dataclass

from markupsafe import Markup, escape

from loop.report.data import RunData
from loop.view.prompt_records import GreedyAnswer, greedy_answers

EXAMPLES = 6
"""Number of examples of each kind."""
LONGEST = 1200
"""Length in characters at which the text of an example is cut."""
WORDS = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class MarkedAnswers:
    """A test prompt that only one of two models answers right, with the differences of the answers marked."""

    prompt: str
    first_right: bool
    first: Markup
    second: Markup
    why_first: str
    why_second: str


@dataclass(frozen=True, slots=True)
class Changes:
    """How greedy test answers changed from the base model to the incumbent."""

    iteration: int
    won: int
    lost: int
    same_text: int
    prompts: int
    examples: list[MarkedAnswers]


def changes(data: RunData) -> Changes | None:
    """The changes; None if nothing was promoted, or the two models have no prompt with greedy answers in common."""
    if not data.best:
        return None
    before, after = (greedy_answers(data.run, k, data.correct_at) for k in (0, data.best))
    both = sorted(before.keys() & after.keys())  # ids are hashes, so this order is unrelated to the data's
    if not both:
        return None
    won = [id for id in both if after[id].right and not before[id].right]
    lost = [id for id in both if before[id].right and not after[id].right]
    same = sum(before[id].text == after[id].text for id in both)
    examples = [marked_answers(before[id], after[id]) for id in (*won[:EXAMPLES], *lost[:EXAMPLES])]
    return Changes(data.best, len(won), len(lost), same, len(both), examples)


def marked_answers(first: GreedyAnswer, second: GreedyAnswer) -> MarkedAnswers:
    """Two answers to one prompt, side by side."""
    texts = marked_difference(cut(first.text), cut(second.text))
    return MarkedAnswers(cut(first.prompt), first.right, *texts, first.why or "", second.why or "")


def cut(text: str) -> str:
    """The first LONGEST characters, with an ellipsis if some are left out."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def marked_difference(before: str, after: str) -> tuple[Markup, Markup]:
    """Both texts, escaped, with words unique to one side in <del> or <ins>."""
    old, new = WORDS.findall(before), WORDS.findall(after)
    steps = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    left = Markup("").join(_marked("del", "".join(old[a:b]), tag != "equal") for tag, a, b, _, _ in steps)
    right = Markup("").join(_marked("ins", "".join(new[c:d]), tag != "equal") for tag, _, _, c, d in steps)
    return left, right


def _marked(tag: str, text: str, differs: bool) -> Markup:
    return Markup(f"<{tag}>{escape(text)}</{tag}>") if differs and text else escape(text)
