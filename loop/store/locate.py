"""Find the run folder and settings that command-line arguments refer to."""

from collections.abc import Sequence
from pathlib import Path

from loop.config.load import LoadedConfig, is_config, load_config
from loop.config.types import did_you_mean
from loop.errors import UserError
from loop.format import visible
from loop.store.lineage import settings_of
from loop.store.run_folder import RunFolder
from loop.store.stage import STAGES

LONGEST_NAME = 200
"""Bytes of a name: file systems allow 255, and a file that is being written has a longer one."""


def locate(
    source: str,
    overrides: Sequence[str],
    name: str | None,
    runs: Path,
    *,
    toy: bool = False,
    repair: bool = False,
) -> tuple[RunFolder, LoadedConfig]:
    """The run that `source` means, and its settings: an existing run by folder, a config by file or shipped name, or
    else an existing run by name. With `repair`, a damaged run.json is written again."""
    existing = existing_run(source, runs)
    if existing is not None:
        if toy:
            raise UserError(f"{source} is an existing run, whose size cannot change; --toy needs a config.")
        if name is not None:
            raise UserError(
                f"{source} is an existing run; --name starts a new one and needs a config: use {existing.config}."
            )
        existing.check_format(repair=repair)
        return existing, settings_of(existing, overrides)
    loaded = load_config(source, overrides, toy=toy)
    run = RunFolder(runs / check_name(name if name is not None else loaded.name, "a run"))
    run.check_format(repair=repair)
    return run, loaded


def existing_run(source: str, runs: Path) -> RunFolder | None:
    """The run in the folder `source`, or the run of that name if no config has it: a command means the same whether
    its run was started or not. UserError if neither is there and a run has a similar name."""
    folder = RunFolder(Path(source))
    if folder.was_started():
        return folder
    if is_config(source):
        return None
    if (named := RunFolder(runs / source)).was_started():
        return named
    if similar := did_you_mean(source, RunFolder.names_in(runs)):
        raise UserError(f"There is no config {source}, and no run of that name in {runs}/{similar}")
    return None


def find_run(run: str, runs: Path) -> RunFolder:
    """An existing run by folder or name. UserError lists the runs, or refuses the format of this one."""
    for folder in (RunFolder(Path(run)), RunFolder(runs / run)):
        if folder.was_started():
            folder.check_format()
            if not folder.exists():
                settings_of(folder)
            return folder
    known = RunFolder.names_in(runs)
    present = f"The runs there: {', '.join(known)}" if known else "There are none; `prefloop run CONFIG` starts one"
    raise UserError(f"There is no run {run!r} here or in {runs}/{did_you_mean(run, known) or '.'} {present}.")


def new_run(name: str, runs: Path) -> RunFolder:
    """The folder of a new run: a name means a folder in `runs`, a path is used as it is."""
    if "/" in name:
        return RunFolder(check_path(Path(name), "a run"))
    return RunFolder(runs / check_name(name, "a run"))


def check_path(path: Path, what: str) -> Path:
    """The path, if its last part can be the name of `what`. UserError."""
    check_name(path.name, what)
    return path


def check_name(name: str, what: str) -> str:
    """The name, if a file or folder may have it; `what` is a run, an export and so on, for the message. UserError."""
    longest = len(name.encode("utf-8", "surrogatepass"))
    problems = {
        "it is empty": not name,
        "it means the folder itself or the one above": name in (".", ".."),
        "a name that begins with a full stop is hidden": name.startswith("."),
        "a name that begins with - reads as an option": name.startswith("-"),
        "a name is one part of a path, without /": "/" in name,
        "RUN@K names an iteration": "@" in name,
        "it begins or ends with a blank": name != name.strip(),
        "it holds control characters": visible(name) != name or not name.isprintable(),
        f"it has {longest} bytes, and {LONGEST_NAME} are the most": longest > LONGEST_NAME,
    }
    if wrong := [problem for problem, holds in problems.items() if holds]:
        shown = name if len(name) <= 40 else f"{name[:40]}…"
        raise UserError(f"{shown!r} cannot be the name of {what}: {wrong[0]}. Choose another one, e.g. my-1.")
    return name


def find_stage_at(text: str, runs: Path) -> tuple[RunFolder, int, str]:
    """The run, iteration and stage that `RUN@K/STAGE` names; the stage is empty for the whole iteration."""
    at, _, stage = text.rpartition("@")[2].partition("/")
    folder, iteration = find_run_at(f"{text.rpartition('@')[0]}@{at}", runs)
    stages = STAGES if iteration else ("eval",)
    if stage and stage not in stages:
        raise UserError(f"{text!r} names no stage of iteration {iteration}; its stages are {', '.join(stages)}.")
    return folder, iteration, stage if iteration else ""


def find_run_at(text: str, runs: Path) -> tuple[RunFolder, int]:
    """The run and iteration that `RUN@K` names."""
    run, _, number = text.rpartition("@")
    if not run or not number.isdecimal():
        raise UserError(f"{text!r} does not name an iteration; write RUN@K, e.g. quickstart@1.")
    folder = find_run(run, runs)
    if int(number) not in folder.iterations():
        present = ", ".join(map(str, folder.iterations())) or "none"
        raise UserError(f"{folder} has no iteration {number}; it has: {present}.")
    return folder, int(number)
