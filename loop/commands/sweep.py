"""Command `sweep`: runs every combination of the given config values, one after the other, and compares them.
Where its settings allow, a run is forked from an earlier one: from the pairs, verdicts or samples of its first
iteration, or from its evaluation of the base model."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from judges.types import JudgeError
from loop.campaign.run import run_campaign
from loop.commands.fork import Origin, check_settings, fork
from loop.config.load import LoadedConfig, load_config
from loop.errors import AwaitingLabels, UserError
from loop.format import points_with_interval
from loop.store.lineage import settings_of
from loop.store.locate import check_name
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json
from loop.view.comparison import Comparison, compare_runs
from loop.view.display import Display
from loop.view.status_tables import with_interval
from trainer.errors import TrainerError

LONGEST = 24
"""Characters of a value that go into a run's name."""


@dataclass(frozen=True, slots=True)
class Combination:
    """One run of a sweep: the end of its name, and its overrides, including those that all share."""

    name: str
    overrides: tuple[str, ...]


def combinations(texts: Sequence[str]) -> list[Combination]:
    """Every combination of the values, the last key changing fastest. UserError if there is nothing to sweep."""
    given = [_key_and_values(text) for text in texts]
    values, keys = dict(given), [key for key, _ in given]
    if len(values) < len(texts):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{twice} is given twice; give all its values at once, as in `train.beta=0.1,0.2`.")
    fixed = tuple(f"{key}={several[0]}" for key, several in values.items() if len(several) == 1)
    swept = {key: several for key, several in values.items() if len(several) > 1}
    if not swept:
        raise UserError("There is nothing to sweep: give at least one key several values, e.g. `train.beta=0.1,0.2`.")
    return list(_named(swept, fixed))


def _key_and_values(text: str) -> tuple[str, list[str]]:
    key, equals, rest = text.partition("=")
    values = [value.strip() for value in split_values(rest)]
    if not equals or not key.strip() or not all(values):
        raise UserError(f"{text!r} is not of the form key.sub=a,b,c, e.g. `train.beta=0.1,0.2`.")
    if len(set(values)) < len(values):
        raise UserError(f"{text!r} names a value twice.")
    return key.strip(), values


def split_values(text: str) -> list[str]:
    """The text cut at its commas, except inside brackets, braces and quotes: `[0.8,1.2],1` has two values."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _named(swept: dict[str, list[str]], fixed: tuple[str, ...]) -> Iterator[Combination]:
    short = _short_keys(list(swept))
    slugs = {key: _slugs(values) for key, values in swept.items()}
    for chosen in itertools.product(*swept.values()):
        pairs = list(zip(swept, chosen, strict=True))
        name = "-".join(f"{short[key]}={slugs[key][value]}" for key, value in pairs)
        yield Combination(name, (*fixed, *(f"{key}={value}" for key, value in pairs)))


def _short_keys(keys: list[str]) -> dict[str, str]:
    """The last part of each key, or the full key where two would clash."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}


def _slugs(values: list[str]) -> dict[str, str]:
    """Values as parts of a folder's name; long or look-alike ones end with a part of their hash."""
    plain = [re.sub(r"[^A-Za-z0-9.+-]+", "_", value).strip("_") for value in values]
    found = {}
    for value, slug in zip(values, plain, strict=True):
        clear = slug and len(slug) <= LONGEST and plain.count(slug) == 1
        mark = hashlib.sha256(value.encode("utf-8")).hexdigest()[:6]
        found[value] = slug if clear else f"{slug[: LONGEST - 7]}_{mark}".lstrip("_")
    return found


@dataclass(frozen=True, slots=True)
class Member:
    """One run of a sweep with its settings; `overrides` turn the config into them."""

    run: RunFolder
    overrides: tuple[str, ...]
    loaded: LoadedConfig

    def as_json(self) -> Json:
        """The run and its overrides."""
        return {"run": str(self.run), "overrides": list(self.overrides)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a member ended: finished, or stopped by an exception."""

    member: Member
    stopped: Exception | None

    def as_json(self) -> Json:
        """Plain values."""
        return self.member.as_json() | {"stopped": None if self.stopped is None else str(self.stopped)}


def plan_sweep(config: str, texts: Sequence[str], name: str | None, runs: Path, *, toy: bool = False) -> list[Member]:
    """The runs of the sweep, all with valid settings. UserError."""
    members = []
    for one in combinations(texts):
        loaded = load_config(config, one.overrides, toy=toy)
        prefix = loaded.name if name is None else name
        run = RunFolder(runs / check_name(prefix and f"{prefix}-{one.name}", "a run of a sweep"))
        members.append(Member(run, one.overrides, loaded))
    return members


def run_sweep(members: Sequence[Member], display: Display) -> list[Outcome]:
    """Run or continue every member; one that stops with a message does not stop the others."""
    outcomes = []
    for number, member in enumerate(members, start=1):
        display.say(f"\n{member.run.name} (run {number} of {len(members)})")
        if not member.run.exists():
            origin = take_over(member, [other.run for other in members[: number - 1]])
            if origin is not None:
                display.say(f"  begins with {describe_origin(origin)}")
        stopped: Exception | None = None
        try:
            run_campaign(member.run, member.loaded, display)
        except (UserError, JudgeError, TrainerError, AwaitingLabels) as error:
            display.say(f"  stopped: {error}")
            stopped = error
        outcomes.append(Outcome(member, stopped))
    return outcomes


def take_over(member: Member, others: Sequence[RunFolder]) -> Origin | None:
    """Make the member a fork of the run that has the most work which holds for it, too: the first iteration up to its
    pairs, verdicts or samples, or the base model's evaluation. Where the fork begins; None if there is no such run."""
    for iteration, stage in ((1, "pair"), (1, "judge"), (1, "sample"), (0, "")):
        for other in others:
            origin = Origin(other, iteration, stage)
            if holds_for(origin, member.loaded):
                try:
                    fork(other, iteration, member.run, member.overrides, stage=stage)
                except UserError:  # it is damaged: the member makes its own
                    continue
                return origin
    return None


def holds_for(origin: Origin, loaded: LoadedConfig) -> bool:
    """Whether a run is finished to that point, and would be with these settings."""
    if not origin.run.exists() or origin.missing:
        return False
    try:
        check_settings(origin, settings_of(origin.run), loaded)
    except UserError:
        return False
    return True


def describe_origin(origin: Origin) -> str:
    """What a member takes over, in words."""
    if not origin.stage:
        return f"the base model's evaluation of {origin.run.name}"
    what = {"sample": "samples", "judge": "samples and verdicts", "pair": "samples, verdicts and pairs"}[origin.stage]
    return f"the {what} of iteration {origin.iteration} of {origin.run.name}"


@dataclass(frozen=True, slots=True)
class SweepSummary:
    """Every run of a sweep with how it ended, and the comparison of those that finished with the first of them."""

    outcomes: Sequence[Outcome]
    comparison: Comparison | None

    def as_json(self) -> Json:
        """Plain values."""
        comparison = self.comparison and self.comparison.as_json()
        return {"runs": [outcome.as_json() for outcome in self.outcomes], "comparison": comparison}


def summary(outcomes: Sequence[Outcome], runs: Path) -> SweepSummary:
    """How the runs ended and compare."""
    finished = [str(outcome.member.run) for outcome in outcomes if outcome.stopped is None]
    return SweepSummary(outcomes, compare_runs(finished, runs, 0) if len(finished) > 1 else None)


def refuse_stopped(outcomes: Sequence[Outcome]) -> None:
    """UserError if a run stopped, AwaitingLabels if all stopped ones only wait for labels."""
    stopped = {outcome.member.run.name: outcome.stopped for outcome in outcomes if outcome.stopped is not None}
    if not stopped:
        return
    text = (
        f"{len(stopped)} of {len(outcomes)} runs stopped: {', '.join(stopped)}. Their messages are above; run the same "
        "command to continue them."
    )
    if all(isinstance(error, AwaitingLabels) for error in stopped.values()):
        raise AwaitingLabels(text)
    raise UserError(text)


def print_sweep(members: Sequence[Member]) -> None:
    """Print the runs of the sweep with their overrides."""
    for member in members:
        print(f"{member.run}{' (exists)' if member.run.exists() else ''}: {' '.join(member.overrides)}")


def print_summary(found: Comparison | None, metric: str, console: Console) -> None:
    """The finished runs with their incumbents, and how each differs from the first on the test prompts."""
    if found is None:
        return
    table = Table(title="incumbents, in %", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("run", "iter", f"gate {metric.replace('_', ' ')}", "test", "test, against the first, in points"):
        table.add_column(column, overflow="fold")
    differences = [None, *(compared.metrics[metric] for compared in found.comparisons)]
    for entrant, difference in zip(found.entrants, differences, strict=True):
        change = difference and points_with_interval(difference.value, difference.low, difference.high, unit="")
        cells = (with_interval(entrant.gate.metric(metric)), with_interval(entrant.test.metric(metric)), change or "")
        table.add_row(Path(entrant.run).name, str(entrant.iteration), *cells)
    console.print(table)
    console.print("Choose by the gate prompts: the test result of a run that was chosen by it is too optimistic.")
