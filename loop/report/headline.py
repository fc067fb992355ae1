"""The top of the report: a verdict sentence, summary tiles and the gate decisions."""

from dataclasses import dataclass

from loop.format import clock
from loop.report.data import IterationData, RunData
from loop.report.figures_quality import describe_change
from loop.report.scale import number, percent
from loop.store.run_records import NO_TRIALS, OUTCOMES, Interval
from loop.store.run_state import RunState
from loop.view.status_tables import with_interval


@dataclass(frozen=True, slots=True)
class Tile:
    """A large number with a title above and a note below."""

    name: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class GateDecision:
    """The gate's decision on a candidate."""

    iteration: int
    promoted: bool | None
    reason: str
    outcome: str = ""
    """What the interval says, in words."""


@dataclass(frozen=True, slots=True)
class Headline:
    """The top of the report."""

    sentence: str
    mood: str
    """good, flat, bad or early."""
    tiles: list[Tile]
    verdicts: list[GateDecision]


def headline(data: RunData) -> Headline:
    """Build the summary at the top of the page."""
    sentence, mood = _sentence(data)
    return Headline(sentence, mood, _tiles(data), [_verdict(it) for it in data.rounds])


def _sentence(data: RunData) -> tuple[str, str]:
    base = data.iteration(0)
    if base is None or not base.test:
        return "Nothing has been evaluated yet.", "early"
    if not any(it.test for it in data.rounds):
        return "The base model is evaluated; no iteration has finished yet.", "early"
    gain = (data.state.gains or {}).get(data.metric)
    if not data.best or gain is None:
        return "No candidate has been promoted; the base model is still the incumbent.", "flat"
    change = gain.difference
    if change.value is None or change.low is None or change.high is None:
        what = "its test accuracy cannot be compared with the base model's"
        return f"Iteration {data.best} is the incumbent; {what}.", "flat"
    points = describe_change(change.value, change.low, change.high)
    result = f"{data.metric.replace('_', ' ')} on the test prompts changed by {points}"
    if change.low > 0:
        return f"It works: from the base model to iteration {data.best}, {result}.", "good"
    if change.high < 0:
        return f"It got worse: from the base model to iteration {data.best}, {result}.", "bad"
    chance = "which may be due to chance"
    return f"Not shown to work: from the base model to iteration {data.best}, {result}, {chance}.", "flat"


def _tiles(data: RunData) -> list[Tile]:
    base, best = data.iteration(0), data.iteration(data.best)
    tiles = [_accuracy(data, "base model", base)] if base is not None and base.test else []
    if best is not None and best.number and best.test:
        tiles += [_accuracy(data, f"best, iteration {best.number}", best), *_gain(data)]
    wall = sum(it.state.time.wall for it in data.iterations)
    share = sum(it.state.time.overhead for it in data.iterations) / wall if wall else None
    done = sum(it.state.finished for it in data.rounds)
    tiles.append(Tile("iterations", f"{done} of {data.state.planned_iterations}", _promoted(data)))
    tiles.append(Tile("time", clock(wall), f"{percent(share)} % overhead"))
    return [*tiles, *_judge(data.state)]


def _judge(state: RunState) -> list[Tile]:
    """Paid judge calls and tokens so far."""
    spent = state.judge_spent
    return [Tile("judge", f"{number(spent.calls)} calls", f"{number(spent.tokens)} paid tokens")] if spent.calls else []


def _accuracy(data: RunData, name: str, it: IterationData) -> Tile:
    assert it.test is not None
    metric = it.test.metric(data.metric) or NO_TRIALS
    note = f"; greedy {with_interval(it.test.greedy_accuracy)} %" if not data.unjudged else " of held-out pairs"
    return Tile(name, f"{percent(metric.value)} %", f"{_interval(metric)}{note}")


def _interval(metric: Interval) -> str:
    return "no data" if metric.value is None else f"[{percent(metric.low)}, {percent(metric.high)}]"


def _gain(data: RunData) -> list[Tile]:
    gain = (data.state.gains or {}).get(data.metric)
    if gain is None:
        return []
    difference, factor = gain.difference, gain.ratio.value
    if difference.value is None or difference.low is None or difference.high is None:
        return []
    change = describe_change(difference.value, difference.low, difference.high)
    points, _, interval = change.partition(" [")
    times = f", {number(factor)} times" if factor is not None else ""
    return [Tile("gain on test", points.replace(" points", ""), f"points [{interval}{times}")]


def _promoted(data: RunData) -> str:
    promoted = sum(it.state.promoted is True for it in data.rounds)
    rejected = sum(it.state.promoted is False for it in data.rounds)
    return f"{promoted} promoted, {rejected} rejected"


def _verdict(it: IterationData) -> GateDecision:
    if it.state.promoted is None:
        begun = [stage for stage, state in it.state.stages.items() if state != "waiting"]
        return GateDecision(it.number, None, f"in progress: {begun[-1] if begun else 'sample'}")
    reason, tried = it.state.reason or "", len(it.state.attempts)
    again = f"attempt {tried}: " if tried > 1 else ""
    outcome = OUTCOMES[it.state.outcome] if it.state.outcome else ""
    for start in ("not ", f"promoted, {outcome}: ", "promoted: "):
        reason = reason.removeprefix(start)
    return GateDecision(it.number, it.state.promoted, again + reason, outcome)
