"""What a page of the sample browser holds of a prompt and its responses."""

from dataclasses import dataclass

from loop.store.run_records import Json


@dataclass(frozen=True, slots=True)
class SampledRow:
    """The columns of a response that the browser shows."""

    prompt_id: str
    response_id: str
    temperature: float
    token_ids: list[int]
    text: str | None
    finish_reason: str
    logprobs: list[float] | None


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """The columns of a verdict that the browser shows."""

    response_id: str
    kind: str
    score: float | None
    extracted: str | None
    why: str | None
    well_formed: bool | None


@dataclass(frozen=True, slots=True)
class ResponseEntry:
    """A response on a page, with its verdict and why it was used in training or not."""

    sampled: SampledRow
    verdict: VerdictRow | None
    reason: str | None

    def as_json(self) -> Json:
        """Short names for the script: x text, g greedy, c cut off, p tokens, l log-probs (hundredths of a nat,
        negated), u reason, k kind, s score, e extracted, w why, f well formed."""
        row, verdict = self.sampled, self.verdict
        found: Json = {
            "x": row.text,
            "g": int(row.temperature == 0),
            "c": int(row.finish_reason == "length"),
            "p": row.token_ids,
            "l": [round(-100 * value) if value == value and value > -1e6 else None for value in row.logprobs or []],
            "u": self.reason,
        }
        if verdict is not None:
            found |= {"k": verdict.kind, "s": verdict.score, "e": verdict.extracted}
            found |= {"w": verdict.why, "f": verdict.well_formed}
        return {name: value for name, value in found.items() if value not in (None, "")} | {"x": row.text or ""}


@dataclass(frozen=True, slots=True)
class PromptEntry:
    """A prompt on a page."""

    id: str
    text: str
    target: str | None
    pairs: list[tuple[int, int]]
    """Places of the chosen and the rejected response; -1 for one that is not the prompt's own."""
    responses: list[ResponseEntry]

    def as_json(self) -> Json:
        """Short names for the script."""
        shown = [one.as_json() for one in self.responses]
        return {"id": self.id, "q": self.text, "t": self.target, "pairs": self.pairs, "r": shown}
