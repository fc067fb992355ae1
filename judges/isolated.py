"""Room judges, isolation: responses of an `isolated` judge go to a few child processes, their verdicts come back.

Foreign code that hangs, crashes, exits or eats all memory costs the one response it was looking at an `error`: its
child is ended and replaced, and the stage goes on. A fence against accidents, not a sandbox against attacks.

The children belong to this process and serve every isolated judge in it. Each says every verdict at once, so the first
response without one is the one that was being judged when a child is lost.
"""

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

from judges.child import Child, Item, Loss, heard_or_late
from judges.child_main import Recipe
from judges.contract import Group, JudgeError, PointwiseJudge, Verdict
from judges.versions import source_of, version_of

START_TRIES = 3
"""So many children lost before their first response mean that the judge cannot be started."""

LONGEST_BATCH = 64
"""Responses handed to a child at once."""


def judge_isolated(judge: PointwiseJudge, groups: Sequence[Group]) -> list[list[Verdict]]:
    """The judge's verdicts, made in child processes. JudgeError if it raises one there or cannot be started there."""
    items = [(group.prompt, response) for group in groups for response in group.responses]
    verdicts = iter(_pool(os.getpid()).judge(judge, items))
    return [[next(verdicts) for _ in group.responses] for group in groups]


@lru_cache(maxsize=1)
def _pool(process: int) -> "Pool":
    """The pool of this process; a forked copy of it makes its own."""
    cores = len(os.sched_getaffinity(process)) if sys.platform == "linux" else os.cpu_count() or 1
    return Pool(max(2, min(8, cores)))


class Pool:
    """A few children, started when first needed and kept until this process ends."""

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
        """End every child, but not on behalf of a forked copy of this process."""
        if os.getpid() != self._process:
            return
        for child in self.children:
            child.end()


class _Run:
    """One call: batches go out, verdicts come in, lost children are replaced."""

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
                    self._give(child, self.waiting.popleft())
            for child in heard_or_late([child for child in self.children if child.batch]):
                self._take(child)
        return [verdict for verdict in self.verdicts if verdict is not None]

    def _give(self, child: Child, batch: Sequence[int]) -> None:
        child.give(self.recipe, self.items, batch, self.judge.time_limit)

    def _take(self, child: Child) -> None:
        """Note what the child has said, and deal with its loss."""
        try:
            for kind, *content in child.messages():
                self._note(child, kind, content)
            loss = child.loss() if child.batch else None
        except (json.JSONDecodeError, UnicodeDecodeError):
            loss = Loss("wrote into the pipe of its verdicts", again=True)
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

    def _replace(self, child: Child, loss: Loss) -> None:
        """The response that was being judged is tried once more, alone in a fresh child, or gets its error."""
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
            self._give(child, [first])
            child.alone = True
        else:
            self.verdicts[first] = Verdict.error(self._in_words(loss))

    def _in_words(self, loss: Loss) -> str:
        limit = f" ({self.judge.memory_limit:g} GiB)" if loss.why.startswith("needed") else ""
        return f"the judge {loss.why}{limit}{', twice' if loss.again else ''}"

    def _note_lost_start(self, loss: Loss) -> None:
        self.lost_at_start += 1
        if self.lost_at_start == START_TRIES:
            raise JudgeError(
                f"Judge {type(self.judge).__name__} runs in child processes, and none of {START_TRIES} could start it: "
                f"importing or building it there {loss.why}. What they printed is on stderr. Nothing was judged; try "
                f"the import alone with {sys.executable}."
            )


def recipe_of(judge: PointwiseJudge) -> bytes:
    """What a child needs to build the same judge, pickled; JudgeError if the class cannot be found from there."""
    kind = type(judge)
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        raise JudgeError(
            f"Judge {kind.__name__} is isolated, so a child process must be able to import it, but it is defined in "
            f"{'the main script' if kind.__module__ == '__main__' else 'a function'}. Put the class at the top level "
            f"of a file of its own and name it 'path/to/file.py:{kind.__name__}'."
        )
    fields = {name: getattr(judge, name) for name in kind.model_fields}
    try:
        arguments = pickle.dumps(fields)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise JudgeError(
            f"Judge {kind.__name__} is isolated, so its arguments travel to a child process, but they cannot be "
            f"pickled ({error}). Use plain values: text, numbers, lists."
        ) from error
    source, path = source_of(kind), tuple(sys.path)
    return pickle.dumps(Recipe(kind.__module__, kind.__qualname__, source, path, version_of(kind), arguments))
