"""What a command prints as it goes: entries for people or as JSON lines, on the terminal and in a log file."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from loop.format import visible
from loop.redact import redacted
from loop.store.run_records import Json

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")
Verbosity = Literal["quiet", "normal", "verbose"]
LOWEST: dict[Verbosity, Level] = {"quiet": "warning", "normal": "info", "verbose": "debug"}
"""By verbosity, the least important entries that are printed."""


@dataclass(frozen=True, slots=True)
class Output:
    """How much a command prints, and in which form."""

    verbosity: Verbosity = "normal"
    json_lines: bool = False
    timestamps: bool = False
    log_file: Path | None = None
    """None: `logs/run.log` in the run folder."""
    metrics_file: Path | None = None
    """Where numbers for a monitoring system go; None: nowhere."""

    def prints(self, level: Level) -> bool:
        """Whether entries of this level are printed."""
        return LEVELS.index(level) >= LEVELS.index(LOWEST[self.verbosity])

    def line(self, entry: "Entry") -> str:
        """An entry as the terminal gets it."""
        if self.json_lines:
            return entry.as_json_line()
        return entry.stamped() if self.timestamps else entry.text


@dataclass(frozen=True, slots=True)
class Entry:
    """One message."""

    level: Level
    text: str
    details: Json = field(default_factory=dict)
    """Its numbers, for programs."""
    time: float = field(default_factory=time.time)

    @property
    def moment(self) -> str:
        """2026-11-30T20:08:26.123+00:00"""
        return datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds")

    def as_json_line(self) -> str:
        """As one line of JSON, without secrets."""
        always = {"time": self.moment, "level": self.level, "text": " ".join(self.text.split())}
        return json.dumps(redacted({**always, **self.details, **always}), default=str)

    def stamped(self) -> str:
        """Every line of its text with the time."""
        return "\n".join(f"{self.moment} {line}" for line in self.text.splitlines() if line.strip())

    def in_file(self) -> str:
        """The lines of a log file: time, level, text, without secrets and control characters."""
        lines = [line for line in str(redacted(self.text)).splitlines() if line.strip()]
        return "\n".join(f"{self.moment} {self.level:<7} {visible(line)}" for line in lines)


class RunLog:
    """A log file. It gets every entry; those of before it was opened as soon as it is, so that a refused command leaves
    no file."""

    def __init__(self, output: Output) -> None:
        self.json_lines, self.fixed = output.json_lines, output.log_file
        self.path: Path | None = None
        self.waiting: list[str] = []
        if self.fixed is not None:
            self._open(self.fixed)

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()  # what the operating system refuses is said now
        self.path = path
        self._write()

    def add(self, entry: Entry) -> None:
        """Append an entry."""
        self.waiting.append(entry.as_json_line() if self.json_lines else entry.in_file())
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        lines, self.waiting = self.waiting, []
        with suppress(OSError), self.path.open("ab") as file:  # on a full disk it loses lines, and the work goes on
            file.write("".join(f"{line}\n" for line in lines if line).encode("utf-8", "replace"))

    @contextmanager
    def open_at(self, default: Path) -> Iterator[None]:
        """Inside, entries go to the file that the user names, or else to `default`; also what ends the block."""
        if self.fixed is None:
            self._open(default)
        try:
            yield
        except BaseException as error:
            self.add(Entry("error", str(error) or type(error).__name__))
            raise
        finally:
            self.path = self.fixed
