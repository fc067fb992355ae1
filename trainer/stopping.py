"""Ends training early, after a step and its checkpoint, in a process that was asked to stop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Stopped(BaseException):
    """Raised after the checkpoint of a training that was asked to stop. No error: no handler of errors catches it."""


@dataclass(slots=True)
class _State:
    """Of this process's training; there is one."""

    steps: bool = False
    """Whether optimizer steps are being made."""
    asked: bool = False
    tell: Callable[[], None] | None = None
    """Asks the processes that make the steps for this one."""


_STATE = _State()


def ask_to_stop() -> bool:
    """Ask the training of this process to stop after the current step; whether it is making steps."""
    _STATE.asked = _STATE.steps
    if _STATE.steps and _STATE.tell is not None:
        _STATE.tell()
    return _STATE.steps


def is_asked() -> bool:
    """Whether the training should write a checkpoint and raise `Stopped`."""
    return _STATE.asked


@contextmanager
def stoppable(tell: Callable[[], None] | None = None) -> Iterator[None]:
    """Inside, steps are made that `is_asked` ends; other processes that make them are asked by `tell`."""
    _STATE.steps, _STATE.tell = True, tell
    try:
        yield
    finally:
        _STATE.steps, _STATE.asked, _STATE.tell = False, False, None
