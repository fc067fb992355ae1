"""Reads the templates of LLM judges and fills them into messages. A candidate's text stands verbatim between marks with
a code, `<response 5e1f0a93>`: a hash over all that the verdict depends on, so that a text cannot forge a mark."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from judges.context import Messages
from judges.types import Prompt, Response

FOLDER = Path(__file__).parent / "templates"
"""The templates that come with prefloop."""

HEADING = re.compile(r"^\[(system|user|assistant)\][ \t]*$", re.MULTILINE)
SLOT = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
COLUMN = re.compile(r"columns\[([^\[\]]+)\]")
ALWAYS = ("question", "verdict")
OPTIONAL = ("rubric", "reference", "code")


@dataclass(frozen=True, slots=True)
class Template:
    """A checked template; `digest` is the sha256 of the file."""

    messages: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    uses_reference: bool
    digest: str

    def fill(self, values: Mapping[str, str]) -> Messages:
        """The messages for one question, without paragraphs that hold only empty slots."""
        return [{"role": role, "content": _filled(text, values)} for role, text in self.messages]


def read_template(name: str, responses: tuple[str, ...]) -> Template:
    """A template of prefloop by name, or a file by path; `responses` are its required slots. Raises ValueError."""
    shipped = sorted(path.stem for path in FOLDER.glob("*.txt"))
    path = FOLDER / f"{name}.txt" if name in shipped else Path(name).expanduser()
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"the template {name!r} cannot be read ({getattr(error, 'strerror', None) or error}); give the path of a "
            f"text file or the name of a template that comes with prefloop: {', '.join(shipped)}"
        ) from None
    slots = _slots(source, name, (*ALWAYS, *responses))
    columns = tuple(sorted({match[1] for slot in slots if (match := COLUMN.fullmatch(slot))}))
    digest = hashlib.sha256(source.encode("utf-8")).hexdigest()
    return Template(_messages(source, name), columns, "reference" in slots, digest)


def _slots(source: str, name: str, required: tuple[str, ...]) -> set[str]:
    """The names in braces; ValueError for an unknown or missing name or a single brace."""
    found = [(match[0], match[1]) for match in SLOT.finditer(source)]
    slots = {slot for _, slot in found if slot is not None}
    known = [*required, *OPTIONAL, "columns[NAME]"]
    unknown = sorted(s for s in slots if s not in (*required, *OPTIONAL) and not COLUMN.fullmatch(s))
    missing = [slot for slot in required if slot not in slots]
    what = [f"has no {{{slot}}}" for slot in missing] + [f"uses {{{slot}}}, which is unknown" for slot in unknown]
    if any(text in ("{", "}") for text, _ in found):
        what.append("has a single brace (write a literal brace twice, {{ or }})")
    if what:
        raise ValueError(
            f"the template {name!r} {', '.join(what)}; it must hold {_listed(required)} and may hold "
            f"{_listed(known[len(required) :])}"
        )
    return slots


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


def _messages(source: str, name: str) -> tuple[tuple[str, str], ...]:
    """(role, text) for each heading; ValueError unless the file begins with one and its last message is the user's."""
    before, *parts = HEADING.split(source)
    messages = tuple((role, text.strip("\n")) for role, text in zip(parts[::2], parts[1::2], strict=True))
    if before.strip() or not messages or messages[-1][0] != "user":
        raise ValueError(
            f"the template {name!r} must begin with a line [system] or [user], and its last message must be the user's"
        )
    return messages


def _filled(text: str, values: Mapping[str, str]) -> str:
    """Fill the slots in one pass, so braces inside a value stay as they are."""
    paragraphs = (
        SLOT.sub(lambda match: match[0][0] if match[1] is None else values[match[1]], paragraph)
        for paragraph in re.split(r"\n{2,}", text)
    )
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph.strip())


def code_for(key: str, texts: Iterable[str]) -> str:
    """Eight hex digits that occur in none of the texts, derived from the key alone."""
    joined, code = "\0".join(texts), key[:8]
    while code in joined:
        code = hashlib.sha256(code.encode("ascii")).hexdigest()[:8]
    return code


def fenced(label: str, text: str, code: str) -> str:
    """The text, verbatim, between marks that it cannot contain."""
    return f"<{label} {code}>\n{text}\n</{label} {code}>"


CUT_OFF = "\n(It was cut off here, at its length limit.)"


@dataclass(frozen=True, slots=True)
class Question:
    """One request to the model about these responses, in this order; `vote` counts repeated requests."""

    prompt: Prompt
    responses: tuple[Response, ...]
    vote: int

    def code(self, key: str, columns: Sequence[str]) -> str:
        """The code for the marks: derived from the question's key, and in none of the texts that are shown."""
        shown = (str(self.prompt.columns.get(name)) for name in columns)
        texts = (response.text for response in self.responses)
        return code_for(key, [conversation(self.prompt), str(self.prompt.target), *shown, *texts])

    def shown(self, names: Sequence[str], code: str) -> list[str]:
        """The responses between their marks, with a note after one that was cut off."""
        return [
            fenced(name, response.text, code) + (CUT_OFF if response.finish_reason == "length" else "")
            for name, response in zip(names, self.responses, strict=True)
        ]


def conversation(prompt: Prompt) -> str:
    """The prompt as text: a single message's content, or all messages with their roles."""
    if len(prompt.messages) == 1:
        return prompt.messages[0]["content"]
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in prompt.messages)
