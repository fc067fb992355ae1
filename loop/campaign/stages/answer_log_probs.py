"""Has the trainer's worker tokenise and score answers from the data: the driver loads no tokenizer and no model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from loop.campaign.context import Campaign
from loop.pairing.data_answers import AnswerText, Tokenised
from loop.prompts.chat_template import chat_format
from loop.store import tables
from loop.store.stage import StageFolder
from loop.workers.measure_service import ScoreTask
from loop.workers.process import Job, call


def tokenise(campaign: Campaign, texts: Sequence[AnswerText], path: Path) -> Tokenised:
    """Write the answers as policy tokens, with the base model's chat template, which all its descendants share. Warns
    of answers that it changes."""
    initial = campaign.pool.initial
    assert initial is not None, "the base model is found before the first iteration"
    task = {
        "policy": initial.folder,
        "texts": texts,
        "chat": chat_format(campaign.base.model),
        "path": path,
    }
    tokenised: Tokenised = call(campaign.pool.trainer, Job("tokenising answers", "answers", task))
    if tokenised.note:
        campaign.warn(tokenised.note)
    return tokenised


def score(
    campaign: Campaign, folder: StageFolder, title: str, model: Path, files: Mapping[Path, Path]
) -> dict[str, float]:
    """Write the log-probs of tokenised answers, file by file; returns `compute`, the seconds the model took."""
    total = sum(tables.read(answers, ["response_id"]).num_rows for answers in files)
    with campaign.bar(folder, title, total, "answers") as bar:
        task = ScoreTask(model, tuple(files.items()))
        job = Job(title, "score", {"task": task}, lambda progress: bar.set(progress["done"]))
        return campaign.pool.train(job)
