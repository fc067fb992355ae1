"""Runs a judge on groups and keeps its prints off stdout, which belongs to the command."""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TextIO

from judges.contract import Judge, PointwiseJudge
from judges.isolation.pool import judge_isolated
from judges.remember import key_of, once
from judges.types import Group, JudgeError, Prompt, Response, Verdict, describe

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
    """Inside, this thread's prints go to stderr; `contextlib.redirect_stdout` would redirect other threads, too."""
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


def judge_groups(judge: Judge, groups: Sequence[Group]) -> list[list[Verdict]]:
    """Run a judge and check its verdicts, for every caller; JudgeError if it fails or breaks the contract."""
    name, process = type(judge).__name__, os.getpid()
    try:
        with prints_go_to_stderr():
            verdicts = _verdicts(judge, groups)
    except JudgeError:
        raise
    except (Exception, SystemExit) as error:  # the boundary to foreign code
        first = f", the first with prompt {groups[0].prompt.id!r}" if groups else ""
        raise JudgeError(
            f"Judge {name} failed on {len(groups)} groups{first}: {describe(error)}. None of them got a verdict; fix "
            f"the judge and run again."
        ) from error
    finally:
        if os.getpid() != process:
            os._exit(0)  # a process that the judge has forked must not continue our work
    _check_shape(name, groups, verdicts)
    return [list(row) for row in verdicts]


def _verdicts(judge: Judge, groups: Sequence[Group]) -> Sequence[Sequence[Verdict]]:
    """Isolated judges run in child processes, costly ones only where the store has no verdict, others as they are."""
    if not isinstance(judge, PointwiseJudge) or type(judge).__call__ is not PointwiseJudge.__call__:
        return judge(groups)
    if judge.isolated:
        return judge_isolated(judge, groups)
    if judge.costly:
        return [[_remembered(judge, group.prompt, response) for response in group.responses] for group in groups]
    return judge(groups)


def _remembered(judge: PointwiseJudge, prompt: Prompt, response: Response) -> Verdict:
    key = key_of(judge, prompt, [response])
    return Verdict(**once(judge, key, lambda: asdict(judge.judged(prompt, response))))


def _check_shape(name: str, groups: Sequence[Group], verdicts: object) -> None:
    """JudgeError unless `verdicts` holds one list per group and one Verdict per response."""
    rule = "A judge must return one list per group with one Verdict per response, in the same order."
    if not isinstance(verdicts, (list, tuple)):
        raise JudgeError(f"Judge {name} returned {_shown(verdicts)} for {len(groups)} groups. {rule}")
    if len(verdicts) != len(groups):
        raise JudgeError(f"Judge {name} returned {len(verdicts)} lists for {len(groups)} groups. {rule}")
    for group, row in zip(groups, verdicts, strict=True):
        where = f"for prompt {group.prompt.id!r} with {len(group.responses)} responses"
        if not isinstance(row, (list, tuple)):
            raise JudgeError(f"Judge {name} returned {_shown(row)} {where}. {rule}")
        if len(row) != len(group.responses):
            raise JudgeError(f"Judge {name} returned {len(row)} verdicts {where}. {rule}")
        for verdict in row:
            if type(verdict) is not Verdict:
                raise JudgeError(
                    f"Judge {name} returned {_shown(verdict)} {where}. {rule} For a plain score, use Verdict.of(score)."
                )


def _shown(value: object) -> str:
    return f"{repr(value)[:80]} (a {type(value).__name__})"
