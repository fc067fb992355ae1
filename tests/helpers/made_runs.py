"""Run folders written by hand, for tests of what reads them: no model, no worker, any number of iterations and samples.

Every file is written by the code that writes it in a campaign (tables, manifests, metrics), from invented responses.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loop.config.load import load_config
from loop.config.yaml_text import to_yaml
from loop.measure.evaluation import compare, measure, read_answers
from loop.prompts.row import PromptRow, prompt_id, write_table
from loop.store import tables
from loop.store.files import read_json, to_json
from loop.store.run_folder import RunFolder
from loop.store.run_records import (
    AttemptRecord,
    BaseRecord,
    Evaluation,
    ModelRecord,
    PromotionRecord,
    SetMetrics,
    plain,
)
from loop.store.stage import StageFolder
from loop.view.status import collect, write_metrics

EVAL_SAMPLES = 2


@dataclass
class Made:
    """What the invented campaign is like."""

    iterations: int = 2
    finished: int | None = None
    """So many iterations are finished; the next one has samples and half a round. None: all."""
    train: int = 6
    gate: int = 5
    test: int = 5
    n: int = 4
    tokens: int = 5
    steps: int = 6
    kl: bool = False
    shard: int = 4
    """Prompts in each file."""
    say: Callable[[str, int, int], str] = lambda prompt, iteration, index: f"answer {index} of iteration {iteration}"
    ask: Callable[[str, int], str] = lambda which, number: f"{which} prompt {number}"
    why: str = "made up"
    skill: Callable[[int], float] = lambda iteration: min(0.9, 0.2 + 0.2 * iteration)
    """Share of right responses."""
    reject: Sequence[int] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    """More settings."""


def make_run(root: Path, made: Made) -> RunFolder:
    """The run folder, with metrics.jsonl as the campaign would have written it."""
    run = RunFolder(root)
    raw = _settings(made)
    source = root.parent / f"{root.name}-source.yaml"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(to_yaml(raw), encoding="utf-8")
    run.write_format()
    put(run.config, to_yaml(load_config(source).raw).encode("utf-8"))
    start = {"time": 1.8e9, "config": "made.yaml", "changes": [], "versions": {"prefloop": "0.1.0"}}
    put(run.lineage, to_json({"name": root.name, "starts": [start]}))
    sets = _prompts(run, made)
    finished = made.iterations if made.finished is None else made.finished
    if finished < 0:
        return run
    evals = {0: _evaluate(run, made, sets, 0)}
    _promote(run, made, 0, 0, evals)
    incumbent = 0
    for k in range(1, finished + 1):
        _sample(run, made, sets["train"], k)
        _train(run, made, k, made.steps)
        evals[k] = _evaluate(run, made, sets, k)
        incumbent = _promote(run, made, k, incumbent, evals)
    if finished < made.iterations:
        _sample(run, made, sets["train"], finished + 1)
        _train(run, made, finished + 1, made.steps // 2, whole=False)
    write_metrics(run, collect(run))
    return run


def _settings(made: Made) -> dict[str, Any]:
    return {
        "iterations": made.iterations,
        "model": {"base": "/nowhere/model"},
        "prompts": {"source": "file", "path": "/nowhere/prompts.jsonl", "train": made.train}
        | {"gate": made.gate, "test": made.test},
        "sampling": {"n": made.n, "max_tokens": max(made.tokens, 2)},
        "judge": {"name": "exact"},
        "pairs": {"per_prompt": 2},
        "train": {"loss": "dpo_nll", "beta": 0.1},
        "eval": {"samples": EVAL_SAMPLES},
        "promote": {"rule": "better"},
        **made.extra,
    }


def _prompts(run: RunFolder, made: Made) -> dict[str, list[PromptRow]]:
    sets = {}
    for which, count in (("train", made.train), ("gate", made.gate), ("test", made.test)):
        messages = [[{"role": "user", "content": made.ask(which, number)}] for number in range(count)]
        sets[which] = [PromptRow(prompt_id(m), m, f"answer 0 {i}", {}) for i, m in enumerate(messages)]
        put(run.prompts().path / f"{which}.parquet", tables.table_bytes(write_table(sets[which])))
    return sets


def _rows(made: Made, rows: list[PromptRow], k: int, n: int, greedy: bool, seed: int) -> tuple[pa.Table, pa.Table]:
    """Responses and verdicts of a shard, column by column."""
    random = np.random.default_rng([k, seed])
    per = n + greedy
    count = len(rows) * per
    index = [i for _ in rows for i in range(per)]
    prompts = [row.id for row in rows for _ in range(per)]
    ids = [f"{k}-{prompt}-{i}" for prompt, i in zip(prompts, index, strict=True)]
    lengths = random.integers(1, made.tokens + 1, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    spans = pa.array(offsets)
    tokens = pa.ListArray.from_arrays(spans, pa.array(random.integers(5, 200, offsets[-1]), pa.int32()))
    logprobs = pa.ListArray.from_arrays(spans, pa.array(-random.random(offsets[-1]), pa.float32()))
    right = random.random(count) < made.skill(k)
    texts = [made.say(row.messages[0]["content"], k, i) for row in rows for i in range(per)]
    responses = {
        "prompt_id": prompts,
        "response_id": ids,
        "index": index,
        "seed": index,
        "temperature": [0.0 if greedy and i == 0 else 1.0 for i in index],
        "prompt_token_ids": [[1]] * count,
        "token_ids": tokens,
        "text": texts,
        "finish_reason": ["stop"] * count,
        "stop_reason": [None] * count,
        "logprobs": logprobs,
        "policy_hash": [f"hash{k}"] * count,
    }
    verdicts = {
        "prompt_id": prompts,
        "response_id": ids,
        "judge": ["exact"] * count,
        "version": ["1"] * count,
        "kind": ["score"] * count,
        "score": right.astype(float),
        "extracted": texts,
        "why": [made.why] * count,
        "well_formed": [True] * count,
        "parts": ["{}"] * count,
    }
    return pa.table(responses, schema=tables.RESPONSES), pa.table(verdicts, schema=tables.VERDICTS)


def _shards(made: Made, rows: list[PromptRow]) -> list[list[PromptRow]]:
    return [rows[start : start + made.shard] for start in range(0, len(rows), made.shard)]


def _finish(folder: StageFolder, files: list[Path], counts: dict[str, Any], **made_from: str) -> None:
    seconds = {"wall": 10.0, "generate": 6.0} if folder.stage in ("sample", "eval") else {"wall": 8.0, "compute": 7.0}
    folder.finish(files, inputs={"made from": made_from}, counts=counts, seconds=seconds, versions={})


def _sample(run: RunFolder, made: Made, rows: list[PromptRow], k: int) -> None:
    """The stages sample, judge and pair: in each prompt, the first right response against the first wrong one."""
    samples, judge, pair = (run.stage(k, stage) for stage in ("sample", "judge", "pair"))
    pairs, files = [], []
    for number, shard in enumerate(_shards(made, rows)):
        responses, verdicts = _rows(made, shard, k, made.n, False, number)
        put(samples.shard(number), tables.table_bytes(responses))
        put(judge.shard(number), tables.table_bytes(tables.noted(verdicts, {})))
        files.append(number)
        found: dict[str, dict[bool, str]] = {}
        for id, response, score in zip(
            *(verdicts[c].to_pylist() for c in ("prompt_id", "response_id", "score")), strict=True
        ):
            found.setdefault(id, {}).setdefault(score == 1.0, response)
        pairs += [(id, both[True], both[False]) for id, both in found.items() if len(both) == 2]
    count = len(rows) * made.n
    tokens = count * (made.tokens + 1) // 2
    _finish(
        samples,
        [samples.shard(i) for i in files],
        {"prompts": len(rows), "responses": count, "tokens": tokens},
        policy=f"hash{k - 1}",
    )
    _finish(judge, [judge.shard(i) for i in files], {"score": count, "abstain": 0, "error": 0})
    rows_made = [
        dict.fromkeys(tables.PAIRS.names)
        | {"prompt_id": p, "chosen_id": c, "rejected_id": r, "rule": "made", "weight": 1.0}
        for p, c, r in pairs
    ]
    put(pair.pairs, tables.to_bytes(rows_made, tables.PAIRS, {}))
    prompts = {"paired": len(pairs), "all_wrong": len(rows) - len(pairs)}
    responses_of = {"used": 2 * len(pairs), "unused": count - 2 * len(pairs)}
    _finish(pair, [pair.pairs], {"pairs": len(pairs), "kind": "pairs", "prompts": prompts, "responses": responses_of})


def _train(run: RunFolder, made: Made, k: int, steps: int, *, whole: bool = True) -> None:
    folder = run.stage(k, "train")
    put(folder.steps, "".join(json.dumps(step_row(step, k)) + "\n" for step in range(steps)).encode())
    if whole:
        counts = {"weights_hash": f"hash{k}", "steps": steps, "pairs": 4}
        counts |= {"encoded_tokens": 50, "plain_tokens": 90, "sampler_gap": 0.01}
        _finish(folder, [folder.steps], counts)


def step_row(step: int, k: int) -> dict[str, float]:
    """A row of the training log."""
    chosen, rejected = 0.1 * step, -0.5 * step
    return {
        "step": step,
        "loss": 1.0 / (1 + step),
        "dpo": 0.6 / (1 + step),
        "nll": 0.4 / (1 + step),
        "chosen_logp": -5.0 + chosen,
        "rejected_logp": -6.0 + rejected,
        "chosen_log_ratio": chosen,
        "rejected_log_ratio": rejected,
        "margin": 0.1 * (chosen - rejected),
        "reward_accuracy": 0.9,
        "displacement_rate": 0.1,
        "gradient_norm": 5.0 + k,
        "entropy": 1.0,
    }


def _evaluate(run: RunFolder, made: Made, sets: dict[str, list[PromptRow]], k: int) -> Evaluation:
    folder = run.stage(k, "eval")
    metrics: dict[str, SetMetrics] = {}
    counts, files = {}, []
    for place, which in enumerate(("gate", "test")):
        paths = []
        for number, shard in enumerate(_shards(made, sets[which])):
            both = folder.shard(number, which), folder.shard(number, f"{which}-verdicts")
            for path, table in zip(
                both, _rows(made, shard, k, EVAL_SAMPLES, True, 1000 * (place + 1) + number), strict=True
            ):
                put(path, tables.table_bytes(tables.noted(table, {})))
            paths.append(both)
        answers = read_answers([p for p, _ in paths], [p for _, p in paths], 1.0)
        metrics[which] = measure(answers, 0.95)
        counts[which] = {
            "prompts": len(sets[which]),
            "responses": len(answers),
            "tokens": sum(a.tokens for a in answers),
        }
        files += [path for both in paths for path in both]
    found = Evaluation(**metrics)
    put(folder.metrics, to_json(found.as_json()))
    _finish(folder, [*files, folder.metrics], counts, policy=f"hash{k}")
    return found


def _promote(run: RunFolder, made: Made, k: int, incumbent: int, evals: dict[int, Evaluation]) -> int:
    """The decision as it is recorded; the incumbent after it."""
    if k == 0:
        put(run.promotion(0), to_json(plain(BaseRecord("/nowhere/model", _model(0)))))
        return 0
    promoted = k not in made.reject
    attempt = AttemptRecord(
        changes={},
        promoted=promoted,
        reason=f"{'promoted' if promoted else 'not promoted'}: made up",
        gain=compare(evals[incumbent].gate, evals[k].gate, "sampled_accuracy", 0.95),
        limits=(),
        measured={"kl": 2.0 * k, "kl_error": 0.1} if made.kl else {},
        candidate=f"hash{k}",
        outcome="not_worse" if promoted else "too_few_prompts",
    )
    record = PromotionRecord(
        iteration=k,
        promoted=promoted,
        reason=attempt.reason,
        gain=attempt.gain,
        limits=(),
        attempts=(attempt,),
        policy=_model(k if promoted else incumbent),
        candidate=_model(k),
        incumbent=_model(incumbent),
        start=_model(incumbent),
        reference=_model(incumbent),
        inputs={},
        outcome=attempt.outcome,
    )
    put(run.promotion(k), to_json(plain(record)))
    return k if promoted else incumbent


def _model(k: int) -> ModelRecord:
    return ModelRecord(f"iter-{k:03d}/train/model", f"hash{k}", k)


def repeat(run: RunFolder, last: int) -> None:
    """More iterations, up to `last`: the second one again and again, each promoted over the one before."""
    for k in range(3, last + 1):
        new = run.promotion(k).parent
        shutil.copytree(run.promotion(2).parent, new, copy_function=os.link)
        record = read_json(run.promotion(k)) | {"iteration": k}
        for role, number in (("candidate", k), ("policy", k), ("incumbent", k - 1), ("reference", k - 1)):
            record[role] = {"hash": f"hash{number}", "iteration": number, "path": "nowhere"}
        run.promotion(k).unlink()
        put(run.promotion(k), to_json(record))
    write_metrics(run, collect(run))


def put(path: Path, content: bytes) -> None:
    """A file, its folder made; nothing here has to survive a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
