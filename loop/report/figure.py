"""A figure of the report: a drawing, a sentence on how to read it, and its data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from loop.report.marks import PLOT_X, PLOT_Y, Part, Series, chart, stacked
from loop.report.scale import Axis, axis, number, whole_axis


@dataclass(frozen=True, slots=True)
class Table:
    """A table; a cell is text or a number."""

    heads: Sequence[str]
    rows: Sequence[Sequence[object]]

    @property
    def printed(self) -> list[list[str]]:
        """The cells as text."""
        return [[_cell(value) for value in row] for row in self.rows]


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return number(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of the legend."""

    name: str
    tone: int
    dashed: bool = False
    box: bool = False
    dot: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure; `id` names it in links and warnings, `read` is one sentence."""

    id: str
    title: str
    read: str
    drawing: Markup
    keys: Sequence[Key] = ()
    table: Table | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """A figure whose data the campaign does not have, and what would be needed."""

    title: str
    why: str


@dataclass(frozen=True, slots=True)
class Section:
    """Figures under one heading."""

    id: str
    title: str
    figures: list[Figure]
    missing: list[Missing] = field(default_factory=list)


def section(id: str, title: str, made: Sequence[Figure | Missing]) -> Section:
    """A section with the figures that could be drawn and those that could not."""
    figures = [one for one in made if isinstance(one, Figure)]
    return Section(id, title, figures, [one for one in made if isinstance(one, Missing)])


def heights(series: Sequence[Series]) -> list[float]:
    """All y values of the series, including band ends."""
    points = [y for one in series for _, y in one.points if y is not None]
    return points + [end for one in series for pair in one.spread if pair is not None for end in pair]


def by_iteration(
    id: str,
    title: str,
    read: str,
    series: Sequence[Series],
    y_label: str,
    *,
    y: Axis | None = None,
    zero: bool = False,
    x_label: str = "iteration",
    table: Table | None = None,
) -> Figure:
    """A figure of series over iterations; without `y` its axis fits the series, and includes 0 with `zero`."""
    x = whole_axis([int(x) for one in series for x, _ in one.points], *PLOT_X)
    y = y or axis(heights(series), *PLOT_Y, zero=zero)
    drawn = chart(title, series, x, y, x_label=x_label, y_label=y_label)
    return Figure(id, title, read, drawn, keys_of(series), table or table_of("iteration", series))


def by_part(id: str, title: str, read: str, bars: Mapping[int, Sequence[Part]], table: Table, *, unit: str) -> Figure:
    """A figure of stacked bars, one for each iteration, and a legend of their parts."""
    parts = dict.fromkeys((name, tone) for bar in bars.values() for _, tone, name in bar)
    keys = [Key(name, tone, box=True) for name, tone in parts]
    return Figure(id, title, read, stacked(title, bars, unit=unit), keys, table)


def keys_of(series: Sequence[Series]) -> list[Key]:
    """A legend for lines, bands and dots."""
    return [
        Key(one.name, one.tone, one.dashed, not (one.line or one.dots), one.dots and not one.line) for one in series
    ]


def table_of(x_name: str, series: Sequence[Series]) -> Table:
    """The points of all series, one row for each x."""
    xs = sorted({x for one in series for x, _ in one.points})
    spread = [any(one.spread) for one in series]
    heads = [x_name]
    for one, wide in zip(series, spread, strict=True):
        heads += [one.name, "from", "to"] if wide else [one.name]
    columns = [_by_x(one, wide) for one, wide in zip(series, spread, strict=True)]
    return Table(heads, [[x, *(cell for column, blank in columns for cell in column.get(x, blank))] for x in xs])


def _by_x(one: Series, wide: bool) -> tuple[dict[float, list[object]], list[object]]:
    """The cells of a series by x, and the empty cells for other x."""
    cells: dict[float, list[object]] = {}
    for place, (x, y) in enumerate(one.points):
        if y is None and x in cells:  # the end of a run of points
            continue
        low_high = one.spread[place] if wide else None
        cells[x] = [y, *((low_high or (None, None)) if wide else ())]
    return cells, [None] * (3 if wide else 1)
