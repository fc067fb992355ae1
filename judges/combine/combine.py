"""Judge "combine": asks several judges and combines their verdicts; a shadow part only adds its score to `parts`."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from judges.combine.rules import RULES, LengthPenalty, Part, PartVerdict, check_part, failure_of, parts_of, scored
from judges.combine.scales import rescaled
from judges.context import Usage
from judges.contract import Judge
from judges.resolve import build_judge
from judges.run import judge_groups
from judges.types import Example, Group, JudgeError, Response, Verdict
from judges.versions import fingerprint

_STRICT = {"judge": "gsm8k", "args": {"unparsable": "abstain"}}


class Combine(Judge):
    """Combines several judges: a weighted sum, gates, a majority vote, or the first that has a score."""

    examples: ClassVar[tuple[Example, ...]] = (
        Example.on("18", "#### 18", 1.5, {"parts": [_STRICT, {"judge": "length", "args": {"most": 9}, "weight": 0.5}]}),
        Example.on("18", "I cannot tell.", None, {"parts": [_STRICT, {"judge": "contains"}]}),
        Example.on("18", "I cannot tell.", 0.0, {"how": "fallback", "parts": [_STRICT, {"judge": "contains"}]}),
        Example.on("18", "#### 18", None, {"how": "majority", "parts": [{"judge": "gsm8k"}, {"judge": "exact"}]}),
    )

    parts: tuple[Part, ...]
    """The judges, each with `judge`, `args`, `name`, `weight`, `normalise`, `threshold`, `shadow`."""

    how: Literal["sum", "gates", "majority", "fallback"] = "sum"
    """`sum` of weighted scores; `gates`: that sum if every threshold is met; `majority` of 0/1 votes, a tie abstains;
    `fallback`: the first part that has a score."""

    failed: float = Field(default=0.0, allow_inf_nan=False)
    """With `how: gates`, the score of a response that misses a threshold; choose it below every passing score."""

    length_penalty: LengthPenalty | None = None
    """Penalty for long responses: `per_unit`, `free`, `unit`; not with `how: majority`."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "Combine":
        labels = [part.label for part in self.parts]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"two parts are named {twice[0]!r}: give each its own name")
        if all(part.shadow for part in self.parts):
            raise ValueError("parts: give at least one that is not a shadow")
        if self.how == "gates" and all(part.threshold is None for part in self.parts):
            raise ValueError("how: gates needs a part with a threshold")
        if self.how == "majority" and self.length_penalty is not None:
            raise ValueError("a majority is 0 or 1: remove length_penalty, or use how: sum")
        for part in self.parts:
            check_part(part, self.how)
        _ = self.judges  # built now, so that a part that cannot be built fails when the config loads
        return self

    @cached_property
    def judges(self) -> tuple[Judge, ...]:
        """The parts' judges; JudgeError if one cannot be built."""
        return tuple(build_judge(part.judge, part.args) for part in self.parts)

    @property
    def compares(self) -> bool:
        return super().compares or any(part.normalise != "none" for part in self.parts)

    def members(self) -> Sequence[Judge]:
        return self.judges

    def cost(self, usage: Usage) -> float | None:
        """Known if only one part is costly: usage is not split by part, and prices may differ."""
        paid = [*self.paid_for()]
        return paid[0].cost(usage) if len(paid) == 1 else None

    @property
    def content_version(self) -> str:
        """sha256 of the parts' fingerprints: their versions, source hashes and defaults."""
        prints = [fingerprint(judge, part.judge) for part, judge in zip(self.parts, self.judges, strict=True)]
        return hashlib.sha256(json.dumps(prints, sort_keys=True).encode("utf-8")).hexdigest()

    def __call__(self, groups: Sequence[Group]) -> list[list[Verdict]]:
        verdicts = self._ask_all(groups)
        return [self._group(group, [part[index] for part in verdicts]) for index, group in enumerate(groups)]

    def _ask_all(self, groups: Sequence[Group]) -> list[Sequence[Sequence[Verdict | None]]]:
        """Verdicts by part, group and response. Later parts of a fallback are asked only where a score is missing."""
        everything = [[True] * len(group.responses) for group in groups]
        undecided = everything
        verdicts: list[Sequence[Sequence[Verdict | None]]] = []
        for part, judge in zip(self.parts, self.judges, strict=True):
            later = self.how == "fallback" and not part.shadow
            answers = _ask(part, judge, groups, undecided if later else everything)
            if later:
                undecided = [[verdict is not None and verdict.score is None for verdict in row] for row in answers]
            verdicts.append(answers)
        return verdicts

    def _group(self, group: Group, verdicts: Sequence[Sequence[Verdict | None]]) -> list[Verdict]:
        """The verdicts of one prompt; `verdicts` is indexed by part and response."""
        scaled = [
            rescaled([None if verdict is None else verdict.score for verdict in row], part.normalise)
            for part, row in zip(self.parts, verdicts, strict=True)
        ]
        part_verdicts = [
            [
                PartVerdict(part, v, score)
                for part, v, score in zip(self.parts, row, scores, strict=True)
                if v is not None
            ]
            for row, scores in zip(zip(*verdicts, strict=True), zip(*scaled, strict=True), strict=True)
        ]
        return [self._one(response, row) for response, row in zip(group.responses, part_verdicts, strict=True)]

    def _one(self, response: Response, part_verdicts: Sequence[PartVerdict]) -> Verdict:
        """The verdict on one response, with every part's score in `parts`."""
        parts = parts_of(part_verdicts)
        counting = [one for one in part_verdicts if not one.part.shadow]
        if self.how != "fallback" and (failure := failure_of(counting)) is not None:
            return replace(failure, parts=parts)
        verdict = RULES[self.how](counting, self.failed)
        if verdict.score is not None and self.length_penalty is not None:
            loss = self.length_penalty.of(response.text if response.answer is None else response.answer)
            verdict = scored(verdict.score - loss, verdict.extracted, verdict.why, verdict.well_formed)
            parts["length_penalty"] = -loss
        return replace(verdict, parts=parts)


def _ask(
    part: Part, judge: Judge, groups: Sequence[Group], wanted: Sequence[Sequence[bool]]
) -> Sequence[Sequence[Verdict | None]]:
    """The part's verdicts on the wanted responses; None for the others, and for a shadow that fails entirely."""
    if part.shadow:
        with suppress(JudgeError):
            return judge_groups(judge, groups)
        return [[None] * len(group.responses) for group in groups]
    if all(map(all, wanted)):
        return judge_groups(judge, groups)
    chosen = [
        Group(group.prompt, tuple(r for r, want in zip(group.responses, row, strict=True) if want))
        for group, row in zip(groups, wanted, strict=True)
    ]
    answers = iter(judge_groups(judge, [group for group in chosen if group.responses]))
    found = [iter(next(answers) if group.responses else []) for group in chosen]
    return [[next(row) if want else None for want in wants] for row, wants in zip(found, wanted, strict=True)]
