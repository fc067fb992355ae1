"""Render the live view of `run` and `watch` as lines that fit the terminal. Pure."""

import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from loop.format import duration, percent
from loop.view.progress import Notice, Snapshot, Work, seconds_left

BAR = (8, 40)
"""Fewest and most columns of a bar; on a terminal with less room there is no bar."""
NARROW, ALARM_LINES = 20, 4
"""Width below which alarms are cut instead of wrapped, and the most lines of one alarm."""
SHORT_NAME = 8
"""Characters of a run's name that stay on a narrow terminal."""
ASCII = str.maketrans("━┄…–", "=.~-")
"""Replacements for a terminal that has only ASCII."""
MARKS = {"finished": "x", "started": ">", "waiting": " "}


class Line(NamedTuple):
    """A line and its style on a terminal with colours."""

    text: str
    style: str = ""


def frame(snapshot: Snapshot | None, work: Work | None, *, width: int, ascii_only: bool = False) -> list[Line]:
    """All lines, none longer than `width`. Without a snapshot only the work is shown."""
    lines = [] if snapshot is None else [Line(title(snapshot, work, width), "bold"), Line(stages(snapshot))]
    if work is not None:
        lines.append(Line(bar(work, width), "cyan"))
    if snapshot is not None:
        lines += [Line(text) for text in scores(snapshot, width)]
        lines += [Line(text, "yellow") for one in snapshot.alarms for text in alarm(one, width)]
    plain = ASCII if ascii_only else {}
    return [line._replace(text=shorten(line.text, width).translate(plain)) for line in lines]


def title(snapshot: Snapshot, work: Work | None, width: int) -> str:
    """quickstart, iteration 2 of 3: about 14 min 05 s left; a long name is cut rather than the time."""
    where = f"iteration {snapshot.iteration} of {snapshot.planned}" if snapshot.iteration else "the base model"
    again = f", attempt {snapshot.attempt}" if snapshot.attempt > 1 else ""
    rest = f", {where}{again}: {time_left(snapshot, work)}"
    return shorten(snapshot.name, max(SHORT_NAME, width - len(rest))) + rest


def time_left(snapshot: Snapshot, work: Work | None) -> str:
    """The campaign's remaining time, or why it is unknown."""
    left = seconds_left(snapshot, work)
    if snapshot.complete:
        return "complete"
    if left is None:
        return "first iteration, time left unknown" if snapshot.iteration else "time left unknown"
    return f"about {duration(left)} left"


def stages(snapshot: Snapshot) -> str:
    """[x] sample [x] judge [>] pair [ ] train [ ] eval"""
    return " ".join(f"[{MARKS[state]}] {stage}" for stage, state in snapshot.stages.items())


def bar(work: Work, width: int) -> str:
    """train ━━━━━━┄┄┄ 31/48 steps, 0.4/s, 42 s left; what does not fit is left out, least important first."""
    parts = list(work_parts(work))
    while len(parts) > 1 and len(work.title) + 1 + len(", ".join(parts)) > width:
        parts.pop()
    text = ", ".join(parts)
    room = min(BAR[1], width - len(work.title) - len(text) - 2)
    if room < BAR[0] or not work.total:
        return f"{work.title} {text}"
    full = min(room, room * work.done // work.total)
    return f"{work.title} {'━' * full}{'┄' * (room - full)} {text}"


def work_parts(work: Work) -> Iterator[str]:
    """The work in numbers, the most important first."""
    yield f"{work.done}/{work.total} {work.unit}" if work.total else f"{work.done} {work.unit}"
    if work.note:
        yield work.note
    if work.seconds_left is not None:
        yield f"{duration(work.seconds_left)} left"
    if work.per_second:
        yield f"{work.per_second:.1f}/s"
    if work.tokens_per_second:
        yield f"{work.tokens_per_second:.0f} tokens/s"
    if work.shards is not None:
        yield f"shard {min(work.shards[0] + 1, work.shards[1])} of {work.shards[1]}"


def scores(snapshot: Snapshot, width: int) -> Iterator[str]:
    """test sampled %  0: 3.5  1: 50.2, the last iterations if not all fit."""
    for name in dict.fromkeys(name for _, found in snapshot.scores for name in found):
        known = [f"{k}: {percent(found.get(name))}" for k, found in snapshot.scores]
        yield fitting(f"test {name} %", known, width)


def fitting(name: str, values: Sequence[str], width: int) -> str:
    """As many of the last values as fit."""
    for first in range(len(values)):
        text = "  ".join([f"{name:<14}", *(["…"] if first else []), *values[first:]])
        if len(text) <= width:
            break
    return text


def alarm(one: Notice, width: int) -> list[str]:
    """! 12:03 the engine worker was lost at …, wrapped if it is long."""
    text = f"! {time.strftime('%H:%M', time.localtime(one.time))} {' '.join(one.text.split())}"
    return textwrap.wrap(text, max(width, NARROW), subsequent_indent="  ", max_lines=ALARM_LINES, placeholder=" …")


def shorten(text: str, width: int) -> str:
    """Cut to the width, with an ellipsis."""
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"
