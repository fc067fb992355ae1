"""Stage train: has the trainer's worker train the round, and records the candidate."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from loop.campaign.context import Campaign, Iteration, sound_alarms
from loop.campaign.stages.evaluate import eval_shards, results
from loop.measure.signal import late_mean
from loop.prompts.chat_template import chat_format
from loop.prompts.supervised import mix_digest
from loop.report.model_card import CARD, METRICS
from loop.seeds import seed_for
from loop.store.files import read_rows
from loop.store.model_folder import weights_hash
from loop.store.model_refs import Model
from loop.store.run_records import Json
from loop.store.run_state import PairCounts, Selection, TrainCounts
from loop.store.stage import Manifest, StageFolder
from loop.view.display import train_progress
from loop.workers.process import Job
from loop.workers.train_service import TrainResult, TrainTask
from trainer.files import PARTIAL, fresh_partial, publish_folder
from trainer.settings import TrainSettings
from trainer.spec import RoundSpec
from trainer.summary import SUMMARY


class Selected(NamedTuple):
    """The chosen checkpoint: the hash of its weights, and the manifest's record of the choice."""

    hash: str
    record: Selection


def select_candidate(it: Iteration, folder: StageFolder) -> Selected:
    """Evaluate every checkpoint on the gate prompts, and make the best one the candidate; ties go to the latest."""
    metric = it.config.promote.metric
    paths = checkpoints_of(folder)
    values = {path.name: _value(it, folder, path, metric) for path in paths}
    best = max(paths, key=lambda path: (values[path.name] is not None, values[path.name] or 0.0, paths.index(path)))
    if not folder.model.exists():
        partial = fresh_partial(folder.model)
        shutil.copytree(best, partial, dirs_exist_ok=True)
        shutil.copyfile(folder.last / SUMMARY, partial / SUMMARY)
        publish_folder(partial, folder.model)
    it.campaign.display.say(f"  best of {len(paths)} checkpoints by {metric} on the gate prompts: {best.name}")
    return Selected(weights_hash(folder.model), Selection(best.name, metric, values))


def checkpoints_of(folder: StageFolder) -> list[Path]:
    """The checkpoints to choose from, in step order."""
    kept = sorted(path for path in folder.last.parent.glob("step-*") if not path.name.endswith(PARTIAL))
    return [*kept, folder.last]


def _value(it: Iteration, folder: StageFolder, path: Path, metric: str) -> float | None:
    """The metric of one checkpoint, on the responses an evaluation would sample."""
    campaign, k = it.campaign, it.k
    model = Model(path, weights_hash(path), k, f"checkpoint {path.name} of iteration {k}")
    place = StageFolder(folder.work / "gate" / path.name, "select", k)
    shards = eval_shards(campaign.base, place, model, "gate", it.prompts["gate"])
    with campaign.bar(place, f"evaluate {path.name}", sum(s.task.responses for s in shards), "responses") as bar:
        campaign.pool.label(shards, campaign.pool.eval_judge, bar)
    interval = results(shards, campaign.base).metric(metric)
    return interval.value if interval is not None else None


def train_stage(it: Iteration, paired: Manifest, train: TrainSettings, attempt: int) -> tuple[Manifest, Model]:
    """Train the round with this attempt's settings; the candidate is a complete model folder. With `train.select: best`
    it is the best checkpoint on the gate prompts."""
    campaign, k, folder = it.campaign, it.k, it.folder("train", attempt)
    inputs = round_inputs(it, train, paired)
    if train.mix is not None:
        inputs["made from"]["mix"] = mix_digest(train.mix.path)
    if train.select == "best":
        inputs |= {"judge": campaign.eval_judge, "promote.metric": it.config.promote.metric}
    if manifest := campaign.finished(folder, inputs):
        return manifest, Model(folder.model, manifest.counted(TrainCounts).weights_hash, k)
    campaign.begin_work()
    folder.claim(inputs)
    own, others = campaign.run.response_files(k)
    task = TrainTask(
        name=f"iteration {k}",
        spec=round_spec(it, train, folder),
        sampled_by=it.sampler.hash,
        responses=tuple(own),
        pairs=it.folder("pair").relations(paired.counted(PairCounts).kind),
        others=tuple(others),
        steps=folder.steps,
        chat=chat_format(it.config.model),
    )
    started = time.perf_counter()
    with campaign.bar(folder, "train", 0, "steps") as bar:
        progress = train_progress(bar, lambda total: campaign.run.event("stage_planned", iteration=k, total=total))
        result = campaign.pool.train(Job(f"training iteration {k}", "train", {"task": task}, progress))
    selected = select_candidate(it, folder) if train.select == "best" else None
    manifest = finish_training(campaign, folder, inputs, result, selected, time.perf_counter() - started)
    return manifest, Model(folder.model, manifest.counted(TrainCounts).weights_hash, k)


def round_spec(it: Iteration, train: TrainSettings, folder: StageFolder) -> RoundSpec:
    """What the trainer needs to know of the iteration's round, whose stage folder is `folder`."""
    if it.config.threads is None:
        it.campaign.check_cores()
    return RoundSpec(
        policy=it.start.path,
        policy_hash=it.start.hash,
        reference=it.reference.path,
        reference_hash=it.reference.hash,
        work=folder.work,
        out=folder.last if train.select == "best" else folder.model,
        settings=train,
        seed=seed_for(it.config.seed, it.k, "train"),
        threads=it.config.threads,
    )


def train_inputs(it: Iteration, train: TrainSettings) -> Json:
    """The settings that determine the candidate."""
    return {
        "seed": it.config.seed,
        "start": it.config.start,
        "reference": it.config.reference,
        **{f"train.{key}": value for key, value in train.deciding.items()},
    }


def round_inputs(it: Iteration, train: TrainSettings, paired: Manifest) -> Json:
    """The inputs of the train stage: these settings, and what the candidate is made from."""
    made_from = {"pair": paired.digest, "policy": it.start.hash, "reference": it.reference.hash}
    return train_inputs(it, train) | {"made from": made_from}


def finish_training(
    campaign: Campaign, folder: StageFolder, inputs: Json, result: TrainResult, selected: Selected | None, wall: float
) -> Manifest:
    """Write the manifest of a trained round, and delete its checkpoints."""
    described = [folder.model / name for name in (CARD, METRICS)]  # an earlier manifest was lost; they are made anew
    files = [path for path in folder.model.rglob("*") if path.is_file() and path not in described] + [folder.steps]
    summary = result.summary.model_dump() | {"notes": list(result.summary.notes)}
    parts = summary.pop("seconds")  # over all starts whose work was kept, so their sum can exceed this start's time
    seconds = {"wall": max(wall, sum(parts.values())), **parts}
    counts = {"weights_hash": selected.hash if selected else result.weights_hash, **summary}
    counts["displacement"] = late_mean(read_rows(folder.steps), "displacement_rate")
    if selected is not None:
        counts["selected"] = asdict(selected.record)
    inputs = inputs | {"threads": result.threads}
    manifest = campaign.finish(folder, files, inputs=inputs, counts=counts, seconds=seconds)
    sound_alarms(campaign, folder.iteration, "train")
    shutil.rmtree(folder.work, ignore_errors=True)
    return manifest
