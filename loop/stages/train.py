"""Room loop, the stage train: hands the round to the trainer's worker and keeps what it made."""

import shutil
import time
from typing import Any

from loop.context import Campaign, Model, Standing
from loop.files import read_rows
from loop.mix import mix_digest
from loop.prompts import PromptRow
from loop.runfolder import Manifest, StageFolder
from loop.sampler import seed_for
from loop.signal import late_mean
from loop.stages.alarm import sound_alarms
from loop.stages.progress import train_progress
from loop.stages.select import Selected, select_candidate
from loop.training import TrainTask
from loop.workers import Job
from trainer.settings import TrainSettings


def train_stage(
    campaign: Campaign,
    k: int,
    standing: Standing,
    paired: Manifest,
    gate: list[PromptRow],
    train: TrainSettings,
    attempt: int,
) -> tuple[Manifest, Model]:
    """Train the round with the settings of this attempt; the candidate is a model folder of its own. The gate prompts
    choose a checkpoint where the settings say so."""
    config, folder = campaign.loaded.at(k), campaign.run.stage(k, "train", attempt)
    policy, reference = standing.start(config), standing.reference(config)
    inputs = train_inputs(campaign, k, train) | {
        "made from": {"pair": paired.digest, "policy": policy.hash, "reference": reference.hash}
    }
    if train.mix is not None:
        inputs["made from"]["mix"] = mix_digest(train.mix.path)
    if train.select == "best":
        inputs |= {"judge": campaign.eval_judge, "promote.metric": config.promote.metric}
    if manifest := campaign.finished(folder, inputs):
        return manifest, Model(folder.model, manifest.counts["weights_hash"], k)
    campaign.begin_work()
    folder.claim(inputs)
    own, others = campaign.run.behind(k)
    task = TrainTask(
        name=f"iteration {k}",
        policy=policy.path,
        policy_hash=policy.hash,
        reference=reference.path,
        reference_hash=reference.hash,
        sampled_by=standing.sampler(config).hash,
        responses=tuple(own),
        pairs=campaign.run.stage(k, "pair").relations(paired.counts.get("kind", "pairs")),
        others=tuple(others),
        work=folder.work,
        model=folder.last if train.select == "best" else folder.model,
        steps=folder.steps,
        settings=train,
        seed=seed_for(config.seed, k, "train"),
        threads=config.threads,
        chat_template_kwargs=config.model.chat_template_kwargs,
    )
    started = time.perf_counter()
    with campaign.bar(folder, "train", 0, "steps") as bar:
        progress = train_progress(bar, lambda total: campaign.run.event("stage_planned", iteration=k, total=total))
        result = campaign.crew.train(Job(f"training iteration {k}", "train", {"task": task}, progress))
    selected = select_candidate(campaign, k, folder, gate) if train.select == "best" else None
    manifest = finish_training(campaign, folder, inputs, result, selected, time.perf_counter() - started)
    return manifest, Model(folder.model, manifest.counts["weights_hash"], k)


def train_inputs(campaign: Campaign, k: int, train: TrainSettings) -> dict[str, Any]:
    """The settings that decide the candidate."""
    config = campaign.loaded.at(k)
    return {
        "seed": config.seed,
        "start": config.start,
        "reference": config.reference,
        **{f"train.{key}": value for key, value in train.deciding.items()},
    }


def finish_training(
    campaign: Campaign,
    folder: StageFolder,
    inputs: dict[str, Any],
    result: dict[str, Any],
    selected: Selected | None,
    wall: float,
) -> Manifest:
    """Write the manifest of a round that the trainer has made; its checkpoints are of no more use."""
    files = [path for path in folder.model.rglob("*") if path.is_file()] + [folder.steps]
    summary = result["summary"]
    parts = summary.pop("seconds")  # over all attempts whose work was kept, so their sum can exceed this start's time
    seconds = {"wall": max(wall, sum(parts.values())), **parts}
    counts = {"weights_hash": selected.hash if selected else result["weights_hash"], **summary}
    counts["displacement"] = late_mean(read_rows(folder.steps), "displacement_rate")
    if selected is not None:
        counts["selected"] = selected.record
    manifest = campaign.finish(folder, files, inputs=inputs, counts=counts, seconds=seconds)
    sound_alarms(campaign, folder.iteration, "train")
    shutil.rmtree(folder.work, ignore_errors=True)
    return manifest
