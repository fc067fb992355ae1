"""Room judges, judge "length": is a response as long as asked? Counted in characters or words; the text is not read.

Alone it only shapes length; as a part of `combine` it keeps another judge from being won by talk.
"""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from judges.contract import Example, PointwiseJudge, Prompt, Response, Verdict


class Length(PointwiseJudge):
    """1 for a length between `least` and `most`; outside it 0, or less the farther away."""

    version: ClassVar[str] = "1"
    examples: ClassVar[tuple[Example, ...]] = (
        Example.on(None, "one two three", 1.0, {"most": 3}),
        Example.on(None, "one two three four", 0.0, {"most": 3}),
        Example.on(None, "one", 0.5, {"least": 3, "slope": 4}),
        Example.on(None, "abc", 1.0, {"unit": "characters", "least": 3, "most": 3}),
    )

    unit: Literal["words", "characters"] = "words"
    """What is counted: words (what white space separates; an English token is about 0.75 of one), or characters."""

    least: int = Field(default=0, ge=0)
    """The shortest length that earns the full score."""

    most: int | None = Field(default=None, ge=0)
    """The longest length that earns the full score; none: any."""

    slope: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """So many units outside the range cost 1, twice as many cost 2 and so on; none: outside is 0."""

    @model_validator(mode="after")
    def _some_range(self) -> "Length":
        if self.most is None and self.least == 0:
            raise ValueError("give least, most or both; without them every length is right")
        if self.most is not None and self.most < self.least:
            raise ValueError(f"no length is at least {self.least} and at most {self.most}")
        return self

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        length = len(response.text.split()) if self.unit == "words" else len(response.text)
        outside = max(self.least - length, 0 if self.most is None else length - self.most, 0)
        why = f"{length} {self.unit}"
        if outside == 0:
            return Verdict("score", 1.0, None, why)
        return Verdict("score", 0.0 if self.slope is None else 1.0 - outside / self.slope, None, why)
