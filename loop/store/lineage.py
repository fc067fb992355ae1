"""Lineage of a run: the settings and versions of each start, what changed between them, and the parent run and
iteration of a fork."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from loop.config.load import LoadedConfig, diff, load_config
from loop.config.yaml_text import to_yaml
from loop.errors import UserError
from loop.redact import redacted
from loop.store.files import is_readable, sealed_json, write_file
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json, ModelRecord, plain, read_record


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that changed, by its dotted key; the file calls the values `from` and `to`."""

    key: str
    old: Annotated[Any, Field(validation_alias="from")] = None
    new: Annotated[Any, Field(validation_alias="to")] = None

    def as_json(self) -> Json:
        """Plain values."""
        return {"key": self.key, "from": self.old, "to": self.new}


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a run."""

    time: float
    """Seconds since 1970."""
    config: str
    """The file or name that the settings came from."""
    changes: tuple[Change, ...]
    """What differs from the settings of the last start."""
    versions: dict[str, str]
    """Versions of the packages that affect results."""

    def as_json(self) -> Json:
        """Plain values."""
        return asdict(self) | {"changes": [change.as_json() for change in self.changes]}


@dataclass(frozen=True, slots=True)
class Parent:
    """The origin of a fork."""

    run: str
    """Folder of the run that was forked."""
    iteration: int
    """The last iteration of which anything was taken over."""
    time: float
    policy: ModelRecord
    """The incumbent after that iteration."""
    digests: dict[str, str]
    """Digests of the manifests that were taken over, by stage."""
    changes: tuple[Change, ...]
    stage: str = ""
    """The last stage of that iteration that was taken over; empty if all were."""

    def __str__(self) -> str:
        return f"{self.place} of {self.run}"

    @property
    def place(self) -> str:
        """The iteration, or its stage."""
        return f"{f'stage {self.stage} of ' if self.stage else ''}iteration {self.iteration}"

    def as_json(self) -> Json:
        """Plain values."""
        changes = [change.as_json() for change in self.changes]
        return plain(self) | {"changes": changes}


@dataclass(frozen=True, slots=True)
class Lineage:
    """lineage.json."""

    name: str = ""
    starts: tuple[Start, ...] = ()
    parent: Parent | None = None
    verdict_caches: tuple[str, ...] = ()
    """Verdict caches of the runs that a fork descends from, the nearest first."""

    def as_json(self) -> Json:
        """Plain values; only a fork has `parent` and `verdict_caches`."""
        found: Json = {"name": self.name, "starts": [start.as_json() for start in self.starts]}
        if self.parent is not None:
            found |= {"parent": self.parent.as_json(), "verdict_caches": list(self.verdict_caches)}
        return found


def changes_of(changed: Sequence[tuple[str, object, object]]) -> tuple[Change, ...]:
    """Records of what `diff` found, without secrets."""
    return tuple(Change(key, redacted(old, key), redacted(new, key)) for key, old, new in changed)


def settings_of(run: RunFolder, overrides: Sequence[str] = ()) -> LoadedConfig:
    """The settings of an existing run. UserError that says how to write them again if campaign.yaml is damaged."""
    try:
        return load_config(run.config, overrides)
    except UserError as error:
        if is_readable(lambda: load_config(run.config)):  # then an override is wrong
            raise
        starts = read_lineage(run).starts if is_readable(lambda: read_lineage(run)) else ()
        sources = [start.config for start in starts if start.config != str(run.config.absolute())]
        why = " ".join(str(error).partition("\n\n")[0].split()).removesuffix(".")
        raise UserError(
            f"{run.config} is damaged ({why if run.config.exists() else 'it is missing'}), so the run has no settings. "
            "Nothing else is lost: have the file written again from the config that the run was started with, and the "
            f"same KEY=VALUE changes: prefloop run {sources[-1] if sources else 'CONFIG'} --name {run.name} --runs "
            f"{run.root.parent} --repair."
        ) from error


def record_settings(run: RunFolder, loaded: LoadedConfig, versions: dict[str, str]) -> tuple[Change, ...]:
    """Make today's settings the run's, note when they or the versions differ from the last start's, and return the
    changed settings."""
    if not run.exists():
        run.write_format()
    known = read_lineage(run)
    before = settings_of(run).raw if run.config.exists() else loaded.raw
    changes = changes_of(diff(before, loaded.raw))
    if not known.starts or changes or known.starts[-1].versions != versions:
        start = Start(round(time.time(), 3), str(loaded.source), changes, versions)
        write_lineage(run, replace(known, name=run.name, starts=(*known.starts, start)))
    write_file(run.config, to_yaml(loaded.raw).encode("utf-8"))
    return changes


def read_lineage(run: RunFolder) -> Lineage:
    """What is recorded; nothing before the first start. UserError if the file is damaged."""
    return read_record(run.lineage, Lineage) if run.lineage.exists() else Lineage()


def write_lineage(run: RunFolder, lineage: Lineage) -> None:
    """Replace lineage.json."""
    write_file(run.lineage, sealed_json(lineage.as_json()))


def inherited_caches(run: RunFolder) -> tuple[Path, ...]:
    """The verdict caches of the runs that this one was forked from, the nearest first."""
    return tuple(map(Path, read_lineage(run).verdict_caches))
