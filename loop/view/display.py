"""Progress of a running campaign: a live view on a terminal, and lines without control characters anywhere else."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from loop.format import duration, visible
from loop.store.run_records import Json
from loop.store.run_state import IterationState
from loop.view.frame import frame, work_parts
from loop.view.metrics_file import MetricsFile
from loop.view.progress import Snapshot, Work
from loop.view.run_log import Entry, Level, Output, RunLog

LINE_EVERY = 15.0
"""Seconds between two progress lines of a stage where there is no terminal."""
SHORTEST = 0.5
"""Seconds that a rate is measured over at least."""


class Bar:
    """Progress of one stage."""

    def __init__(self, title: str, total: int, unit: str, changed: Callable[["Bar"], None]) -> None:
        self.title, self.total, self.unit, self.changed = title, total, unit, changed
        self.started = self.moved = self.counted = time.monotonic()
        """When the rates begin to count, when something was done last, and when tokens were counted last."""
        self.done = self.first = self.tokens = 0
        self.before = 0  # of an online stage: done in the slices before the current one
        self.shards: tuple[int, int] | None = None
        self.waiting = self.detail = ""

    @property
    def work(self) -> Work:
        """The numbers to show."""
        seconds, since = self.moved - self.started, self.done - self.first
        few = 0 if self.unit == "steps" else (self.total or 0) // 100
        known = seconds >= SHORTEST and since > few  # with less, a rate would be wild
        counted = self.counted - self.started
        return Work(
            title=self.title,
            unit=self.unit,
            done=self.done,
            total=self.total or None,
            shards=self.shards,
            per_second=since / seconds if known else None,
            tokens_per_second=self.tokens / counted if self.tokens and counted >= SHORTEST else None,
            note=self.waiting or self.detail or ("" if self.total else "preparing"),
        )

    def set(self, done: int, total: int | None = None) -> None:
        """Set how much is done. The rate excludes the wait before the first progress."""
        if self.waiting and self.done == self.first:
            self.started = time.monotonic()
        if self.before + done != self.done:
            self.moved = time.monotonic()
        self.done, self.total, self.waiting = self.before + done, total if total is not None else self.total, ""
        self.changed(self)

    def count(self, *, tokens: int = 0, shards: tuple[int, int] | None = None, detail: str = "") -> None:
        """Add the tokens of a finished shard or step; update finished shards (of all) and other details."""
        if tokens:
            self.tokens, self.counted = self.tokens + tokens, time.monotonic()
        self.shards = shards or self.shards
        self.detail = detail or self.detail

    def note(self, text: str) -> None:
        """Show what the stage is waiting for."""
        self.waiting = text
        self.changed(self)

    def resume_at(self, done: int, total: int | None = None, *, ago: float = 0.0) -> None:
        """Set what was already done; the rates count from here, or from `ago` seconds before."""
        self.set(done, total)
        if done or not self.before:
            self.first, self.started, self.tokens = self.done, time.monotonic() - ago, 0


class Display:
    """What a command prints as it goes. With `to_stderr` messages alone, on stderr, because stdout is for JSON."""

    def __init__(
        self,
        output: Output = Output(),  # noqa: B008  it is frozen
        *,
        to_stderr: bool = False,
        on_event: Callable[[Json], None] = lambda line: None,
    ) -> None:
        self.output, self.to_stderr, self.on_event = output, to_stderr, on_event
        to_stderr = to_stderr or output.verbosity == "quiet"
        self.console = Console(soft_wrap=True, highlight=False, stderr=to_stderr, force_jupyter=False)
        self.look: Callable[[], Snapshot | None] = lambda: None
        """Reads the state of the campaign; called when a stage begins."""
        self.last_line = 0.0
        self.log = RunLog(output)
        self.metrics = None if output.metrics_file is None else MetricsFile(output.metrics_file)

    def say(self, text: str, level: Level = "info", details: Json | None = None) -> None:
        """Print one message, and put it into the log; `details` are its numbers, for programs."""
        entry = Entry(level, text, details or {})
        self.log.add(entry)
        if self.output.prints(level):
            self.console.print(visible(self.output.line(entry)), markup=False)
            self.console.file.flush()

    def warn(self, text: str) -> None:
        """Show a warning; the work continues."""
        self.say(f"  warning: {text}", "warning")

    def event(self, line: Json) -> None:
        """A line of events.jsonl, for those who want to see everything."""
        details = {name: value for name, value in line.items() if name != "time"}
        shown = [f"{name}={value}" for name, value in details.items() if name != "event" and value not in ("", None)]
        self.say(" ".join([f"  event {line['event']}", *shown]), "debug", details)
        self.on_event(line)

    @contextmanager
    def bar(self, title: str, total: int, unit: str) -> Iterator[Bar]:
        """Show the live view or occasional lines while the block runs, then one line with the time it took."""
        started = self.last_line = time.monotonic()
        shown = not self.to_stderr and self.output.prints("info")
        plain = self.output.json_lines or not is_live(self.console)
        snapshot = self.look()
        changed = self._line if shown and plain else lambda _: None
        bar = Bar(title, total, unit, partial(self._changed, snapshot, changed))
        self._changed(snapshot, changed, bar, begins=True)
        if not shown or plain:
            yield bar
        else:
            with live(self.console, lambda: (snapshot, bar.work)):
                yield bar
        took = time.monotonic() - started
        if shown:
            details = {"stage": title, "done": bar.done, "unit": unit, "seconds": round(took, 3)}
            self.say(f"  {title}: {bar.done} {unit} in {duration(took)}", details=details)

    def _changed(
        self, snapshot: Snapshot | None, then: Callable[[Bar], None], bar: Bar, *, begins: bool = False
    ) -> None:
        """A bar has moved on, or begins."""
        if self.metrics is not None:
            self.metrics.write(snapshot, bar.work, now=begins)
        if not begins:
            then(bar)

    def _line(self, bar: Bar) -> None:
        """Print a line if the last one is LINE_EVERY seconds old, or if the stage is waiting."""
        if bar.waiting:
            self.say(f"  {bar.title}: {bar.waiting}", details={"stage": bar.title})
        elif time.monotonic() - self.last_line > LINE_EVERY:
            self.last_line, work = time.monotonic(), bar.work
            self.say(f"  {bar.title}: {', '.join(work_parts(work))}", details=asdict(work))

    def evaluated(self, state: IterationState) -> None:
        """An iteration has results: pass its numbers on to the metrics file."""
        if self.metrics is not None:
            self.metrics.evaluated(state)
            self.update_metrics()

    def update_metrics(self) -> None:
        """Rewrite the metrics file, between two stages or at the end."""
        if self.metrics is not None:
            self.metrics.write(self.look(), None, now=True)


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
            if new:  # the first step of this process begins, or has just ended
                ended = "tokens" in message
                bar.resume_at(message["done"] - ended, message["total"], ago=message["seconds"] if ended else 0.0)
                planned(message["total"])
            if "tokens" in message:
                bar.count(tokens=message["tokens"], detail=f"loss {message['loss']:.3f}")
            bar.set(message["done"], message["total"])
        phase = message.get("phase", phase)

    return show
