"""Judges "format" and "length": does the response have the required form and length?"""

import json
import re
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from judges.contract import PointwiseJudge
from judges.rules.text import checked_pattern
from judges.types import Example, Prompt, Response, Verdict, unclosed

Type = Literal["string", "number", "integer", "boolean", "array", "object", "null", "any"]


class Format(PointwiseJudge):
    """1 if the response meets every given condition, else 0."""

    examples: ClassVar[tuple[Example, ...]] = (
        Example.on(None, "<think>2 + 2</think>\n<answer>4</answer>", 1.0, {"tags": ["think", "answer"]}),
        Example.on(None, "<answer>4</answer> <think>2 + 2</think>", 0.0, {"tags": ["think", "answer"]}),
        Example.on(None, '{"answer": 4}', 1.0, {"keys": {"answer": "integer"}}),
        Example.on(None, '{"answer": "4"}', 0.0, {"keys": {"answer": "integer"}}),
        Example.on(None, "yes.", 0.0, {"pattern": "yes|no"}),
    )

    pattern: str | None = None
    """Regular expression that the whole response must match, ignoring white space around it; a dot also matches a line
    break."""

    tags: tuple[str, ...] = ()
    """Names of tags: each must open and close once, in this order, with only white space between and around them."""

    keys: dict[str, Type] = Field(default={})
    """The response must be one JSON object with these keys, each of the given type; `any` accepts every type."""

    more_keys: bool = True
    """Whether the JSON object may have other keys."""

    fenced: bool = False
    """Whether the JSON object may be inside a Markdown code block."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else checked_pattern(pattern, needs_answer=False)

    @field_validator("tags")
    @classmethod
    def _names(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        if bad := [tag for tag in tags if not re.fullmatch(r"[\w.-]+", tag)]:
            raise ValueError(f"name a tag without its brackets: think, not {bad[0]}")
        if len(set(tags)) < len(tags):
            raise ValueError("name each tag once")
        return tags

    @model_validator(mode="after")
    def _asks_for_something(self) -> "Format":
        if self.pattern is None and not self.tags and not self.keys:
            raise ValueError("give pattern, tags or keys; without them every response has the form")
        if self.pattern is not None or self.tags:
            _ = self._regexes  # compiled now, so that an unusable config is rejected
        return self

    @cached_property
    def _regexes(self) -> dict[str, re.Pattern[str]]:
        """The pattern that the whole response must match, by condition."""
        found = {} if self.pattern is None else {"pattern": re.compile(self.pattern, re.DOTALL)}
        if self.tags:
            found["tags"] = re.compile(r"\s*".join(map(_element, self.tags)), re.DOTALL)
        return found

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        if response.finish_reason != "stop":
            return Verdict("score", 0.0, None, "cut off", False)
        if response.answer is None:
            return unclosed()
        wrong = {}
        for name, regex in self._regexes.items():
            text = response.as_described_by(regex.pattern) or ""
            wrong[name] = "" if regex.fullmatch(text.strip()) else "no match"
        if self.keys:
            wrong["keys"] = self._json_fault(response.answer.strip())
        why = "; ".join(f"{name}: {fault}" for name, fault in wrong.items() if fault)
        return Verdict("score", float(not why), None, why, not why, {name: float(not f) for name, f in wrong.items()})

    def _json_fault(self, text: str) -> str:
        """Why the text is not the required JSON object; empty if it is."""
        fence = _FENCE.fullmatch(text) if self.fenced else None
        try:
            value = json.loads(fence["inside"] if fence else text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            return f"not JSON ({str(error)[:80]})"
        if not isinstance(value, dict):
            return f"JSON, but not an object: {text[:40]!r}"
        return self._key_fault(value)

    def _key_fault(self, value: dict[str, Any]) -> str:
        for key, kind in self.keys.items():
            if key not in value:
                return f"no key {key!r}"
            if not _has_type(value[key], kind):
                return f"{key!r} is not of type {kind}: {repr(value[key])[:40]}"
        others = sorted(value.keys() - self.keys.keys())
        return f"unknown key {others[0]!r}" if others and not self.more_keys else ""


_FENCE = re.compile(r"```(?:json)?\s*\n(?P<inside>.*)\n```", re.DOTALL)
_TYPES: dict[Type, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def _has_type(value: object, kind: Type) -> bool:
    """Whether a JSON value has the type; booleans are not numbers."""
    return kind == "any" or (isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)))


def _element(tag: str) -> str:
    """Pattern of one element: its own tag does not occur inside it."""
    name = re.escape(tag)
    return rf"<{name}>(?:(?!</?{name}>).)*</{name}>"


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


class Length(PointwiseJudge):
    """1 for an answer as long as `least` to `most`; outside that range 0, or less and less with `slope`."""

    examples: ClassVar[tuple[Example, ...]] = (
        Example.on(None, "one two three", 1.0, {"most": 3}),
        Example.on(None, "one two three four", 0.0, {"most": 3}),
        Example.on(None, "one", 0.5, {"least": 3, "slope": 4}),
        Example.on(None, "abc", 1.0, {"unit": "characters", "least": 3, "most": 3}),
    )

    unit: Literal["words", "characters"] = "words"
    """Unit of length: words (separated by white space; an English token is about 0.75 words) or characters."""

    least: int = Field(default=0, ge=0)
    """The shortest length that earns the full score."""

    most: int | None = Field(default=None, ge=0)
    """The longest length that earns the full score; default: no limit."""

    slope: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Number of units outside the range that cost 1 (twice as many cost 2); default: every length outside scores 0."""

    @model_validator(mode="after")
    def _some_range(self) -> "Length":
        if self.most is None and self.least == 0:
            raise ValueError("set least, most or both; without them every length is right")
        if self.most is not None and self.most < self.least:
            raise ValueError(f"no length is at least {self.least} and at most {self.most}")
        return self

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        text = response.text if response.answer is None else response.answer
        length = len(text.split()) if self.unit == "words" else len(text)
        outside = max(self.least - length, 0 if self.most is None else length - self.most, 0)
        score = float(outside == 0) if self.slope is None else 1.0 - outside / self.slope
        if response.answer is None:
            return replace(unclosed(), score=min(score, 0.0))
        return Verdict("score", score, None, f"{length} {self.unit}")
