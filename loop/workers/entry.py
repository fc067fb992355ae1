"""Entry point of a worker process: receives jobs over a pipe, sends back results and heartbeats.

A worker holds one service (an engine, a judge, a trainer) for the whole campaign. It ends when its driver does: the
kernel signals it (Linux), the pipe closes, and it watches its parent's pid; the last two also work elsewhere.
"""

import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from tqdm import tqdm

from judges.types import JudgeError
from loop.errors import UserError, explain_obstacle, is_obstacle
from loop.redact import REMEMBERED, RedactedStream
from trainer.errors import TrainerError
from trainer.stopping import Stopped, ask_to_stop

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a worker that the driver has told to stop."""
USERS = (UserError, JudgeError, TrainerError)
"""Errors whose text is for the user."""
Arguments = dict[str, Any]
"""Keyword arguments of a service or of one of its methods."""
Progress = dict[str, Any]
"""Keyword arguments of one call of `Report`."""
Report = Callable[..., None]
"""Called by a service with what it has done so far; every call is a heartbeat. `item` is what it begins now ("" for
nothing in particular), and `limit` the seconds that this may take."""


class Sign(ctypes.Structure):
    """What a worker is doing, in memory shared with its driver: unlike a message it costs next to nothing, and it is
    there even if the item never ends."""

    _fields_ = (("number", ctypes.c_longlong), ("limit", ctypes.c_double), ("text", ctypes.c_char * 200))

    def show(self, item: str, limit: float) -> None:
        """Say what begins now."""
        self.text = item.encode("utf-8", "replace")[:199]
        self.limit = limit
        self.number += 1

    @property
    def item(self) -> str:
        """What began last and has not ended; "" for nothing in particular."""
        return self.text.decode("utf-8", "replace")


def main(
    pipe: Connection,
    sign: Sign,
    service: str,
    arguments: Arguments,
    log: Path,
    driver: int,
    secrets: frozenset[str],
) -> None:
    """Serve jobs until the driver closes the pipe. Its own output goes to `log`, without the `secrets`."""
    end_with_driver(driver)
    REMEMBERED.update(secrets)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin starve each other once cores are shared
    _redirect_output(log)
    _leave_signals_to_driver()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, about which Python warns when this process is killed
    obj = None
    while True:
        try:
            number, method, details = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)

        def report(number: int = number, item: str | None = None, limit: float = 0.0, **progress: Any) -> None:
            if item is None:
                pipe.send(("progress", number, progress))
            else:
                sign.show(item, limit)

        try:
            obj = obj or resolve_name(service)(**arguments)
            result = getattr(obj, method)(report=report, **details)
        except Exception as error:  # noqa: BLE001  the boundary of the process: the driver gets the message
            traceback.print_exc()
            sys.stderr.flush()
            pipe.send(("refused", number, explain(error)) if is_users(error) else ("failed", number, failure(error)))
        except Stopped:
            os._exit(TERMINATED)
        else:
            pipe.send(("result", number, result))


def _leave_signals_to_driver() -> None:
    """Ignore Ctrl-C, which the driver handles; at SIGTERM end, a training after its checkpoint. The driver has started
    this process with both blocked."""

    def stop(*_: object) -> None:
        if not ask_to_stop():
            os._exit(TERMINATED)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))


def is_users(error: Exception) -> bool:
    """Whether the error's text is for the user and another try would fail as well."""
    return isinstance(error, USERS) or is_obstacle(error)


def explain(error: Exception) -> str:
    """The error's text for the driver."""
    if isinstance(error, USERS):
        return str(error)
    if is_obstacle(error):
        return explain_obstacle(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def failure(error: Exception) -> tuple[str, str]:
    """The error's text for the driver, and the place where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"{explain(error).rstrip('.')} ({place})", f"{type(error).__name__} {frame.filename}:{frame.lineno}"


def _redirect_output(log: Path) -> None:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError:  # the work goes on without a log
        file = os.open(os.devnull, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = RedactedStream(os.fdopen(1, "wb", closefd=False), line_buffering=True)
    sys.stderr = RedactedStream(os.fdopen(2, "wb", closefd=False), line_buffering=True)


def end_with_driver(driver: int) -> None:
    """Make sure that this process does not outlive the process `driver`."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
