"""Figures on where time and tokens went."""

from loop.format import clock
from loop.report.data import IterationData, RunData
from loop.report.figure import Figure, Missing, Table, by_iteration, by_part
from loop.report.marks import Series
from loop.report.scale import percent
from loop.store.stage import STAGES

PARTS = (
    ("generate", "generating", 1),
    ("judge_after_sampling", "judging", 2),
    ("compute", "training", 3),
    ("overhead", "overhead", 4),
)
"""Keys of an iteration's time, with names and tones."""


def ledger_figures(data: RunData) -> list[Figure | Missing]:
    """All figures on time and tokens, in page order."""
    return [time_spent(data), tokens_spent(data), sampler_gap(data)]


def time_spent(data: RunData) -> Figure | Missing:
    """Seconds of each iteration by activity."""
    title = "Time"
    iterations = [it for it in data.iterations if it.state.time.wall]
    if not iterations:
        return Missing(title, "no stage is finished yet")
    bars = {
        it.number: [(round(getattr(it.state.time, key)), tone, name) for key, name, tone in PARTS] for it in iterations
    }
    read = (
        "Overhead is wall time spent on neither generation, judging nor training: loading, saving, hashing, "
        "starting up."
    )
    heads = ["iteration", *(f"{stage}, s" for stage in STAGES), "total", "overhead", "overhead, %"]
    table = Table(heads, [[it.number, *_times(it)] for it in iterations])
    return by_part("time", title, read, bars, table, unit="seconds")


def _times(it: IterationData) -> list[float | str | None]:
    """Seconds of the stages, and the totals of the iteration."""
    found, time = it.state.seconds, it.state.time
    parts = {stage: "judge" if stage == "judge" else "wall" for stage in STAGES}
    seconds = (round(found[stage].get(part, 0.0), 1) if stage in found else None for stage, part in parts.items())
    return [*seconds, clock(time.wall), clock(time.overhead), percent(time.overhead_share)]


def tokens_spent(data: RunData) -> Figure | Missing:
    """Tokens sampled and trained on, by iteration."""
    title = "Tokens"
    iterations = [it for it in data.iterations if it.state.counts]
    if not iterations:
        return Missing(title, "no stage is finished yet")
    named = (("sampled for training", 1), ("sampled for evaluation", 5), ("trained on", 3))
    counts = {it.number: _tokens(it) for it in iterations}
    bars = {
        k: [(float(value or 0), tone, name) for value, (name, tone) in zip(count[:3], named, strict=True)]
        for k, count in counts.items()
    }
    read = (
        "Tokens sampled and trained on in each iteration. 'trained on' counts each token of a round once, however "
        "many pairs share it (the table has both)."
    )
    heads = ["iteration", *(name for name, _ in named), "as separate pairs", "sampled per second", "trained per second"]
    table = Table(heads, [[k, *count] for k, count in counts.items()])
    return by_part("tokens", title, read, bars, table, unit="tokens")


def _tokens(it: IterationData) -> list[float | None]:
    """Sampled, evaluated, trained (each token once), trained (pair by pair), and the first and third per second."""
    state = it.state
    sampled = state.sampled.tokens if state.sampled else None
    encoded, plain = (state.trained.encoded_tokens, state.trained.plain_tokens) if state.trained else (None, None)
    return [
        sampled,
        sum(one.tokens for one in state.evaluated.values()) or None,
        encoded,
        plain,
        _rate(sampled, state.seconds.get("sample", {}).get("generate")),
        _rate(plain, state.seconds.get("train", {}).get("compute")),
    ]


def _rate(tokens: float | None, seconds: float | None) -> float | None:
    return round(tokens / seconds) if tokens and seconds else None


def sampler_gap(data: RunData) -> Figure | Missing:
    """Mean absolute difference of sampler and trainer log-probs on the same tokens."""
    title = "Sampler against trainer"
    known = [(it.number, it.state.trained.sampler_gap) for it in data.rounds if it.state.trained]
    points = [(float(k), gap) for k, gap in known if gap is not None]
    if not points:
        return Missing(title, "no round has compared sampler and trainer log-probs")
    one = Series("mean absolute gap", points, 1)
    read = "The same tokens under both engines: if the gap grows, the trainer sees a different policy than was sampled."
    table = Table(["iteration", "gap"], [list(point) for point in points])
    return by_iteration("sampler-gap", title, read, [one], "nats per token", zero=True, table=table)
