"""Reads the verdict in a model's reply: the last line `Verdict 5e1f0a93: B` (the code is unique to the request, so a
candidate cannot be quoted as one), or the `verdict` of a JSON object. Only an allowed word or number counts."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from judges.context import Reply
from judges.types import USUAL

Form = Literal["line", "json"]
JsonSchema = dict[str, Any]
"""A JSON schema as an endpoint or engine takes it."""
TOKENS_AROUND_REASONING = 32
"""Tokens of the JSON object besides the reasoning."""


@dataclass(frozen=True, slots=True)
class Words:
    """A verdict that is one of several words, each with its value."""

    values: dict[str, float]

    def read(self, answer: str) -> float | None:
        return {word.casefold(): value for word, value in self.values.items()}.get(answer.casefold())

    @property
    def meaning(self) -> str:
        *most, last = self.values
        return f"is {', '.join(most)} or {last}"

    @property
    def schema(self) -> JsonSchema:
        return {"type": "string", "enum": list(self.values)}


@dataclass(frozen=True, slots=True)
class Numbers:
    """A verdict that is a number on a scale."""

    low: float
    high: float

    def read(self, answer: str) -> float | None:
        number = float(answer) if re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,9})?", answer) else None
        return number if number is not None and self.low <= number <= self.high else None

    @property
    def meaning(self) -> str:
        return f"is a number from {self.low:g} (worst) to {self.high:g} (best)"

    @property
    def schema(self) -> JsonSchema:
        return {"type": "number", "minimum": self.low, "maximum": self.high}


Scale = Words | Numbers


def instruction(scale: Scale, form: Form, code: str) -> str:
    """How the reply must end."""
    if form == "json":
        return (
            'Reply with one JSON object and nothing else: {"reasoning": "…", "verdict": X}. First reason briefly; '
            f"X {scale.meaning}."
        )
    return (
        "Reason briefly. Then end your reply with one line of exactly this form, without any markup:\n"
        f"Verdict {code}: X\nwhere X {scale.meaning}."
    )


def response_format(scale: Scale) -> JsonSchema:
    """The `response_format` of a request for structured output."""
    return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema_of(scale)}}


def schema_of(scale: Scale, most_tokens: int | None = None) -> JsonSchema:
    """The JSON schema of a verdict; `most_tokens` limits the reasoning, for engines that support it."""
    reasoning: JsonSchema = {"type": "string"}
    if most_tokens is not None:
        reasoning["maxLength"] = max(0, most_tokens - TOKENS_AROUND_REASONING)
    properties = {"reasoning": reasoning, "verdict": scale.schema}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Read:
    """The value read, or None and why; `reasoning` is one line for a person."""

    value: float | None
    why: str = ""
    reasoning: str = ""


def read_reply(reply: Reply, scale: Scale, form: Form, code: str, judged: Sequence[str] = ()) -> Read:
    """Read the verdict of a reply on the texts `judged`. A reply that was cut off has none: `7` may be the start of
    `70`."""
    if reply.finish_reason != "stop":
        return Read(None, f"the judge's reply ended early ({reply.finish_reason})")
    spoken = USUAL.answer(reply.text)
    if spoken is None:  # a thought that is not closed, or a reply that only names the tag
        spoken = "" if reply.text.lstrip().startswith(USUAL.open) else reply.text
    text = spoken.strip()
    answer, reasoning = _from_json(text, judged) if form == "json" else _from_line(text, code)
    if answer is None:
        return Read(None, f"garbage verdict: {reasoning}: {_one_line(text) or 'an empty reply'}")
    value = scale.read(answer)
    if value is None:
        return Read(None, f"garbage verdict: {_one_line(answer)!r}, where the verdict {scale.meaning}")
    return Read(value, "", _one_line(reasoning))


def _from_line(text: str, code: str) -> tuple[str | None, str]:
    """The content of the last verdict line, and the text before it."""
    lines = list(re.finditer(rf"^[ \t*]*Verdict {code}:(.*)$", text, re.MULTILINE))
    if not lines:
        return None, "no verdict line"
    return lines[-1][1].strip(" \t*"), text[: lines[-1].start()]


def _from_json(text: str, judged: Sequence[str]) -> tuple[str | None, str]:
    """The value of `verdict` as text, and that of `reasoning`, of the one object with a verdict, which may stand in a
    fence or a sentence. An object among other text counts only if no judged text holds it: it may be a quotation."""
    alone = re.sub(r"\A```\w*\s*(.*?)\s*```\Z", r"\1", text, flags=re.DOTALL)
    try:
        found = dict(_objects(text))
    except (ValueError, RecursionError) as error:
        return None, f"no JSON object ({_one_line(str(error))[:80]})"
    known = [_squeezed(one) for one in judged]
    own = [o for source, o in found.items() if source == alone or not any(_squeezed(source) in one for one in known)]
    answers = {str(one["verdict"]).strip(): one for one in own if _is_plain(one.get("verdict"))}
    if not answers:
        return None, "no verdict in the JSON" if found else "no JSON object"
    if len(answers) > 1:
        return None, "several verdicts in the JSON"
    answer, one = answers.popitem()
    return answer, str(one.get("reasoning", ""))


def _objects(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects in a text, without those inside others, each with its source."""
    at = 0
    while (start := re.compile(r'\{\s*"').search(text, at)) is not None:
        try:
            found, at = DECODER.raw_decode(text, start.start())
        except json.JSONDecodeError:
            at = start.start() + 1
        else:
            yield text[start.start() : at], found


def _is_plain(answer: Any) -> bool:
    return isinstance(answer, (str, int, float)) and not isinstance(answer, bool)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)


DECODER = json.JSONDecoder(object_pairs_hook=_without_repetition)


def _one_line(text: str) -> str:
    text = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return text if len(text) <= 200 else f"…{text[-200:]}"
