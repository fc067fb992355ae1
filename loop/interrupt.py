"""Ctrl-C and SIGTERM. The first signal raises KeyboardInterrupt in the main thread; later ones change nothing, so that
clean-up is not interrupted. A thread ends the process if that takes too long."""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

LIMIT = 4.5
"""Seconds between the first signal and the end of the process."""
CLEAN_UP = 3.5
"""Seconds that workers and trackers have of these."""
SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})
SHOW_CURSOR = b"\x1b[?25h"


@dataclass(slots=True)
class _State:
    """What this process has received; there is one."""

    listening: bool = False
    number: int | None = None
    """The first signal."""
    since: float = 0.0
    held: int = 0
    """How many `postponed` blocks the main thread is in."""
    waiting: bool = False
    """Whether a KeyboardInterrupt is due at the end of the outermost one."""
    ended: bool = False


_STATE = _State()


def listen() -> None:
    """From now on react to the signals. One that the caller of this process has switched off (`nohup`) stays off."""
    if _STATE.listening:
        return
    _STATE.listening = True
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), name="interrupt", daemon=True).start()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)


def _receive(number: int, _: FrameType | None) -> None:
    if _STATE.number is not None:
        return
    _STATE.number, _STATE.since = number, time.monotonic()
    sys.excepthook = lambda *_: end(number)
    sys.unraisablehook = lambda _: None  # what the interruption breaks elsewhere is no news
    threading.excepthook = lambda _: None
    if _STATE.held:
        _STATE.waiting = True
        return
    raise KeyboardInterrupt


def _watch(pipe: int) -> None:
    """The thread: it also sees signals while the main thread is busy outside Python."""
    while (number := os.read(pipe, 1)[0]) not in SIGNALS:
        pass
    time.sleep(LIMIT)
    _end(number)


def received() -> int | None:
    """The signal that interrupted this process, if any."""
    return _STATE.number


def seconds_left() -> float:
    """How long a clean-up may still take: for ever, unless the process was interrupted."""
    return float("inf") if _STATE.number is None else max(0.0, _STATE.since + CLEAN_UP - time.monotonic())


@contextmanager
def postponed() -> Iterator[None]:
    """Inside, the main thread is not interrupted, and a process that is started begins with the signals blocked."""
    main = threading.current_thread() is threading.main_thread()
    _STATE.held += main
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _STATE.held -= main
        if main and _STATE.waiting and not _STATE.held:
            _STATE.waiting = False
            raise KeyboardInterrupt


def end(number: int) -> NoReturn:
    """Tell the user, and end this process with the signal's exit code."""
    with suppress(Exception):
        sys.stdout.flush()
    _say(number)
    with suppress(Exception):
        atexit._run_exitfuncs()
    os._exit(128 + number)


def _end(number: int) -> NoReturn:
    """As `end`, from another thread: whatever the main one is doing, and without its locks."""
    _say(number)
    os._exit(128 + number)


def _say(number: int) -> None:
    if _STATE.ended:
        return
    _STATE.ended = True
    what = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    line = f"\nprefloop: {what}. Finished work is kept; run the same command to continue.\n"
    with suppress(OSError):
        if os.isatty(1):
            os.write(1, SHOW_CURSOR)
        os.write(2, line.encode())
