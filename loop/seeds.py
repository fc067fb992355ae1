"""Seeds and seeded orders. All derive from hashes of names, never from the order of calls."""

import hashlib
from collections.abc import Iterable
from typing import Any


def hash_of(*words: Any, separator: str = "|") -> bytes:
    """sha256 of the words; as a sort key it gives a random-looking order that the words alone decide."""
    return hashlib.sha256(separator.join(map(str, words)).encode("utf-8")).digest()


def seeded(keys: Iterable[str], seed: int) -> list[str]:
    """Ids in an order that only the seed and the ids decide."""
    return sorted(keys, key=lambda key: hash_of(seed, key))


def seed_for(*words: Any) -> int:
    """A seed below 2^31 that depends on the words alone."""
    return int.from_bytes(hash_of(*words)[:4], "big") >> 1
