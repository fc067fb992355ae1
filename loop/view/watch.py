"""The `watch` command: a live view of a campaign that runs elsewhere; it reads only the folder, from any machine."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from rich.console import Console
from rich.live import Live

from loop.config.load import LoadedConfig
from loop.format import duration, visible
from loop.store.lineage import settings_of
from loop.store.run_folder import RunFolder
from loop.view.display import LINE_EVERY, drawn_frame, is_live
from loop.view.frame import frame
from loop.view.progress import (
    STALLED_AFTER,
    Notice,
    Snapshot,
    Work,
    last_sign,
    look,
    read_writer,
    work_in_progress,
)

LOOK_EVERY = 1.0
"""Seconds between two reads of the folder."""
COMPLETE, STOPPED = 0, 1
"""Exit codes of a watch that has seen the campaign's end."""


class WatchFrame(NamedTuple):
    """What one read of a run folder shows."""

    snapshot: Snapshot
    work: Work | None
    ended: int | None
    """COMPLETE or STOPPED; None while the campaign runs."""
    stalled: bool = False
    """Whether nothing has changed for long; the alarm that says for how long is another one at each look."""


class Watcher:
    """Polls a run; its settings are only reread when they have changed."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._read_at = 0
        self._loaded: LoadedConfig | None = None

    def see(self) -> WatchFrame:
        """The current state; a problem with the run's writer is one more alarm."""
        snapshot, work = look(self.run, self._settings()), work_in_progress(self.run)
        if snapshot.complete:
            return WatchFrame(snapshot, None, COMPLETE)
        writer = read_writer(self.run)
        alive = None if writer is None else writer.alive
        if writer is None or alive is False:
            who = "Nobody has worked on it yet" if writer is None else f"Its process {writer.pid} has ended"
            return WatchFrame(alarmed(snapshot, f"{who}. Continue with: prefloop run {self.run}"), None, STOPPED)
        silent = time.time() - last_sign(self.run)
        if silent > STALLED_AFTER:
            runs = "runs" if alive else f"is on {writer.host}, where it cannot be looked at from here"
            shown = alarmed(snapshot, f"nothing has changed for {duration(silent)}; process {writer.pid} {runs}")
            return WatchFrame(shown, work, None, stalled=True)
        return WatchFrame(snapshot, work, None)

    def _settings(self) -> LoadedConfig:
        changed = self.run.config.stat().st_mtime_ns
        if self._loaded is None or changed != self._read_at:
            self._loaded, self._read_at = settings_of(self.run), changed
        return self._loaded


def alarmed(snapshot: Snapshot, text: str) -> Snapshot:
    """The snapshot with one more alarm, of this moment."""
    return replace(snapshot, alarms=(*snapshot.alarms, Notice(time.time(), text)))


def watch(run: RunFolder, console: Console, *, once: bool) -> int:
    """Show the campaign until it ends, or one frame; the exit code."""
    watcher = Watcher(run)
    if once:
        print_frame(watcher.see(), console)
        return COMPLETE
    try:
        seen = redraw(watcher, console) if is_live(console) else report(watcher, console)
    except KeyboardInterrupt:  # the usual way to end a watch; the campaign is not affected
        return COMPLETE
    assert seen.ended is not None
    return seen.ended


def looks(watcher: Watcher) -> Iterator[WatchFrame]:
    """Frames until the campaign ends; the last one shows the end."""
    while True:
        seen = watcher.see()
        yield seen
        if seen.ended is not None:
            return
        time.sleep(LOOK_EVERY)


def redraw(watcher: Watcher, console: Console) -> WatchFrame:
    """Redraw the view in place; the last frame stays."""
    with Live(console=console, auto_refresh=False) as view:
        for seen in looks(watcher):
            view.update(drawn_frame(console, seen.snapshot, seen.work), refresh=True)
    return seen


def report(watcher: Watcher, console: Console) -> WatchFrame:
    """Without redrawing: a frame when the stages change and at the end, an occasional line in between."""
    shown, last_line = None, 0.0
    for seen in looks(watcher):
        alarms = seen.snapshot.alarms[:-1] if seen.stalled else seen.snapshot.alarms
        state = (seen.snapshot.iteration, seen.snapshot.stages, alarms, seen.stalled, seen.ended)
        if state != shown:
            print_frame(seen, console)
        elif seen.work is not None and time.monotonic() - last_line > LINE_EVERY:
            say(console, frame(None, seen.work, width=console.width, ascii_only=True)[0].text)
        else:
            continue
        shown, last_line = state, time.monotonic()
    return seen


def print_frame(seen: WatchFrame, console: Console) -> None:
    """A frame as plain lines."""
    for line in frame(seen.snapshot, seen.work, width=console.width, ascii_only=console.options.ascii_only):
        say(console, line.text)


def say(console: Console, text: str) -> None:
    """A line without colours or control characters."""
    console.print(visible(text), markup=False, highlight=False, soft_wrap=True)
