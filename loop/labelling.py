"""Room loop, the judge stage when people are the judge: sampled shards come in; what is to be labelled goes out, and
once people have put their labels into the run folder, verdicts."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from judges.contract import judge_groups
from judges.external import External, Item, read_labels
from judges.label_page import label_page
from judges.resolve import build_judge
from loop.context import Campaign
from loop.crew import Shard
from loop.errors import UserError, WaitingForPeople
from loop.files import sha256_of, write_file
from loop.judging import read_groups, write_verdicts
from loop.runfolder import StageFolder


def label_by_people(campaign: Campaign, k: int, shards: Sequence[Shard]) -> str | None:
    """Write the sheet, read the labels, write the verdicts; the labels' sha256 (None if there was nothing to label).

    Raises WaitingForPeople while labels are missing, JudgeError if they cannot be used.
    """
    settings, folder = campaign.base.judge, campaign.run.stage(k, "judge")
    assert settings is not None, "people are a judge"
    judge = build_judge(settings.name, settings.args)
    assert isinstance(judge, External)
    groups = [read_groups(shard.task.path, shard.task.prompts) for shard in shards]
    sheet = judge.sheet([group for part in groups for group in part])
    write_sheet(judge, sheet, folder, title=f"{campaign.run.name}, iteration {k}")
    found = folder.labels.read_bytes() if folder.labels.exists() else None
    labels = read_labels(judge, sheet, _text(found, folder.labels), str(folder.labels)) if found else {}
    if len(labels) < len(sheet) and (found is None or judge.missing == "wait"):
        campaign.run.event("waiting_for_people", iteration=k, to_label=len(sheet), labelled=len(labels))
        raise WaitingForPeople(_what_to_do(judge, folder, len(sheet), len(labels)))
    for shard, part in zip(shards, groups, strict=True):
        verdicts = [verdict for row in judge_groups(judge.labelled(labels), part) for verdict in row]
        notes = {"judge": campaign.judge}
        write_verdicts(shard.verdicts, part, verdicts, notes, replace=True)  # labels may have changed
    return hashlib.sha256(found).hexdigest() if found is not None else None


def write_sheet(judge: External, sheet: Sequence[Item], folder: StageFolder, *, title: str) -> None:
    """What people are to label, as JSON lines and as a page."""
    lines = "".join(json.dumps(item.row, ensure_ascii=False) + "\n" for item in sheet)
    write_file(folder.to_label, lines.encode("utf-8", "surrogatepass"))
    page = label_page(judge, sheet, title=title, put=str(folder.labels.absolute()))
    write_file(folder.label_page, page.encode("utf-8"))


def labels_of(folder: StageFolder) -> str | None:
    """sha256 of the labels that are there now, or else of those that the finished stage was made from."""
    if folder.labels.exists():
        return sha256_of(folder.labels)
    manifest = folder.manifest()
    return None if manifest is None else manifest.inputs.get("labels")


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8: {error.reason} at byte {error.start}.") from error


def _what_to_do(judge: External, folder: StageFolder, wanted: int, labelled: int) -> str:
    things = "pairs" if judge.ask == "pair" else "responses"
    so_far = f" {labelled} of them are labelled." if labelled else ""
    without = " To go on without labels for the rest, set judge.args.missing=abstain." if labelled else ""
    return (
        f"Iteration {folder.iteration} waits for people: {wanted} {things} are to be labelled.{so_far} Open "
        f"{folder.label_page} in a browser, or fill in `label` in {folder.to_label}; put the labels in {folder.labels} "
        f"and run the same command again.{without}"
    )
