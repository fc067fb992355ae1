"""Compare greedy answers of the base model and the incumbent on the same test prompts, with differences marked."""

import difflib
import re
from dataclasses import dataclass

from markupsafe import Markup, escape

from loop.report.data import RunData
from loop.view.show import collect_prompts

EXAMPLES = 6
"""Number of examples shown of each kind."""

EVERYTHING = 10**9
"""More prompts than any test set holds."""

LONGEST = 1200
"""Characters shown of a text in an example."""

WORDS = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer with its verdict."""

    text: str
    right: bool
    why: str


@dataclass(frozen=True, slots=True)
class Example:
    """A test prompt whose verdict changed; `before` and `after` have their differences marked."""

    prompt_id: str
    prompt: str
    target: str | None
    won: bool
    before: Markup
    after: Markup
    why_before: str
    why_after: str


@dataclass(frozen=True, slots=True)
class Changes:
    """How greedy test answers changed from the base model to the incumbent."""

    iteration: int
    won: int
    lost: int
    same_text: int
    prompts: int
    examples: list[Example]


def changes(data: RunData) -> Changes | None:
    """None if nothing was promoted, or the two models share no greedy answers."""
    if not data.best:
        return None
    before, after = _greedy(data, 0), _greedy(data, data.best)
    both = sorted(before.keys() & after.keys())  # ids are hashes, so this order is unrelated to the data's
    if not both:
        return None
    won = [id for id in both if after[id][1].right and not before[id][1].right]
    lost = [id for id in both if before[id][1].right and not after[id][1].right]
    shown = [*won[:EXAMPLES], *lost[:EXAMPLES]]
    same = sum(before[id][1].text == after[id][1].text for id in both)
    examples = [_example(id, before[id], after[id]) for id in shown]
    return Changes(data.best, len(won), len(lost), same, len(both), examples)


def _greedy(data: RunData, k: int) -> dict[str, tuple[dict[str, str | None], Answer]]:
    """Prompt, target and greedy answer by prompt id, where the answer has a score."""
    correct_at, found = data.correct_at, {}
    for prompt in collect_prompts(data.run, k, "test", None, EVERYTHING):
        for response in prompt["responses"]:
            verdict = response["verdict"]
            if response["temperature"] == 0 and verdict is not None and verdict["kind"] == "score":
                answer = Answer(response["text"], verdict["score"] >= correct_at, verdict["why"] or "")
                found[prompt["prompt_id"]] = ({"prompt": prompt["prompt"], "target": prompt["target"]}, answer)
    return found


def _example(
    id: str, before: tuple[dict[str, str | None], Answer], after: tuple[dict[str, str | None], Answer]
) -> Example:
    row, old, new = before[0], before[1], after[1]
    marked = marked_difference(cut(old.text), cut(new.text))
    return Example(id, cut(row["prompt"] or ""), row["target"], new.right, *marked, old.why, new.why)


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
