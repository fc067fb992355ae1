"""Verdict cache: a costly verdict is computed once for the same content (ids do not count). Errors are not stored."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from judges.context import Usage
from judges.contract import Judge
from judges.types import Prompt, Response
from judges.versions import identity_of


def key_of(
    judge: Judge,
    prompt: Prompt,
    responses: Sequence[Response],
    *,
    columns: Sequence[str] | None = None,
    vote: int = 0,
    weights: str | None = None,
) -> str:
    """sha256 of all the verdict depends on. `columns` None: the judge may read any; `weights` None: the loop's."""
    read = prompt.columns if columns is None else {name: prompt.columns.get(name) for name in columns}
    content = {
        "judge": identity_of(judge),
        "weights": judge.context.weights if weights is None else weights,
        "messages": prompt.messages,
        "target": prompt.target,
        "columns": read,
        "responses": [_content(response) for response in responses],
        "vote": vote,
    }
    text = json.dumps(content, sort_keys=True, default=str)  # ASCII: a lone surrogate is escaped, not refused
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _content(response: Response) -> list[str | None]:
    """What a verdict can depend on: the answer counts where it is not the text."""
    content: list[str | None] = [response.text, response.finish_reason]
    return content if response.answer == response.text else [*content, response.answer]


def once(judge: Judge, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The verdict or preference (as a mapping) stored under this key; computed and stored if there is none."""
    return once_each(judge, [key], lambda _: iter([{0: compute()}]))[0]


Batch = Mapping[int, dict[str, Any]]
"""Verdicts or preferences, as mappings, by the index of their key."""


def once_each(
    judge: Judge, keys: Sequence[str], compute: Callable[[list[int]], Iterator[Batch]]
) -> list[dict[str, Any]]:
    """Like `once` for many keys; results in their order. `compute` gets the indices of the missing keys, equal content
    once, and yields batches in any order; each is stored as it arrives."""
    store, on_usage = judge.context.store, judge.context.on_usage
    found = {key: json.loads(text) for key in dict.fromkeys(keys) if (text := store.get(key)) is not None}
    missing = {key: index for index, key in reversed([*enumerate(keys)]) if key not in found}
    if remembered := len(keys) - len(missing):
        on_usage(Usage(calls=remembered), True)
    for batch in compute(sorted(missing.values())) if missing else ():
        new = {keys[index]: result for index, result in batch.items()}
        kept = {key: json.dumps(result, sort_keys=True) for key, result in new.items() if result["kind"] != "error"}
        if kept:
            store.put_all(kept, identity_of(judge), Usage(calls=len(kept)))
        on_usage(Usage(calls=len(new)), False)
        found |= new
    return [dict(found[key]) for key in keys]
