"""Runs an `isolated` judge in child processes: when foreign code hangs, crashes or eats all memory, only the response
being judged gets an `error` (the first without a verdict). A guard against accidents, no sandbox."""

import atexit
import json
import os
import pickle
import sys
import threading
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from judges.contract import PointwiseJudge
from judges.isolation.child import Child, Item, Loss, await_message
from judges.isolation.child_main import Recipe
from judges.types import Group, JudgeError, Verdict
from judges.versions import source_of, version_of

START_TRIES = 3
"""After this many children lost in a row before their first response, the judge cannot be started."""

LONGEST_BATCH = 64
"""Maximum number of responses sent to a child at once."""


def judge_isolated(judge: PointwiseJudge, groups: Sequence[Group]) -> list[list[Verdict]]:
    """Judge in child processes; JudgeError if the judge raises one there or cannot be started."""
    items = [(group.prompt, response) for group in groups for response in group.responses]
    verdicts = iter(_pool(os.getpid()).judge(judge, items))
    return [[next(verdicts) for _ in group.responses] for group in groups]


@lru_cache(maxsize=1)
def _pool(process: int) -> "Pool":
    """The pool of this process; a fork of it makes its own."""
    cores = len(os.sched_getaffinity(process)) if sys.platform == "linux" else os.cpu_count() or 1
    return Pool(max(2, min(8, cores)))


class Pool:
    """A few child processes, started when first needed and kept until this process ends."""

    def __init__(self, size: int) -> None:
        self.children = [Child() for _ in range(size)]
        self._process = os.getpid()
        self._lock = threading.Lock()
        atexit.register(self.close)

    def judge(self, judge: PointwiseJudge, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in order; calls from several threads take turns."""
        with self._lock:
            try:
                return _Run(judge, items, self.children).finish()
            finally:
                for child in self.children:
                    if child.batch:  # the run failed or was interrupted
                        child.end()

    def close(self) -> None:
        """Kill every child, but only from the process that started them."""
        if os.getpid() != self._process:
            return
        for child in self.children:
            child.end()


class _Run:
    """One call: sends batches, collects verdicts, replaces lost children."""

    def __init__(self, judge: PointwiseJudge, items: Sequence[Item], children: Sequence[Child]) -> None:
        self.judge, self.items, self.children = judge, items, children
        self.recipe = recipe_of(judge)
        self.verdicts: list[Verdict | None] = [None] * len(items)
        size = min(LONGEST_BATCH, -(-len(items) // (4 * len(children))) or 1)
        self.waiting: deque[Sequence[int]] = deque(
            range(start, min(start + size, len(items))) for start in range(0, len(items), size)
        )
        self.lost_at_start = 0

    def finish(self) -> list[Verdict]:
        """All verdicts, in the order of the items."""
        while self.waiting or any(child.batch for child in self.children):
            for child in self.children:
                if self.waiting and not child.batch:
                    child.give(self.recipe, self.items, self.waiting.popleft(), self.judge.time_limit)
            for child in await_message([child for child in self.children if child.batch]):
                self._take(child)
        return [verdict for verdict in self.verdicts if verdict is not None]

    def _take(self, child: Child) -> None:
        """Process the child's messages, and replace it if it is lost."""
        try:
            for kind, *content in child.messages():
                self._note(child, kind, content)
            loss = child.loss() if child.batch else None
        except (json.JSONDecodeError, UnicodeDecodeError):
            loss = Loss("wrote into the pipe reserved for its verdicts", again=True)
        if loss is not None:
            self._replace(child, loss)

    def _note(self, child: Child, kind: str, content: list[Any]) -> None:
        if kind == "refused":
            child.batch.clear()  # it has given up the rest and waits for the next batch
            raise JudgeError(content[0])
        if kind == "ready":
            child.ready, self.lost_at_start = True, 0
        else:
            self.verdicts[child.batch.popleft()] = Verdict(*content)
            self.judge.context.on_item("")

    def _replace(self, child: Child, loss: Loss) -> None:
        """Retry the response that was being judged once, alone in a fresh child, or give it an error."""
        first, *rest = child.batch
        had_a_try, ready = child.alone, child.ready
        child.end()
        if not ready:
            self._note_lost_start(loss)
            self.waiting.append([first, *rest])
            return
        if rest:
            self.waiting.append(rest)
        if loss.again and not had_a_try:
            child.give(self.recipe, self.items, [first], self.judge.time_limit)
            child.alone = True
        else:
            limit = f" ({self.judge.memory_limit:g} GiB)" if loss.why.startswith("needed") else ""
            self.verdicts[first] = Verdict.error(f"the judge {loss.why}{limit}{', twice' if loss.again else ''}")

    def _note_lost_start(self, loss: Loss) -> None:
        self.lost_at_start += 1
        if self.lost_at_start == START_TRIES:
            raise JudgeError(
                f"Judge {type(self.judge).__name__} runs in child processes, and none of {START_TRIES} could start it: "
                f"importing or building it there {loss.why}. Their output is on stderr. Nothing was judged; try the "
                f"import alone with {sys.executable}."
            )


def recipe_of(judge: PointwiseJudge) -> bytes:
    """The pickled recipe with which a child builds the same judge; JudgeError if it cannot import the class."""
    kind = type(judge)
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        raise JudgeError(
            f"Judge {kind.__name__} is isolated, so a child process must be able to import it, but it is defined in "
            f"{'the main script' if kind.__module__ == '__main__' else 'a function'}. Put the class at the top level "
            f"of its own file and name it 'path/to/file.py:{kind.__name__}'."
        )
    fields = {name: getattr(judge, name) for name in kind.model_fields}
    try:
        arguments = pickle.dumps(fields)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise JudgeError(
            f"Judge {kind.__name__} is isolated, so its arguments are sent to a child process, but they cannot be "
            f"pickled ({error}). Use plain values: text, numbers, lists."
        ) from error
    source, path = source_of(kind), tuple(sys.path)
    return pickle.dumps(Recipe(kind.__module__, kind.__qualname__, source, path, version_of(kind), arguments))
