"""Measure how much there is to learn from an iteration (pure): one number for each way the training signal can dry up.
A prompt is mixed if it has right and wrong responses, by `pairs.correct_at`; abstentions and errors are neither. Shares
are over prompts unless stated otherwise, and each prompt counts once, however many responses it has."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from loop.pairing.records import Judged, Made


@dataclass(slots=True)
class Tally:
    """Running sums over an iteration; memory does not grow with the number of responses."""

    correct_at: float
    by_outcome: bool = True
    """Whether right and wrong matter whatever the scores are; if not, they do where there are two scores at most."""
    scores: set[float] = field(default_factory=set)
    """Scores that occur, up to three of them."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Prompts by outcome: mixed, all_right, all_wrong, unscored."""
    verdicts: Counter[str] = field(default_factory=Counter)
    not_asked: int = 0
    """Responses that nobody was asked about, which are abstentions, too."""
    lengths: Counter[int] = field(default_factory=Counter)
    truncated: int = 0
    solve_rates: float = 0.0
    """Summed over prompts that have any score."""
    different: int = 0
    tied: int = 0
    couples: int = 0
    """Couples of scored responses to one prompt, and how many of them have equal scores (`tied`)."""

    def watch(self, groups: Iterable[tuple[str, Sequence[Judged]]]) -> Iterator[tuple[str, Sequence[Judged]]]:
        """Pass groups on and count them on the way."""
        for prompt_id, responses in groups:
            self.add(responses)
            yield prompt_id, responses

    def add(self, responses: Sequence[Judged]) -> None:
        """Count one prompt."""
        scores = Counter(response.value for response in responses if response.kind == "score")
        scored = scores.total()
        if len(self.scores) < 3:
            self.scores.update(scores)
        right = sum(n for score, n in scores.items() if score >= self.correct_at)
        self.kinds[_outcome(right, scored)] += 1
        self.solve_rates += right / scored if scored else 0.0
        self.verdicts.update(response.kind for response in responses)
        self.not_asked += sum(response.not_asked for response in responses)
        self.lengths.update(response.length for response in responses)
        self.truncated += sum(response.finish_reason == "length" for response in responses)
        self.different += len({response.token_ids_key for response in responses})
        self.tied += sum(n * (n - 1) // 2 for n in scores.values())
        self.couples += scored * (scored - 1) // 2

    def numbers(self) -> dict[str, float | None]:
        """All numbers on the responses; None where the denominator is 0."""
        prompts, responses = self.kinds.total(), self.verdicts.total()
        solvable = prompts - self.kinds["unscored"]
        tokens = sum(length * n for length, n in self.lengths.items())
        outcomes = {
            "solve_rate": _share(self.solve_rates, solvable),
            **{kind: _share(self.kinds[kind], prompts) for kind in ("mixed", "all_right", "all_wrong")},
        }
        return {
            **(outcomes if self.by_outcome or len(self.scores) < 3 else dict.fromkeys(outcomes)),
            "unscored": _share(self.kinds["unscored"], prompts),
            "ties": _share(self.tied, self.couples),
            "responses_per_prompt": _share(responses, prompts),
            "unique_per_prompt": _share(self.different, prompts),
            "unique": _share(self.different, responses),
            "length": _share(tokens, responses),
            "length_p95": percentile(self.lengths, 0.95),
            "truncated": _share(self.truncated, responses),
            "abstained": _share(self.verdicts["abstain"] - self.not_asked, responses - self.not_asked),
            "errors": _share(self.verdicts["error"], responses),
        }


def _outcome(right: int, scored: int) -> str:
    if not scored:
        return "unscored"
    return "mixed" if 0 < right < scored else "all_right" if right else "all_wrong"


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def percentile(counts: Mapping[int, int], share: float) -> int | None:
    """The smallest value that at least this share of all does not exceed; None if empty."""
    total, so_far = sum(counts.values()), 0
    for value in sorted(counts):
        so_far += counts[value]
        if so_far >= share * total:
            return value
    return None


def use_of(relations: Sequence[Made], prompts: int, judged: int) -> dict[str, float | None]:
    """What training gets: relations per prompt, the share of the judged responses that it sees, how often it sees one
    of these on average and at most. Relations of a prompt come one after the other; answers that were not sampled count
    as responses here."""
    uses: Counter[int] = Counter()
    for _, of_prompt in groupby(relations, key=lambda one: one.prompt_id):
        uses.update(Counter(id for one in of_prompt for id in one.responses).values())
    used, times = uses.total(), sum(often * n for often, n in uses.items())
    return {
        "per_prompt": _share(len(relations), prompts),
        "trained_on": _share(used, judged),
        "uses": _share(times, used),
        "uses_at_most": max(uses, default=None),
    }


def entropy(sums: Iterable[tuple[float, int]]) -> float | None:
    """Mean negative log-prob of the sampled tokens in nats: an unbiased estimate of the entropy of the sampled
    distribution, if nothing was cut from it and the temperature is 1, and comparable between iterations with the same
    sampling settings. `sums`: sum of log-probs and number of tokens, by shard."""
    total, tokens = 0.0, 0
    for logprob, n in sums:
        total += logprob
        tokens += n
    return -total / tokens if tokens else None


def late_mean(steps: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The mean of a number over the last quarter of the steps that have it; None if none has."""
    values = [float(step[name]) for step in steps if step.get(name) is not None]
    late = values[-max(1, len(values) // 4) :]
    return sum(late) / len(late) if late else None
