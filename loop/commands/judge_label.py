"""Command `judge label`: checks people's labels and puts them where the run that waits for them looks."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from judges.people.external import External, Label, read_labels_of_rows
from judges.resolve import build_judge
from loop.errors import UserError
from loop.store.files import read_lines, write_file
from loop.store.lineage import settings_of
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json
from loop.store.stage import StageFolder


@dataclass(frozen=True, slots=True)
class LabelsTaken:
    """The labels of an iteration once a file was added."""

    run: str
    iteration: int
    path: str
    """Where they are now."""
    items: int
    """To label."""
    labelled: int
    added: int
    """Of these, by the file."""

    def as_json(self) -> Json:
        """Plain values."""
        return asdict(self)


def take_labels(run: RunFolder, file: Path) -> LabelsTaken:
    """Add the labels of a file to those of the iteration that waits for them. UserError if none does, JudgeError for
    labels that do not fit its items or contradict those that are there."""
    folder = waiting_stage(run)
    settings = settings_of(run).base.judge
    judge = build_judge(settings.name, settings.args) if settings is not None else None
    if not isinstance(judge, External):
        raise UserError(f"The judge of {run} is not external, so it takes no labels; see `judge` in {run.config}.")
    with run.locked():
        sheet = read_lines(folder.to_label)
        new = file.read_text(encoding="utf-8")
        read_labels_of_rows(judge, sheet, new, str(file))
        old = folder.labels.read_text(encoding="utf-8") if folder.labels.exists() else ""
        before = read_labels_of_rows(judge, sheet, old, str(folder.labels))
        both = read_labels_of_rows(judge, sheet, f"{old.rstrip()}\n{new}", f"{folder.labels} with {file}")
        write_file(folder.labels, _lines(sheet, both))
    return LabelsTaken(str(run), folder.iteration, str(folder.labels), len(sheet), len(both), len(both) - len(before))


def waiting_stage(run: RunFolder) -> StageFolder:
    """The judge stage that waits for labels. UserError if there is none."""
    for k in reversed(run.iterations()):
        folder = run.stage(k, "judge")
        if folder.to_label.exists() and folder.manifest() is None:
            return folder
    raise UserError(f"{run} waits for no labels. A run does once its judge is `external` and it has sampled.")


def _lines(sheet: list[Json], labels: dict[str, Label]) -> bytes:
    done = [row for row in sheet if row["id"] in labels]
    rows = [{"id": row["id"], "check": row["check"], "label": labels[row["id"]]} for row in done]
    return "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8")


def print_labels(taken: LabelsTaken) -> None:
    """Print what is there now, and what comes next."""
    missing = taken.items - taken.labelled
    print(
        f"{taken.path}: {taken.labelled} of {taken.items} items of iteration {taken.iteration} are labelled, "
        f"{taken.added} of them by this file."
    )
    if missing:
        print(f"{missing} are missing; to continue without them, set judge.args.missing=abstain.")
    print(f"Continue with: prefloop run {taken.run}")
