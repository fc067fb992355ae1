"""Draw series and axes as SVG; each tone is a class that the style sheet colours. Pure; all text is escaped here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from loop.report.scale import Axis, number

WIDTH, HEIGHT = 420.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 410.0, 32.0, 214.0
"""The plot's frame inside the drawing."""
PLOT_X, PLOT_Y = (LEFT + 4, RIGHT - 4), (BOTTOM, TOP)
"""Left and right end of the plot, bottom and top end."""
CROWDED = 40
"""A line with more points than this has no dots except rings."""
Point = tuple[float, float | None]
Spot = tuple[int, float, float]
"""Place of a point in its series, x, y."""
Part = tuple[float, int, str]
"""Value, tone and name of a part of a stacked bar."""


@dataclass(frozen=True, slots=True)
class Series:
    """Points that belong together; `spread` holds low and high of each, drawn as a band, or as whiskers on dots."""

    name: str
    points: Sequence[Point]
    tone: int = 1
    spread: Sequence[tuple[float, float] | None] = ()
    line: bool = True
    dots: bool = True
    dashed: bool = False
    whiskers: bool = False
    hollow: frozenset[int] = frozenset()
    """Places of the points that are drawn as rings."""
    titles: Sequence[str] = ()
    """Tooltip of each point, instead of its numbers."""


def element(tag: str, *children: object, **attributes: Any) -> Markup:
    """An element, escaped. In names of attributes `_` becomes `-`, and `class_` becomes `class`."""
    written = "".join(f' {name.strip("_").replace("_", "-")}="{escape(value)}"' for name, value in attributes.items())
    return Markup(f"<{tag}{written}>{''.join(map(escape, children))}</{tag}>")


def drawing(title: str, *children: object, height: float = HEIGHT) -> Markup:
    """The SVG of one figure."""
    size = {"viewBox": f"0 0 {WIDTH:g} {height:g}", "role": "img", "aria_label": title}
    return element("svg", *children, xmlns="http://www.w3.org/2000/svg", **size)


def chart(
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    x_label: str,
    y_label: str,
    boundaries: Sequence[tuple[float, str]] = (),
    levels: Sequence[tuple[float, str]] = (),
    under: Sequence[object] = (),
) -> Markup:
    """Marks over one pair of axes; `boundaries` are vertical lines, `levels` horizontal; `under` is drawn first."""
    marks = [mark for one in series for mark in _series(one, x, y)]
    upright = [_boundary(x.at(at), word) for at, word in boundaries]
    across = [_level(y.at(at), word) for at, word in levels]
    return drawing(title, *frame(x, y, x_label, y_label), *under, *upright, *across, *marks)


def frame(x: Axis, y: Axis, x_label: str, y_label: str) -> list[Markup]:
    """Grid lines, ticks and names of the axes."""
    grid = [element("line", x1=LEFT, x2=RIGHT, y1=y.at(t), y2=y.at(t), class_="grid") for t in y.ticks]
    up = [element("text", number(t), x=LEFT - 5, y=y.at(t) + 3.5, class_="tick end") for t in y.ticks]
    along = [element("text", number(t), x=x.at(t), y=BOTTOM + 15, class_="tick middle") for t in x.ticks]
    names = [
        element("text", x_label, x=(LEFT + RIGHT) / 2, y=BOTTOM + 31, class_="name middle"),
        element("text", y_label, x=2, y=10, class_="name"),
    ]
    return [*grid, *up, *along, *names]


def _boundary(at: float, word: str) -> Markup:
    line = element("line", x1=at, x2=at, y1=TOP, y2=BOTTOM, class_="boundary")
    return line + element("text", word, x=at, y=TOP - 5, class_="tick")


def _level(at: float, word: str) -> Markup:
    line = element("line", x1=LEFT, x2=RIGHT, y1=at, y2=at, class_="boundary")
    return line + element("text", word, x=LEFT + 3, y=at + 11, class_="tick")


def _series(one: Series, x: Axis, y: Axis) -> Iterator[Markup]:
    tone, dash = f"t{one.tone}", " dashed" if one.dashed else ""
    unbroken = runs(one.points)
    known = [spot for run in unbroken for spot in run]
    if one.spread and one.whiskers:
        yield from (_whisker(x.at(px), one.spread[place], y, tone) for place, px, _ in known)
    elif one.spread:
        yield from (_band([(px, one.spread[place]) for place, px, _ in run], x, y, tone) for run in unbroken)
    if one.line:
        yield from (_path([(px, py) for _, px, py in run], x, y, f"line {tone}{dash}") for run in unbroken)
    if one.dots:
        crowded = one.line and len(known) > CROWDED
        yield from (_dot(one, spot, x, y) for spot in known if not crowded or spot[0] in one.hollow)


def _dot(one: Series, spot: Spot, x: Axis, y: Axis) -> Markup:
    place, px, py = spot
    ring = " ring" if place in one.hollow else ""
    text = one.titles[place] if one.titles else f"{one.name}: {number(px)}, {number(py)}"
    return element("circle", element("title", text), cx=x.at(px), cy=y.at(py), r=3.2, class_=f"dot t{one.tone}{ring}")


def runs(points: Sequence[Point]) -> list[list[Spot]]:
    """The points with their places, as unbroken runs: a missing value breaks the line."""
    found: list[list[Spot]] = [[]]
    for place, (px, py) in enumerate(points):
        if py is None:
            found.append([])
        else:
            found[-1].append((place, px, py))
    return [run for run in found if run]


def _path(run: Sequence[tuple[float, float]], x: Axis, y: Axis, style: str) -> Markup:
    return element("polyline", points=" ".join(f"{x.at(px):g},{y.at(py):g}" for px, py in run), class_=style)


def _band(spread: Sequence[tuple[float, tuple[float, float] | None]], x: Axis, y: Axis, tone: str) -> Markup:
    known = [(px, pair) for px, pair in spread if pair is not None]
    lower = [f"{x.at(px):g},{y.at(pair[0]):g}" for px, pair in known]
    upper = [f"{x.at(px):g},{y.at(pair[1]):g}" for px, pair in reversed(known)]
    return element("polygon", points=" ".join([*lower, *upper]), class_=f"band {tone}")


def _whisker(at: float, spread: tuple[float, float] | None, y: Axis, tone: str) -> Markup:
    if spread is None:
        return Markup("")
    return element("line", x1=at, x2=at, y1=y.at(spread[0]), y2=y.at(spread[1]), class_=f"whisker {tone}")


def stacked(title: str, rows: Mapping[int, Sequence[Part]], *, unit: str) -> Markup:
    """Horizontal stacked bars by iteration; the more rows, the thinner."""
    most = max((sum(value for value, _, _ in parts) for parts in rows.values()), default=0) or 1
    tall = 22.0 if len(rows) <= 12 else 12.0 if len(rows) <= 30 else 6.0
    every = 1 if tall > 10 else 5
    height = 20 + tall * len(rows)
    marks = [element("text", f"0 to {number(most)} {unit}", x=LEFT, y=10, class_="name")]
    for place, (label, parts) in enumerate(rows.items()):
        at = 16 + tall * place
        if place % every == 0:
            marks.append(element("text", label, x=LEFT - 6, y=at + min(tall, 20) * 0.72, class_="tick end"))
        marks += _parts(label, parts, at, tall * 0.82, (RIGHT - LEFT) / most)
    return drawing(title, *marks, height=height)


def _parts(label: int, parts: Sequence[Part], top: float, height: float, scale: float) -> Iterator[Markup]:
    at = LEFT
    for value, tone, name in parts:
        wide = value * scale
        title = element("title", f"{label}, {name}: {number(value)}")
        if value > 0:
            box = {"x": round(at, 1), "y": round(top, 1), "width": round(max(wide, 0.5), 1), "height": round(height, 1)}
            yield element("rect", title, class_=f"bar t{tone}", **box)
        if wide > 34 and height > 14:
            yield element("text", number(value), x=round(at + wide / 2, 1), y=top + height * 0.7, class_="inside")
        at += wide


def heat(
    title: str,
    columns: Sequence[str],
    rows: Sequence[str],
    shares: Sequence[Sequence[float]],
    *,
    x_label: str,
    y_label: str,
) -> Markup:
    """A heat map of `shares[column][row]` in 0..1; the first row is at the bottom, darker is more."""
    wide, tall = (RIGHT - LEFT) / len(columns), (BOTTOM - TOP) / len(rows)
    marks = [element("text", y_label, x=2, y=10, class_="name")]
    marks.append(element("text", x_label, x=(LEFT + RIGHT) / 2, y=BOTTOM + 31, class_="name middle"))
    for i, column in enumerate(columns):
        if i % max(1, len(columns) // 12) == 0:
            marks.append(element("text", column, x=LEFT + wide * (i + 0.5), y=BOTTOM + 15, class_="tick middle"))
        marks += [_cell(LEFT + wide * i, BOTTOM - tall * (j + 1), wide, tall, s) for j, s in enumerate(shares[i])]
    marks += [
        element("text", row, x=LEFT - 5, y=BOTTOM - tall * (j + 0.5) + 3.5, class_="tick end")
        for j, row in enumerate(rows)
        if j % max(1, len(rows) // 10) == 0
    ]
    return drawing(title, *marks)


def _cell(x: float, y: float, wide: float, tall: float, share: float) -> Markup:
    box = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{wide - 0.8:.1f}", "height": f"{tall - 0.8:.1f}"}
    shade = element("rect", class_="bar t1", fill_opacity=f"{0.06 + 0.94 * share**0.6:.2f}", **box)
    if wide < 30 or tall < 13 or share == 0:
        return shade
    style = "inside" if share > 0.3 else "tick middle"
    return shade + element(
        "text", f"{100 * share:.0f} %", x=f"{x + wide / 2:.1f}", y=f"{y + tall / 2 + 4:.1f}", class_=style
    )


def arrow(x: float, y: float, dx: float, dy: float) -> Markup:
    """A small arrow that starts at a point of the drawing."""
    tip, back = (x + dx, y + dy), 0.35
    left = (tip[0] - back * dx + back * dy, tip[1] - back * dy - back * dx)
    right = (tip[0] - back * dx - back * dy, tip[1] - back * dy + back * dx)
    path = f"M{x:.1f},{y:.1f}L{tip[0]:.1f},{tip[1]:.1f}M{left[0]:.1f},{left[1]:.1f}L{tip[0]:.1f},{tip[1]:.1f}"
    return element("path", d=f"{path}L{right[0]:.1f},{right[1]:.1f}", class_="arrow")
