"""`run --repair`: removes or rewrites what is damaged in a run folder, so that the run makes just that again."""

from pathlib import Path

from loop.config.load import LoadedConfig
from loop.config.yaml_text import to_yaml
from loop.report.model_card import describe_model
from loop.report.page import write_report
from loop.store.files import has_its_checksum, is_readable, read_line, read_lines, write_file
from loop.store.lineage import Lineage, Parent, inherited_caches, read_lineage, settings_of, write_lineage
from loop.store.run_folder import RunFolder
from loop.store.run_records import Event, as_record
from loop.store.run_state import IterationState
from loop.view.display import Display
from loop.view.status import collect, write_metrics


def repair_run(run: RunFolder, loaded: LoadedConfig, display: Display) -> None:
    """Make every file of the run readable, or remove it."""
    if run.about.exists() and not is_readable(lambda: settings_of(run)):
        _note(run, display, [run.config])
        write_file(run.config, to_yaml(loaded.raw).encode("utf-8"))
    if not is_readable(run.read_events):
        _note(run, display, [run.events])
        kept = [line for line in run.events.read_bytes().splitlines(keepends=True) if _is_event(line)]
        write_file(run.events, b"".join(kept))
    if not is_readable(lambda: [as_record(row, IterationState, run.metrics) for row in read_lines(run.metrics)]):
        run.metrics.unlink()  # written again at the end
    for path in run.misshapen():
        _note(run, display, [path])
        path.unlink()
    if not run.lineage.exists() or not is_readable(lambda: read_lineage(run)) or not has_its_checksum(run.lineage):
        _note(run, display, [run.lineage])
        write_lineage(run, _lineage_again(run))
    for folder in run.stages():
        if (manifest := folder.manifest()) and (bad := folder.repair(manifest)):
            _note(run, display, bad, folder.path)


def finish_repair(run: RunFolder) -> None:
    """Write again what is made of the rest: metrics.jsonl, the report, and the descriptions of models."""
    write_metrics(run, collect(run))
    for k in run.iterations():
        describe_model(run, k, anew=True)
    write_report(run)


def _note(run: RunFolder, display: Display, files: list[Path], folder: Path | None = None) -> None:
    folder = folder or files[0].parent
    names = [str(path.relative_to(folder)) for path in files]
    display.say(f"repairing {', '.join(names)} in {folder}")
    run.event("repair", folder=str(folder.relative_to(run.root)), files=names)


def _is_event(line: bytes) -> bool:
    return is_readable(lambda: as_record(read_line(line), Event, "an event"))


def _lineage_again(run: RunFolder) -> Lineage:
    """What events.jsonl says about the origin of a fork; the settings of earlier starts are lost."""
    forks = [line for line in read_lines(run.events) if line["event"] == "forked"]
    if not forks:
        return Lineage(run.name)
    origin, k = RunFolder(Path(forks[-1]["parent"])), int(forks[-1]["iteration"])
    known = is_readable(lambda: run.policy(k))
    parent = Parent(str(origin), k, forks[-1]["time"], run.policy(k), {}, ()) if known else None
    caches = [origin.verdict_cache, *(inherited_caches(origin) if is_readable(lambda: read_lineage(origin)) else ())]
    return Lineage(run.name, (), parent, tuple(str(path) for path in caches if path.exists()))
