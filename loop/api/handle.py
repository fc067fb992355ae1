"""A campaign from Python: plan it, run it, read it, report on it and export from it, as the commands do."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from loop.campaign.context import read_stop_point
from loop.campaign.run import run_campaign
from loop.commands.export import PairFormat, export_model, export_pairs
from loop.commands.plan import Plan, make_plan
from loop.config.load import LoadedConfig
from loop.config.settings import Config
from loop.errors import UserError
from loop.report.page import write_report
from loop.store.lineage import settings_of
from loop.store.locate import check_path, find_run, locate
from loop.store.run_folder import RunFolder
from loop.store.run_records import Event, Json, as_record
from loop.store.run_state import RunState
from loop.view.display import Display
from loop.view.run_log import Output
from loop.view.run_view import RunView
from loop.view.status import collect


class Campaign(RunView):
    """A campaign, started or not. What a user can mend is a UserError, a JudgeError or a TrainerError."""

    def __init__(self, run: RunFolder, loaded: LoadedConfig) -> None:
        super().__init__(run)
        self._loaded = loaded

    @classmethod
    def from_yaml(
        cls,
        config: str | Path,
        settings: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        runs: str | Path = "runs",
        toy: bool = False,
    ) -> Self:
        """A campaign of a YAML file or a shipped config, as `prefloop run CONFIG` takes it, new or to be continued.

        Args:
            config: The file, or the name of a shipped config such as "quickstart" or "recipes/sppo".
            settings: Settings to change, under dotted keys: `{"train.beta": 0.2}`.
            name: Name of the run; by default that of the config.
            runs: Folder that holds the runs.
            toy: Try the algorithm on a small model with arithmetic prompts.
        """
        overrides = [f"{key}={_as_yaml(key, value)}" for key, value in (settings or {}).items()]
        return cls(*locate(str(config), overrides, name, Path(runs), toy=toy))

    @classmethod
    def open(cls, run: str | Path, runs: str | Path = "runs") -> Self:
        """An existing run by its folder, or by its name in the folder `runs`. UserError if there is none."""
        found = find_run(str(run), Path(runs))
        return cls(found, settings_of(found))

    def __repr__(self) -> str:
        if self._run.exists():
            return super().__repr__()
        return f"Campaign {self.name} in {self._run}: not started, {self._loaded.iterations} iterations planned"

    def settings(self, iteration: int = 1) -> Config:
        """The settings of an iteration."""
        return self._loaded.at(iteration)

    def plan(self, *, check: bool = False) -> Plan:
        """What `run` would do; `print` shows it as text. With `check`, also build the judge and open the data."""
        return make_plan(self._run, self._loaded, check=check)

    def run(
        self,
        *,
        until: int | str | None = None,
        on_event: Callable[[Event], None] | None = None,
        quiet: bool = False,
        verify: bool = False,
        repair: bool = False,
    ) -> Self:
        """Run the campaign, or continue it where it stopped, and return it. Finished work is kept whatever happens.

        Args:
            until: Stop after this iteration, or this stage: `2` or `"2/pair"`.
            on_event: Called with every line of the run's events.jsonl as it is written; what it raises ends the run.
            quiet: Show warnings only.
            verify: Check the hashes of all finished files first.
            repair: Rebuild damaged or missing files of finished stages first.
        """
        goal = None if until is None else read_stop_point(str(until), self._loaded.iterations)

        def heard(line: Json) -> None:
            if on_event is not None:
                on_event(as_record(line, Event, self._run.events))

        display = Display(Output("quiet" if quiet else "normal"), on_event=heard)
        run_campaign(self._run, self._loaded, display, verify=verify, repair=repair, until=goal)
        return self

    def status(self) -> RunState:
        """What `prefloop status` shows."""
        return collect(self._run)

    def report(self, out: str | Path | None = None) -> Path:
        """Write the page that explains the run, by default as report.html in its folder; returns its path."""
        return write_report(self._run, None if out is None else check_path(Path(out), "a report"))

    def export(
        self,
        iteration: int,
        *,
        model: str | Path | None = None,
        pairs: str | Path | None = None,
        form: PairFormat = "conversational",
    ) -> list[Path]:
        """Export an iteration's model with its card to the folder `model`, its pairs to the file `pairs` (.jsonl or
        .parquet), or both; returns what was written. Nothing is overwritten."""
        if model is None and pairs is None:
            raise UserError("Nothing to export: give model=FOLDER, pairs=FILE, or both.")
        number = self.iterations[iteration].number
        written = [] if model is None else [export_model(self._run, number, Path(model))]
        if pairs is not None:
            export_pairs(self._run, number, Path(pairs), form)
            written.append(Path(pairs))
        return written


def _as_yaml(key: str, value: Any) -> str:
    """A value as YAML on one line, which JSON is. UserError for an object that YAML does not have."""
    try:
        return json.dumps(value, default=_path_as_text)
    except TypeError as error:
        raise UserError(f"The setting {key} is {value!r}, expected a value that YAML has: {error}.") from error


def _path_as_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"it is of type {type(value).__name__}")
