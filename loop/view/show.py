"""Command `show`: print single prompts with their responses, verdicts and pairs, or the verdict cache."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from loop.format import one_line, visible
from loop.store.lineage import inherited_caches
from loop.store.run_folder import RunFolder
from loop.store.verdict_cache import kept_in, paid_in
from loop.view.prompt_records import PromptRecord, ResponseRecord, VerdictRecord


def print_prompts(prompts: Sequence[PromptRecord]) -> None:
    """Print one block per prompt."""
    console = Console(soft_wrap=True, highlight=False)
    if not prompts:
        console.print("No prompt matches.")
    for prompt in prompts:
        console.print(Text(visible(f"\n{prompt.prompt_id}  {prompt.prompt}"), style="bold"))
        console.print(Text(visible(f"  target: {prompt.target}")))
        numbers = {response.response_id: number for number, response in enumerate(prompt.responses)}
        for response in prompt.responses:
            console.print(_line(numbers[response.response_id], response))
        if prompt.pairs:
            pairs = ", ".join(f"{_name(numbers, c)}>{_name(numbers, r)}" for c, r in prompt.pairs)
            console.print(Text(f"  pairs (chosen>rejected): {pairs}"))


def _name(numbers: Mapping[str, int], id: str) -> str:
    """A response's number; for one that is not the prompt's own, its origin."""
    if id in numbers:
        return str(numbers[id])
    return id.rpartition("/")[2] if "/" in id else f"iteration {id.partition('-')[0]}"


def _line(number: int, response: ResponseRecord) -> Text:
    verdict = response.verdict
    cut = " [cut off]" if response.finish_reason == "length" else ""
    greedy = " (greedy)" if response.temperature == 0 else ""
    line = Text(f"  {number}{greedy} ").append(_mark(response), style=_style(verdict))
    why = f" ({verdict.why})" if verdict and verdict.why else ""
    return line.append(f"{visible(why)}: {one_line(response.text)}{cut}")


def _mark(response: ResponseRecord) -> str:
    verdict = response.verdict
    if verdict is None:
        return "given" if response.temperature is None else "not judged"
    return f"{verdict.kind} {'' if verdict.score is None else verdict.score}"


def _style(verdict: VerdictRecord | None) -> str:
    if verdict and verdict.score == 1.0:
        return "green"
    return "red" if verdict and verdict.kind == "score" else "yellow"


@dataclass(frozen=True, slots=True)
class JudgeCosts:
    """What one judge has put into a verdict cache, and what was paid for it."""

    judge: str
    """The judge's identity."""
    kept: int
    """Verdicts in the cache."""
    calls: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class CachedVerdict:
    """One entry of a verdict cache."""

    key: str
    judge: str
    word: Any
    """The verdict as the judge stored it."""


@dataclass(frozen=True, slots=True)
class CacheContents:
    """One verdict cache of a run or of one of its parents."""

    cache: str
    """Path of the file."""
    judges: list[JudgeCosts]
    words: list[CachedVerdict]


def collect_caches(run: RunFolder, containing: str | None, limit: int) -> list[CacheContents]:
    """The run's cache and its parents', nearest first, with up to `limit` verdicts in all that contain the text."""
    found = []
    for path in (run.verdict_cache, *inherited_caches(run)):
        words = [CachedVerdict(key, judge, json.loads(text)) for key, text, judge in kept_in(path, containing, limit)]
        limit -= len(words)
        costs = [JudgeCosts(judge, kept, **asdict(usage)) for judge, kept, usage in paid_in(path)]
        found.append(CacheContents(str(path), costs, words))
    return found


def print_caches(caches: Sequence[CacheContents]) -> None:
    """Print a block per cache, a line per judge, a line per verdict."""
    console = Console(soft_wrap=True, highlight=False)
    for cache in caches:
        console.print(Text(f"\n{cache.cache}", style="bold"))
        if not cache.judges:
            console.print("  nothing was paid for here")
        for one in cache.judges:
            tokens = f"{one.prompt_tokens:,} + {one.completion_tokens:,} tokens"
            costs = f"{one.kept:,} kept, {one.calls:,} calls paid for, {tokens}"
            console.print(Text(f"  judge {one.judge[:12]}: {costs}"))
        for entry in cache.words:
            text = json.dumps(entry.word, ensure_ascii=False)
            console.print(Text(visible(f"  {entry.key[:12]}  judge {entry.judge[:12]}: {text}")))
