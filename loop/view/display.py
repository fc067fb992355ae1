"""Progress of a running campaign: a live view on a terminal, and lines without control characters anywhere else."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from loop.format import duration, visible
from loop.view.frame import frame, work_parts
from loop.view.progress import Snapshot, Work

LINE_EVERY = 15.0
"""Seconds between two progress lines of a stage where there is no terminal."""


class Bar:
    """Progress of one stage."""

    def __init__(self, title: str, total: int, unit: str, changed: Callable[["Bar"], None]) -> None:
        self.title, self.total, self.unit, self.changed = title, total, unit, changed
        self.started = time.monotonic()
        self.done = self.first = self.tokens = 0
        self.before = 0  # of an online stage: done in the slices before the current one
        self.shards: tuple[int, int] | None = None
        self.waiting = self.detail = ""

    @property
    def work(self) -> Work:
        """The numbers to show."""
        seconds, since = max(time.monotonic() - self.started, 1e-9), self.done - self.first
        return Work(
            title=self.title,
            unit=self.unit,
            done=self.done,
            total=self.total or None,
            shards=self.shards,
            per_second=since / seconds if since > (self.total or 0) // 100 else None,  # too few to measure a rate
            tokens_per_second=self.tokens / seconds if self.tokens else None,
            note=self.waiting or self.detail,
        )

    def set(self, done: int, total: int | None = None) -> None:
        """Set how much is done. The rate excludes the wait before the first progress."""
        if self.waiting and self.done == self.first:
            self.started = time.monotonic()
        self.done, self.total, self.waiting = self.before + done, total if total is not None else self.total, ""
        self.changed(self)

    def count(self, *, tokens: int = 0, shards: tuple[int, int] | None = None, detail: str = "") -> None:
        """Add generated or read tokens; update finished shards (of all) and other details."""
        self.tokens += tokens
        self.shards = shards or self.shards
        self.detail = detail or self.detail

    def note(self, text: str) -> None:
        """Show what the stage is waiting for."""
        self.waiting = text
        self.changed(self)

    def resume_at(self, done: int, total: int | None = None) -> None:
        """Set what was already done; the rate counts from here."""
        if done or not self.before:
            self.first, self.started = self.before + done, time.monotonic()
        self.set(done, total)


class Display:
    """The terminal or log. With `quiet` only messages are shown, on stderr, because stdout is for JSON."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(soft_wrap=True, highlight=False, stderr=quiet, force_jupyter=False)
        self.quiet = quiet
        self.look: Callable[[], Snapshot | None] = lambda: None
        """Reads the state of the campaign; called when a stage begins."""
        self.last_line = 0.0

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(visible(text), markup=False)
        (sys.stderr if self.quiet else sys.stdout).flush()

    def warn(self, text: str) -> None:
        """Show a warning; the work continues."""
        self.say(f"  warning: {text}")

    @contextmanager
    def bar(self, title: str, total: int, unit: str) -> Iterator[Bar]:
        """Show the live view or occasional lines while the block runs, then one line with the time it took."""
        started = self.last_line = time.monotonic()
        lines = not self.quiet and not is_live(self.console)
        bar = Bar(title, total, unit, self._line if lines else lambda _: None)
        if self.quiet or lines:
            yield bar
        else:
            snapshot = self.look()
            with live(self.console, lambda: (snapshot, bar.work)):
                yield bar
        if not self.quiet:
            self.say(f"  {title}: {bar.done} {unit} in {duration(time.monotonic() - started)}")

    def _line(self, bar: Bar) -> None:
        """Print a line if the last one is LINE_EVERY seconds old, or if the stage is waiting."""
        if bar.waiting:
            self.say(f"  {bar.title}: {bar.waiting}")
        elif time.monotonic() - self.last_line > LINE_EVERY:
            self.last_line = time.monotonic()
            self.say(f"  {bar.title}: {', '.join(work_parts(bar.work))}")


def is_live(console: Console) -> bool:
    """Whether the view can be redrawn in place: on a capable terminal outside CI, whose terminals are files."""
    real = console.is_terminal and not console.is_dumb_terminal and console.file.isatty()
    return real and os.environ.get("CI", "").lower() in ("", "0", "false")


def live(console: Console, state: Callable[[], tuple[Snapshot | None, Work | None]]) -> Live:
    """A view that is redrawn twice a second and erased at the end."""
    return Live(
        get_renderable=lambda: drawn_frame(console, *state()), console=console, refresh_per_second=2, transient=True
    )


def drawn_frame(console: Console, snapshot: Snapshot | None, work: Work | None) -> Text:
    """A frame of the current width of the terminal."""
    lines = frame(snapshot, work, width=console.width, ascii_only=console.options.ascii_only)
    return Text("\n").join(Text(visible(line.text), line.style) for line in lines)


PHASES = {
    "read": "reading pairs",
    "load": "loading the model",
    "reference": "reference log-probs",
    "measure": "rewards of held-out pairs",
    "warm start": "warm start on the chosen responses",
    "save": "saving",
}
"""Phases of the trainer other than steps, and their texts."""


def train_progress(bar: Bar, planned: Callable[[int], None]) -> Callable[[dict[str, Any]], None]:
    """A callback that shows the trainer's messages on one bar; `planned` receives the number of steps."""
    phase = ""

    def show(message: dict[str, Any]) -> None:
        nonlocal phase
        new = message.get("phase") != phase
        if new and message["phase"] != "train":
            bar.note(PHASES.get(message["phase"], message["phase"]))
        if message.get("phase") in ("warm start", "train"):
            if new:
                bar.resume_at(max(0, message["done"] - 1), message["total"])
                planned(message["total"])
            if "tokens" in message:
                bar.count(tokens=message["tokens"], detail=f"loss {message['loss']:.3f}")
            bar.set(message["done"], message["total"])
        phase = message.get("phase", phase)

    return show
