"""Campaigns inside the test's own process: the same services without the processes, so that a test can stop one at an
exact moment and take seconds instead of minutes."""

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
import yaml

import loop.workers.pool
from loop.campaign.run import run_campaign
from loop.config.load import load_config
from loop.store.run_folder import RunFolder
from loop.view.display import Display
from loop.workers.process import Job, Worker
from tests.helpers.bad_input import call
from tests.helpers.campaigns import Cli, Ended

Hook = Callable[[Worker, Job], None]


class Lost(Exception):
    """Raised by a hook: the worker's process has ended."""


class Killed(BaseException):
    """Raised by a hook: driver and workers have ended."""


class InProcess(Worker):
    """A worker whose service lives here. `after` is called when a job is done and its answer not yet given."""

    __slots__ = ("ready", "service_object")
    after: Hook = staticmethod(lambda worker, job: None)

    def start(self) -> None:
        if self.starts:
            return
        self.starts, self.service_object = 1, None
        torch.set_num_threads(1)  # as the processes of other tests; what one service sets here, the others get
        self.ready, signal = multiprocessing.Pipe()
        signal.send("always")

    def submit(self, job: Job) -> None:
        self.start()
        self.job = job
        try:
            self.service_object = self.service_object or resolve_name(self.service)(**self.arguments)
            job.result = getattr(self.service_object, job.method)(
                report=lambda **said: job.on_progress(said), **job.details
            )
            InProcess.after(self, job)
        except Lost:
            self.service_object = None
            self.submit(job)

    @property
    def handles(self) -> list[Any]:
        return [self.ready]

    def poll(self) -> Job | None:
        job, self.job = self.job, None
        assert job is not None
        job.done = True
        return job

    def close(self) -> None:
        self.service_object = None


def run_here(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    settings: dict[str, Any],
    name: str = "run",
    after: Hook | None = None,
) -> Path:
    """Run a campaign, or go on with it, in this process; its run folder."""
    monkeypatch.setattr(loop.workers.pool, "Worker", InProcess)
    monkeypatch.setattr(InProcess, "after", staticmethod(after or (lambda worker, job: None)))
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    run = RunFolder(folder / "runs" / name)
    run_campaign(run, load_config(config), Display(to_stderr=True))
    return run.root


@dataclass(frozen=True, slots=True)
class Here(Cli):
    """The command in the test's own process, with workers that live there, too; what is started, paused or given an
    environment of its own has a process as ever."""

    patch: pytest.MonkeyPatch

    def __call__(self, *args: str | Path, env: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> Ended:
        if env or prefix:
            return Cli.__call__(self, *args, env=env, prefix=prefix)
        with self.patch.context() as patch:
            patch.setattr(loop.workers.pool, "Worker", InProcess)
            patch.setattr(InProcess, "after", staticmethod(lambda worker, job: None))
            patch.setenv("COLUMNS", "200")
            patch.chdir(self.folder)
            return call((*map(str, args), "--runs", str(self.runs)), patch)[0]
