"""Tracker service inside its worker: reads the run folder repeatedly and sends what is new to accelerate's trackers.

Each point is recorded before it is sent, so a kill in between loses one point and never duplicates one.
"""

import sys
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from loop.config.settings import TrackersConfig
from loop.errors import UserError
from loop.measure.metric_names import GROUPS, ITERATION, STEP
from loop.redact import flat_settings, redacted
from loop.store.files import append_line, read_lines
from loop.store.lineage import settings_of
from loop.store.run_folder import RunFolder
from loop.trackers.points import COLUMNS, Point, new_points
from loop.workers.entry import Report

COUNT_THEMSELVES = ("wandb", "trackio")
"""Trackers whose steps must never go back: they count what they get and get both axes as values."""
EXTRAS = ("tensorboard", "wandb")
"""Trackers whose package prefloop names as an extra."""


class TrackerService:
    """Holds the trackers while a campaign runs."""

    def __init__(self, run: Path, settings: TrackersConfig) -> None:
        self.run, self.settings = RunFolder(run), settings
        self.sent, self.ids = read_sent(self.run)
        self.trackers: dict[str, Any] = {}
        self.waiting = list(settings.names)

    def sync(self, report: Report, last: bool) -> None:
        """Tell every tracker what is new; with `last` they may end."""
        for name in self.waiting:
            self._try(name, self._start, report)
        self.waiting = []
        for name in list(self.trackers):
            self._try(name, self._tell, report)
        for name in list(self.trackers) if last else ():
            self._try(name, self._finish, report)

    def _try(self, name: str, do: Callable[[str], None], report: Report) -> None:
        try:
            do(name)
        except Exception as error:  # noqa: BLE001  foreign code that must not stop a campaign
            self.trackers.pop(name, None)
            print(redacted(traceback.format_exc()), file=sys.stderr, flush=True)
            report(warning=f"the tracker {name} was dropped: {redacted(explain(name, error))}; the campaign continues")

    def _start(self, name: str) -> None:
        """Start it, or join the run that it has of this campaign already."""
        known, kind = name in self.ids, tracker_class(name)
        id = self.ids.get(name, uuid.uuid4().hex)
        self.run.trackers.mkdir(parents=True, exist_ok=True)
        place = {"logging_dir": str(self.run.trackers)} if kind.requires_logging_directory else {}
        names = naming(name, self.settings.run_name or self.run.name, id, known=known, folder=self.run.trackers)
        tracker = kind(self.settings.project, **place, **names)
        tracker.start()
        declare_axes(name, tracker)
        if not known:
            tracker.store_init_configuration(flat_settings(settings_of(self.run).raw))
            self.ids[name] = tracker.tracker.info.run_id if name == "mlflow" else id
            append_line(self.run.tracker_log, {"tracker": name, "id": self.ids[name]})
        self.trackers[name] = tracker

    def _tell(self, name: str) -> None:
        sent = self.sent.setdefault(name, {})
        for point in new_points(self.run, sent, samples=self.settings.samples):
            sent[point.series] = point.number
            record = {"tracker": name, "series": point.series, "number": point.number}
            append_line(self.run.tracker_log, record)
            tell(name, self.trackers[name], point)

    def _finish(self, name: str) -> None:
        self.trackers.pop(name).finish()


def read_sent(run: RunFolder) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """What each tracker has received of this run (by series, the last number), and its id of the run."""
    sent: dict[str, dict[str, int]] = {}
    ids: dict[str, str] = {}
    for line in read_lines(run.tracker_log):
        if "id" in line:
            ids[line["tracker"]] = line["id"]
        else:
            sent.setdefault(line["tracker"], {})[line["series"]] = line["number"]
    return sent, ids


def tracker_class(name: str) -> Any:
    """The tracker that accelerate knows under this name, or that `module:Class` names."""
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState(cpu=True)  # trackers ask it who is the main process; it must not touch a GPU for that
    return resolve_name(name) if ":" in name else LOGGER_TYPE_TO_CLASS[name]


def find_tracker(name: str) -> None:
    """UserError if there is no such tracker, or its package is not installed."""
    try:
        tracker_class(name)
    except Exception as error:  # the boundary to foreign code
        raise UserError(f"trackers.names: {name!r} cannot be used: {explain(name, error)}.") from error


def naming(name: str, title: str, id: str, *, known: bool, folder: Path) -> dict[str, Any]:
    """What makes a tracker call the run `title` and join the one of a campaign that was resumed, where it can."""
    if name == "wandb":
        return {"name": title, "id": id, "resume": "allow", "dir": str(folder), "settings": {"console": "off"}}
    if name == "trackio":
        return {"name": title, "resume": "allow"}
    if name == "mlflow":
        return {"run_name": title} | ({"run_id": id} if known else {})
    return {"experiment_key": id} if name == "comet_ml" else {}


def declare_axes(name: str, tracker: Any) -> None:
    """Which axis belongs to which metrics, for the one tracker that needs it."""
    if name != "wandb":
        return
    tracker.tracker.define_metric("train/*", step_metric=STEP)
    for group in GROUPS:
        tracker.tracker.define_metric(f"{group}/*", step_metric=ITERATION)


def tell(name: str, tracker: Any, point: Point) -> None:
    """Numbers as they are; a table as a table, or as text where there are none."""
    step = {} if name in COUNT_THEMSELVES else {"step": point.at}
    if point.table is None:
        tracker.log(point.values, **step)
    elif hasattr(tracker, "log_table"):
        tracker.log_table(point.table.name, columns=list(COLUMNS), data=point.table.rows, **step)
    elif name == "tensorboard":
        tracker.log({point.table.name: point.table.markdown}, **step)


def explain(name: str, error: Exception) -> str:
    """The error in a line."""
    if isinstance(error, ImportError):
        how = f" with: pip install 'prefloop[{name}]'" if name in EXTRAS else ""
        return f"{error}; install it{how}, or take {name} out of the setting trackers"
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}".rstrip(": ")
