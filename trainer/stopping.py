"""Ends training early, after a step and its checkpoint, in a process that was asked to stop."""

from collections.abc import Iterator
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


_STATE = _State()


def ask_to_stop() -> bool:
    """Ask the training of this process to stop after the current step; whether it is making steps."""
    _STATE.asked = _STATE.steps
    return _STATE.steps


def is_asked() -> bool:
    """Whether the training should write a checkpoint and raise `Stopped`."""
    return _STATE.asked


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, steps are made that `is_asked` ends."""
    _STATE.steps = True
    try:
        yield
    finally:
        _STATE.steps = _STATE.asked = False
