"""Room judges: keeps what a judge prints away from stdout, which belongs to the command (`--json`, pipes).

Only the judging thread is redirected, so a judge that runs beside the progress display or beside another judge
cannot swallow their output, as `contextlib.redirect_stdout` would.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_lock = threading.Lock()
_judging: set[int] = set()
"""Identifiers of the threads that are inside a judge."""


class _Split:
    """Stands in for sys.stdout: judging threads reach stderr, every other thread the true stdout."""

    def __init__(self, stdout: TextIO) -> None:
        self.stdout = stdout

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr if threading.get_ident() in _judging else self.stdout, name)


@contextmanager
def prints_go_to_stderr() -> Iterator[None]:
    """Inside, this thread's prints go to stderr."""
    me = threading.get_ident()
    with _lock:
        nested = me in _judging
        _judging.add(me)
        if not isinstance(sys.stdout, _Split):
            sys.stdout = _Split(sys.stdout)
    try:
        yield
    finally:
        with _lock:
            if not nested:
                _judging.discard(me)
            if not _judging and isinstance(sys.stdout, _Split):
                sys.stdout = sys.stdout.stdout
