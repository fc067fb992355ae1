"""Figures on the training supply (samples, pairs) and on the judge."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from loop.measure.estimators import QUANTILES
from loop.pairing.reasons import PROMPT_OUTCOMES, RESPONSE_REASONS
from loop.report.data import IterationData, RunData
from loop.report.figure import Figure, Missing, Table, by_iteration, by_part, heights, keys_of, table_of
from loop.report.figures_quality import hundred
from loop.report.marks import PLOT_X, PLOT_Y, Part, Series, chart, heat
from loop.report.scale import axis, percent, share_axis
from loop.report.set_numbers import SetNumbers

TONES = (3, 1, 2, 5, 6, 7, 8)
"""Tones of the parts of a stacked bar, in order; the last is for the rest."""
MOST_ROWS = 17
"""Most rows of the solve-rate map; with more distinct rates it uses tenths."""


def supply_figures(data: RunData) -> list[Figure | Missing]:
    """All supply figures, in page order."""
    return [funnel(data), prompts(data), responses(data), solve_rates(data), pass_by_k(data), lengths(data)]


def judge_figures(data: RunData) -> list[Figure | Missing]:
    """All judge figures, in page order."""
    return [verdicts(data), orders(data), cost(data)]


def funnel(data: RunData) -> Figure | Missing:
    """Counts from responses to training pairs, by iteration."""
    title = "From prompts to pairs"
    if not data.settings(1).samples:
        return Missing(title, "nothing is sampled: the pairs come from the data")
    iterations = [it for it in data.rounds if it.state.sampled]
    if not iterations:
        return Missing(title, "nothing has been sampled yet")
    kind = next((it.state.paired.kind for it in iterations if it.state.paired), "pairs")
    names = ("responses", "with a score", "used", kind)
    counted = [(it, _funnel(it)) for it in iterations]
    series = [
        Series(name, [(float(it.number), row[i]) for it, row in counted], tone, dashed=i == 1)
        for i, (name, tone) in enumerate(zip(names, (7, 5, 1, 2), strict=True))
    ]
    read = "If the lines approach 0 over the iterations, the training signal is drying up."
    rows = [[it.number, it.state.sampled and it.state.sampled.prompts, *row] for it, row in counted]
    table = Table(["iteration", "prompts", *names], rows)
    return by_iteration("funnel", title, read, series, "count", zero=True, table=table)


def _funnel(it: IterationData) -> tuple[int | None, int | None, int | None, int | None]:
    sample, judge, pair = it.state.sampled, it.state.judged, it.state.paired
    return (
        sample.responses if sample else None,
        judge.score if judge else None,
        pair.responses.get("used") if pair else None,
        pair.pairs if pair else None,
    )


def prompts(data: RunData) -> Figure | Missing:
    """Prompts by outcome."""
    title = "Prompts by outcome"
    read = (
        "Only prompts with both better and worse responses give a training signal; the others show whether the "
        "task is too hard or too easy."
    )
    counts = {it.number: it.state.paired.prompts for it in data.rounds if it.state.paired}
    return parts("prompts", title, read, counts, PROMPT_OUTCOMES, "prompts", "no iteration has been paired yet")


def responses(data: RunData) -> Figure | Missing:
    """Responses by outcome."""
    title = "Responses by outcome"
    read = "Shows why responses were used or left out; many duplicates mean that the samples are no longer diverse."
    counts = {it.number: it.state.paired.responses for it in data.rounds if it.state.paired}
    return parts("responses", title, read, counts, RESPONSE_REASONS, "responses", "no iteration has been paired yet")


def parts(
    id: str,
    title: str,
    read: str,
    counts: Mapping[int, Mapping[str, int]],
    words: Mapping[str, str],
    unit: str,
    otherwise: str,
) -> Figure | Missing:
    """Counts by reason as stacked bars; the rarest are drawn as one part and listed separately in the table."""
    if not any(counts.values()):
        return Missing(title, otherwise)
    names = [name for name in words if any(count.get(name) for count in counts.values())]
    shown = most_frequent(names, counts.values(), len(TONES) - 1) if len(names) > len(TONES) else names
    tones = list(zip(shown, TONES, strict=False))
    hidden = [name for name in names if name not in shown]
    bars: dict[int, list[Part]] = {}
    for k, count in counts.items():
        bars[k] = [(float(count.get(name, 0)), tone, words[name]) for name, tone in tones]
        rest = sum(count.get(name, 0) for name in hidden)
        bars[k] += [(float(rest), TONES[-1], "other reasons")] if rest else []
    rows = [[k, *(count.get(name, 0) for name in names)] for k, count in counts.items()]
    table = Table(["iteration", *(words[name] for name in names)], rows)
    return by_part(id, title, read, bars, table, unit=unit)


def most_frequent(names: Sequence[str], counts: Collection[Mapping[str, int]], most: int) -> list[str]:
    """The names with the highest totals, in their own order."""
    total = {name: sum(count.get(name, 0) for count in counts) for name in names}
    largest = sorted(names, key=lambda name: -total[name])[:most]
    return [name for name in names if name in largest]


def solve_rates(data: RunData) -> Figure | Missing:
    """Distribution of prompt solve rates, by iteration."""
    title = "Solve rates of the training prompts"
    iterations = [it for it in data.rounds if "train" in it.sets]
    if not iterations:
        return Missing(title, "nothing has been sampled and judged yet")
    rates = sorted({rate for it in iterations for rate in it.sets["train"].solved} | {0.0, 1.0})
    rows = rates if len(rates) <= MOST_ROWS else [i / 10 for i in range(11)]
    shares = [_binned(it.sets["train"], rows) for it in iterations]
    names = [f"{percent(rate).removesuffix('.0')} %" for rate in rows]
    numbers = [str(it.number) for it in iterations]
    drawn = heat(title, numbers, names, shares, x_label="iteration", y_label="correct responses")
    read = (
        "Each column shows how an iteration's prompts split by their share of correct responses. Pairs come from the "
        "middle; a dark top row means the task is solved, a dark bottom row that it is out of reach."
    )
    cells = [[it.number, *(f"{percent(s)} %" for s in share)] for it, share in zip(iterations, shares, strict=True)]
    return Figure("solve-rates", title, read, drawn, (), Table(["iteration", *names], cells))


def _binned(numbers: SetNumbers, rows: Sequence[float]) -> list[float]:
    """Share of prompts at each rate; only exactly 0 and 1 go to the end rows."""
    total, counts = sum(numbers.solved.values()) or 1, dict.fromkeys(rows, 0)
    for rate, count in numbers.solved.items():
        near = rate if rate in counts else min(rows[1:-1], key=lambda row: abs(row - rate))
        counts[near] += count
    return [count / total for count in counts.values()]


def pass_by_k(data: RunData) -> Figure | Missing:
    """pass@k and maj@k of the training samples for the first, middle and last policy."""
    title = "pass@k and maj@k of the training samples"
    iterations = [it for it in data.rounds if "train" in it.sets and len(it.sets["train"].passed) > 1]
    if not iterations:
        return Missing(title, "needs sampling.n of at least 2")
    chosen = [iterations[i] for i in sorted({0, len(iterations) // 2, len(iterations) - 1})]
    series = []
    for it, tone in zip(chosen, (5, 1, 2), strict=False):
        numbers = it.sets["train"]
        series.append(Series(f"pass@k, iteration {it.number}", _curve(numbers.passed), tone))
        series.append(Series(f"maj@k, iteration {it.number}", _curve(numbers.voted), tone, dashed=True))
    most = max(x for one in series for x, _ in one.points)
    x = axis([0.0, most], *PLOT_X)
    drawn = chart(title, series, x, share_axis(heights(series), *PLOT_Y), x_label="k samples", y_label="prompts, %")
    read = (
        "Probability that at least one of k samples is correct, and that the majority is: the rise from k = 1 "
        "to the right end is what more sampling can still gain."
    )
    return Figure("pass-by-k", title, read, drawn, keys_of(series), table_of("k", series))


def _curve(by_k: Mapping[int, float]) -> list[tuple[float, float | None]]:
    return [(float(k), hundred(value)) for k, value in by_k.items()]


def lengths(data: RunData) -> Figure | Missing:
    """Distribution of response lengths on the test prompts, by iteration."""
    title = "Response lengths on the test prompts"
    iterations = [it for it in data.iterations if "test" in it.sets and it.sets["test"].lengths]
    if not iterations:
        return Missing(title, "the run folder has no test responses")
    by = [it.sets["test"].lengths for it in iterations]
    ks = [float(it.number) for it in iterations]
    means = [it.sets["test"].mean_length for it in iterations]
    series = [
        _fan("5 to 95 %", ks, by, 0, 4, 5),
        _fan("middle half", ks, by, 1, 3, 1),
        Series("median", [(k, q[2]) for k, q in zip(ks, by, strict=True)], 1),
        Series("mean", list(zip(ks, means, strict=True)), 2, dashed=True),
    ]
    read = (
        "The bands cover the middle 50 % and 90 % of the sampled responses; steady growth is the most common "
        "way to game a judge."
    )
    heads = ["iteration", *(f"{100 * q:g} %" for q in QUANTILES), "mean"]
    rows = [[k, *q, mean] for k, q, mean in zip(ks, by, means, strict=True)]
    return by_iteration("lengths", title, read, series, "tokens", zero=True, table=Table(heads, rows))


def _fan(name: str, ks: Sequence[float], by: Sequence[Sequence[float]], low: int, high: int, tone: int) -> Series:
    """A band between two quantiles, without a line."""
    points: list[tuple[float, float | None]] = [(k, q[2]) for k, q in zip(ks, by, strict=True)]
    return Series(name, points, tone, [(q[low], q[high]) for q in by], line=False, dots=False)


def verdicts(data: RunData) -> Figure | Missing:
    """Abstentions, errors and unparsable answers on the training samples."""
    title = "Undecided verdicts"
    iterations = [it for it in data.rounds if "train" in it.sets]
    if not iterations:
        return Missing(title, "nothing has been judged yet")
    sets = [(float(it.number), it.sets["train"]) for it in iterations]
    series = [
        Series("errors", [(k, 100 * one.kinds.get("error", 0) / one.responses) for k, one in sets], 4),
        Series("abstentions", [(k, 100 * one.kinds.get("abstain", 0) / one.responses) for k, one in sets], 2),
        Series("no answer found", [(k, 100 * one.unparsable / one.responses) for k, one in sets], 1, dashed=True),
    ]
    y = share_axis([*heights(series), 1.0], *PLOT_Y)
    read = (
        "Errors and abstentions give no score and no pair, and should stay near 0. Responses without a readable "
        "answer are still scored, mostly as wrong."
    )
    return by_iteration("verdicts", title, read, series, "training responses, %", y=y)


def orders(data: RunData) -> Figure | Missing:
    """Order consistency of a pairwise judge."""
    title = "Order consistency"
    known = [(it, it.sets["train"].order_consistent) for it in data.rounds if "train" in it.sets]
    points = [(float(it.number), hundred(share)) for it, share in known if share is not None]
    if not points:
        return Missing(title, "needs a judge that compares responses in both orders")
    one = Series("consistent games", points, 1)
    read = "Games with the same winner in both orders: below about 70 %, position bias is too strong."
    return by_iteration("orders", title, read, [one], "games, %", y=share_axis([100.0], *PLOT_Y))


def cost(data: RunData) -> Figure | Missing:
    """Calls and tokens of a paid judge, by iteration."""
    title = "Judge cost"
    used: dict[int, Counter[str]] = {it.number: Counter() for it in data.iterations}
    for it in data.iterations:
        for numbers in it.sets.values():
            used[it.number].update(numbers.used)
    if not any(used.values()):
        return Missing(title, "the judge uses no metered model")
    names = [name for name in ("prompt_tokens", "completion_tokens") if any(name in one for one in used.values())]
    tones = list(zip(names, (1, 2), strict=False))
    bars = {k: [(one[name], tone, name.replace("_", " ")) for name, tone in tones] for k, one in used.items()}
    heads = sorted({name for one in used.values() for name in one})
    rows = [[k, *(one.get(head) for head in heads)] for k, one in used.items()]
    table = Table(["iteration", *(head.replace("_", " ") for head in heads)], rows)
    read = "Tokens behind the verdicts of each iteration, whether paid now or taken from the cache."
    return by_part("cost", title, read, bars, table, unit="tokens")
