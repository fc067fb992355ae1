"""The judge stage when people are the judge: writes the sheet to label, then turns the labels into verdicts."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from judges.people.external import External, Item, read_labels
from judges.people.label_page import label_page
from judges.resolve import build_judge
from judges.run import judge_groups
from loop.campaign.context import Iteration
from loop.errors import AwaitingLabels, UserError
from loop.store.files import sha256_of, write_file
from loop.store.run_folder import RunFolder
from loop.store.stage import StageFolder
from loop.workers.judge_service import read_groups, write_verdicts
from loop.workers.shards import Shard


def label_by_people(it: Iteration, shards: Sequence[Shard]) -> str | None:
    """Write the sheet, read the labels, write the verdicts; return the labels' sha256 (None: nothing to label). Raises
    AwaitingLabels while labels are missing, JudgeError if they are invalid."""
    campaign, settings, folder = it.campaign, it.campaign.base.judge, it.folder("judge")
    assert settings is not None, "human labels need a judge section"
    judge = build_judge(settings.name, settings.args)
    assert isinstance(judge, External)
    groups = [read_groups(shard.task.path, shard.task.prompts) for shard in shards]
    sheet = judge.sheet([group for part in groups for group in part])
    write_sheet(judge, sheet, folder, title=f"{campaign.run.name}, iteration {it.k}")
    found = folder.labels.read_bytes() if folder.labels.exists() else None
    labels = read_labels(judge, sheet, _text(found, folder.labels), str(folder.labels)) if found else {}
    if len(labels) < len(sheet) and (found is None or judge.missing == "wait"):
        campaign.run.event("waiting_for_people", iteration=it.k, to_label=len(sheet), labelled=len(labels))
        raise AwaitingLabels(_what_to_do(campaign.run, judge, folder, len(sheet), len(labels)))
    for shard, part in zip(shards, groups, strict=True):
        verdicts = [verdict for row in judge_groups(judge.labelled(labels), part) for verdict in row]
        notes = {"judge": campaign.judge}
        write_verdicts(shard.verdicts, part, verdicts, notes, replace=True)  # labels may have changed
    return hashlib.sha256(found).hexdigest() if found is not None else None


def write_sheet(judge: External, sheet: Sequence[Item], folder: StageFolder, *, title: str) -> None:
    """Write the items to label as JSON lines and as an HTML page."""
    lines = "".join(json.dumps(item.row, ensure_ascii=False) + "\n" for item in sheet)
    write_file(folder.to_label, lines.encode("utf-8", "surrogatepass"))
    page = label_page(judge, sheet, title=title, put=str(folder.labels.absolute()))
    write_file(folder.label_page, page.encode("utf-8"))


def labels_of(folder: StageFolder) -> str | None:
    """sha256 of the labels file, or, if it is gone, of the labels that the finished stage was made from."""
    if folder.labels.exists():
        return sha256_of(folder.labels)
    manifest = folder.manifest()
    return None if manifest is None else manifest.inputs.get("labels")


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8: {error.reason} at byte {error.start}.") from error


def _what_to_do(run: RunFolder, judge: External, folder: StageFolder, wanted: int, labelled: int) -> str:
    things = "pairs" if judge.ask == "pair" else "responses"
    so_far = f" ({labelled} done)" if labelled else ""
    without = " To continue without the missing labels, set judge.args.missing=abstain." if labelled else ""
    return (
        f"Iteration {folder.iteration} is waiting for human labels: {wanted} {things} to label{so_far}. Open "
        f"{folder.label_page} in a browser, or fill in `label` in {folder.to_label}; hand the labels over with "
        f"`prefloop judge label {run} FILE`, or save them as {folder.labels}, and run the same command again.{without}"
    )
