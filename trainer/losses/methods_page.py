"""Generate docs/methods.md from the table of losses: `python -m trainer.losses.methods_page`. No torch here."""

from collections.abc import Iterator
from typing import get_args

from pydantic.fields import FieldInfo

from trainer.losses.method import Method, Need
from trainer.losses.table import METHODS

INTRODUCTION = """\
# Methods

<!-- Written by `make docs` from the rows in trainer/losses/. Change those, not this page. -->

Every loss that prefloop can train with, by its name in the config. A loss is defined on one of three relations:
**pairs** (chosen and rejected response), **singles** (one response with a label or a score) or **groups** (several
responses to a prompt, with an order or scores). The last column says where the paper and known implementations
disagree, and which of them prefloop follows.

Below, `logp` is a response's log-prob under the policy, summed over its `n` tokens; a *log-ratio* is `logp` minus the
same sum under the reference, and the *margin* is the chosen response's log-ratio minus the rejected one's. Losses are
averaged over the relations of a whole optimizer step. [training.md](training.md) shows how to sum losses and how to
write your own.
"""
HEADER = """\
| name | relation | what it does | paper | needs | arguments | known disagreements |
|---|---|---|---|---|---|---|
"""
NEED_IN_WORDS: dict[Need, str] = {
    "reference": "log-probs under the reference",
    "tokens": "log-probs of single tokens",
    "sequence_kl": "KL between reference and policy over the whole vocabulary; the reference stays in memory",
    "collision": "the policy's squared probabilities, summed over the vocabulary",
    "value": "a value network, trained together with the policy",
    "moving_reference": "a reference that follows the policy during the round and stays in memory",
    "scores": "the judge's scores",
    "shares": "scores from 0 to 1",
    "win_rates": "each response's win rate over the prompt's responses",
    "probability": "the probability that the chosen response is preferred",
    "margin": "how much better the chosen response is",
    "origin": "which of the two responses was sampled from the reference",
    "labels": "a label, good or bad",
    "mismatched": "responses of other prompts, scored after this one",
    "step": "all relations of the optimizer step at once",
    "random": "its own random draws",
}
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def page() -> str:
    """The whole page as Markdown."""
    return f"{INTRODUCTION}\n{HEADER}" + "".join(_row(name, method) for name, method in METHODS.items())


def _row(name: str, method: Method) -> str:
    needs = ", ".join(NEED_IN_WORDS[need] for need in get_args(Need) if need in method.needs)
    arguments = "<br>".join(_argument(key, field) for key, field in method.settings.model_fields.items())
    cells = (f"`{name}`", method.kind, method.about, method.paper, needs or "–", arguments or "–", method.notes or "–")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _argument(name: str, field: FieldInfo) -> str:
    """Name, default, what else it may be, meaning."""
    allowed = ", ".join(_allowed(field))
    return f"`{name}` = `{_plain(field.default)}`{f' ({allowed})' if allowed else ''}: {field.description}"


def _allowed(field: FieldInfo) -> Iterator[str]:
    """The bounds of a number, or the other words of a choice."""
    for limit in field.metadata:
        yield from (f"{sign} {getattr(limit, key):g}" for key, sign in BOUNDS.items() if hasattr(limit, key))
    others = [f"`{word}`" for word in get_args(field.annotation) if word != field.default]
    if others:
        yield "or " + ", ".join(others)


def _plain(default: float | bool | str) -> str:
    """A default as it is written in YAML."""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else default


if __name__ == "__main__":
    print(page(), end="")
