"""Seeds and seeded orders. All derive from hashes of names, never from the order of calls."""

import hashlib
from collections.abc import Iterable
from typing import Any


def seeded(keys: Iterable[str], seed: int) -> list[str]:
    """Ids in an order that only the seed and the ids decide."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}|{key}".encode()).digest())


def seed_for(*words: Any) -> int:
    """A seed below 2^31 that depends on the words alone."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, words)).encode("utf-8")).digest()[:4], "big") >> 1
