"""Verdict cache: verdicts that cost money or minutes, keyed by what they depend on, in one SQLite file.

The process that judges is its only writer. That is the judge's worker (or the engine's, if the policy judges itself),
not the driver: a verdict is committed where it arrives, before anything else can go wrong, and a run has one such
process at a time. Each commit is on disk when it returns, so a kill or a power cut at any moment costs only the calls
in flight. The caches of a run's parents are read and never written.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

from judges.context import Usage
from judges.types import JudgeError

PATIENCE = 60.0
"""Seconds to wait while another process holds the file."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, value TEXT NOT NULL, judge TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (judge TEXT PRIMARY KEY, calls INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL) WITHOUT ROWID;
"""
CHARGE = """
INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT (judge) DO UPDATE SET calls = calls + excluded.calls,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens
"""


class VerdictCache:
    """Implements `judges.context.Store` in a file that is created with the first verdict."""

    def __init__(self, path: Path, parents: Sequence[Path] = ()) -> None:
        self.path, self.parents = path, tuple(parents)

    def get(self, key: str) -> str | None:
        """The value of this key, from this run or from one of its parents."""
        files = [self._own, *self._inherited] if "_own" in self.__dict__ or self.path.exists() else self._inherited
        for database in files:
            row = self._run(database, "SELECT value FROM verdicts WHERE key = ?", key).fetchone()
            if row is not None:
                return str(row[0])
        return None

    def put(self, key: str, value: str, who: str, usage: Usage) -> None:
        """Store the value, unless the key exists, and charge its usage in one transaction."""
        self.put_all({key: value}, who, usage)

    def put_all(self, values: Mapping[str, str], who: str, usage: Usage) -> None:
        """As `put` for a batch, in one transaction."""
        with self._own:
            for key, value in values.items():
                self._run(self._own, "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?)", key, value, who)
            self._charge(who, usage)

    def charge(self, who: str, usage: Usage) -> None:
        """Add to the judge's total in this run."""
        with self._own:
            self._charge(who, usage)

    def spent(self, who: str) -> Usage:
        """Total charged to the judge in this run, without its parents."""
        if not self.path.exists():
            return Usage()
        columns = "calls, prompt_tokens, completion_tokens"
        row = self._run(self._own, f"SELECT {columns} FROM spent WHERE judge = ?", who).fetchone()
        return Usage(*row) if row else Usage()

    def close(self) -> None:
        """Close the files; committed values are safe without it."""
        for database in [self.__dict__.pop("_own", None), *self.__dict__.pop("_inherited", [])]:
            if database is not None:
                database.close()

    def _charge(self, who: str, usage: Usage) -> None:
        self._run(self._own, CHARGE, who, usage.calls, usage.prompt_tokens, usage.completion_tokens)

    @cached_property
    def _own(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self.path, timeout=PATIENCE)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.executescript(SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise unusable(self.path, error) from error
        return database

    @cached_property
    def _inherited(self) -> list[sqlite3.Connection]:
        return [read_only(path) for path in self.parents if path.exists()]

    def _run(self, database: sqlite3.Connection, statement: str, *values: str | int) -> sqlite3.Cursor:
        try:
            return database.execute(statement, values)
        except sqlite3.Error as error:
            own = database is self.__dict__.get("_own")
            existing = [path for path in self.parents if path.exists()]
            raise unusable(self.path if own else existing[self._inherited.index(database)], error) from error


def read_only(path: Path) -> sqlite3.Connection:
    """Open a cache that is never written."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE)


def spent_in(path: Path) -> Usage:
    """Total charged to the judges of a run, failed calls included; 0 if there is no cache."""
    rows = _look(path, "SELECT total(calls), total(prompt_tokens), total(completion_tokens) FROM spent")
    return Usage(*map(int, rows[0])) if rows else Usage()


def paid_in(path: Path) -> list[tuple[str, int, Usage]]:
    """By judge: identity, number of cached verdicts, total charged."""
    count = "(SELECT count(*) FROM verdicts WHERE verdicts.judge = spent.judge)"
    rows = _look(path, f"SELECT judge, {count}, calls, prompt_tokens, completion_tokens FROM spent ORDER BY judge")
    return [(who, kept, Usage(*usage)) for who, kept, *usage in rows]


def kept_in(path: Path, containing: str | None, limit: int) -> list[tuple[str, str, str]]:
    """Key, value and judge of up to `limit` entries, ordered by key; only those whose value contains `containing`."""
    wanted = "" if containing is None else "WHERE instr(value, ?) > 0"
    values = () if containing is None else (containing,)
    return _look(path, f"SELECT key, value, judge FROM verdicts {wanted} ORDER BY key LIMIT ?", *values, max(0, limit))


def _look(path: Path, statement: str, *values: str | int) -> list[Any]:
    """Query a cache read-only; no rows if there is none."""
    if not path.exists():
        return []
    try:
        with closing(read_only(path)) as database:
            return database.execute(statement, values).fetchall()
    except sqlite3.Error as error:
        raise unusable(path, error) from error


def unusable(path: Path, error: sqlite3.Error | OSError) -> JudgeError:
    """The error for a cache that cannot be read or written; a judge lets a JudgeError pass."""
    return JudgeError(
        f"The verdict cache {path} cannot be used ({error}). It holds the verdicts that were paid for: free some space "
        "or fix its permissions, and run the same command. If it is damaged, restore it from a backup, or remove it: "
        "without it the run continues, too, but asks again for the verdicts of unfinished shards."
    )
