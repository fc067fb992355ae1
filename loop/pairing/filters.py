"""Filters on the couples that a rule makes: which are kept, and why each of the others is dropped."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from loop.config.pairs_section import PairsConfig
from loop.pairing.records import Couple


def share_to_edit(one: bytes | str, other: bytes | str) -> float:
    """Levenshtein distance over the longer length, in [0, 1]; of texts by letters, of bytes by int32 tokens."""
    a, b = _items(one), _items(other)
    longest = max(len(a), len(b))
    return levenshtein(a, b) / longest if longest else 0.0


def levenshtein(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Fewest insertions, deletions and replacements that turn `a` into `b`.

    A column of the table is two big integers, bit i telling whether the distance rises or falls from row i to i + 1:
    Hyyrö 2003, "A bit-vector algorithm for computing Levenshtein and Damerau edit distances", after Myers 1999.
    """
    if not a:
        return len(b)
    where: dict[Hashable, int] = {}
    for row, item in enumerate(a):
        where[item] = where.get(item, 0) | 1 << row
    ones, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, distance = ones, 0, len(a)
    for item in b:
        equal = where.get(item, 0) | falls
        zero = (((where.get(item, 0) & rises) + rises) ^ rises) | equal
        right_up, right_down = falls | (~(zero | rises) & ones), rises & zero
        distance += bool(right_up & last) - bool(right_down & last)
        right_up, right_down = right_up << 1 | 1, right_down << 1
        rises, falls = (right_down | ~(zero | right_up)) & ones, right_up & zero & ones
    return distance


def _items(key: bytes | str) -> Sequence[Hashable]:
    tokens: list[Hashable] = np.frombuffer(key, dtype=np.int32).tolist() if isinstance(key, bytes) else list(key)
    return tokens


class FilterResult(NamedTuple):
    """Kept couples, in order, and dropped ones with the reason."""

    kept: list[Couple]
    dropped: list[tuple[Couple, str]]


def sift(couples: list[Couple], settings: PairsConfig) -> FilterResult:
    """The couples that pass every filter; a repeated couple is checked only once."""
    known: dict[tuple[str, str], str | None] = {}
    sifted = FilterResult([], [])
    for couple in couples:
        ids = (couple[0].response_id, couple[1].response_id)
        if ids not in known:
            known[ids] = why_dropped(couple, settings)
        reason = known[ids]
        if reason is None:
            sifted.kept.append(couple)
        else:
            sifted.dropped.append((couple, reason))
    return sifted


def why_dropped(couple: Couple, settings: PairsConfig) -> str | None:
    """The first filter that a couple does not pass; None if it passes all."""
    chosen, rejected = couple
    if reason := _by_score(couple, settings.min_margin):
        return reason
    if chosen.finish_reason == "length" and settings.drop_truncated != "none":
        return "truncated"
    if rejected.finish_reason == "length" and settings.drop_truncated == "both":
        return "truncated"
    if settings.max_length_gap is not None and abs(chosen.length - rejected.length) > settings.max_length_gap:
        return "length_gap"
    least = settings.min_edit_distance
    if least and share_to_edit(chosen.token_ids_key, rejected.token_ids_key) < least:
        return "near_duplicate"
    return None


def _by_score(couple: Couple, margin: float) -> str | None:
    chosen, rejected = couple
    if chosen.score is None or rejected.score is None:
        return None
    if chosen.score <= rejected.score:
        return "tied"
    return "within_margin" if chosen.score - rejected.score <= margin else None
