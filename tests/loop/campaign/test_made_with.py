"""A run's samples and weights are made with the same threads, batch, device and version, or recorded as mixed."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from loop.campaign.context import made_with_of
from loop.engines import base
from loop.errors import UserError
from loop.store import tables
from loop.store.run_folder import RunFolder
from loop.view.status import collect
from loop.workers.made_with import made_with, mixed
from tests.helpers import tiny
from tests.helpers.campaigns import assert_same_results, events, read
from tests.helpers.inprocess import InProcess, Killed, run_here

BEFORE = {"engine.kind": "transformers", "engine.version": "5.0", "engine.torch": "2.9", "engine.dtype": "float32"}
BEFORE |= {"engine.batch": 16, "engine.device": "cpu", "engine.threads": 1}


@pytest.fixture
def small(settings: dict[str, Any]) -> dict[str, Any]:
    """One iteration."""
    prompts = settings["prompts"] | {"train": 8, "per_iteration": 8, "gate": 4, "test": 4}
    return settings | {"iterations": 1, "prompts": prompts, "eval": {"samples": 1}}


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: dict[str, Any]) -> Path:
    """A run that was killed after the first shard of iteration 1."""

    def kill(worker: InProcess, job: Any) -> None:
        if job.method == "sample" and "shard 0 of iteration 1" in job.name:
            raise Killed

    with pytest.raises(Killed):
        run_here(monkeypatch, tmp_path, small, after=kill)
    return tmp_path / "runs" / "run"


def pretend(path: Path, **other: Any) -> None:
    """Have a shard say that it was made with something else."""
    notes = tables.notes_of(path)
    notes["spec"] |= {f"engine.{key}": value for key, value in other.items()}
    path.write_bytes(tables.table_bytes(tables.noted(tables.read(path), notes)))


def on_another_machine(run: Path, **other: Any) -> None:
    """Have all that was sampled so far say so."""
    for path in [*run.glob("iter-*/eval/*-[0-9]*.parquet"), *run.glob("iter-*/sample/*.parquet")]:
        if made_with(path):
            pretend(path, **other)
    manifest = run / "iter-000" / "eval" / "manifest.json"
    found = {key: value for key, value in read(manifest).items() if key != "checksum"}
    for name in found["outputs"]:
        content = (run / "iter-000/eval" / name).read_bytes()
        found["outputs"][name] |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_text(json.dumps(found), encoding="utf-8")


def test_shards_and_stages_name_threads_batch_device_and_version(begun: Path) -> None:
    spec = tables.notes_of(begun / "iter-001" / "sample" / "shard-000.parquet")["spec"]
    assert {key for key in spec if key.startswith("engine.")} == BEFORE.keys()
    inputs = read(begun / "iter-000" / "eval" / "manifest.json")["inputs"]
    assert (inputs["engine.threads"], inputs["engine.batch"], inputs["engine.device"]) == (1, 16, "cpu")
    assert inputs["engine.version"] == base.package_version("transformers")
    assert RunFolder(begun).base().threads == 1


@pytest.mark.parametrize(
    ("key", "value"), [("threads", 64), ("batch", 8), ("device", "cuda"), ("version", "4.0"), ("kind", "vllm")]
)
def test_a_resume_on_another_machine_is_refused_by_name_and_accepted_as_mixed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: dict[str, Any], begun: Path, key: str, value: Any
) -> None:
    on_another_machine(begun, **{key: value})
    with pytest.raises(UserError, match=rf"engine\.{key} was {value!r} and is now .*sampling\.exact=false"):
        run_here(monkeypatch, tmp_path, small)
    collect(RunFolder(begun))  # it can still be looked at
    sampling = small["sampling"] | {"exact": False}
    run_here(monkeypatch, tmp_path, small | {"sampling": sampling})
    inputs = read(begun / "iter-001" / "sample" / "manifest.json")["inputs"]
    if key != "kind":
        assert inputs[f"engine.{key}"][0] == value
        assert len(inputs[f"engine.{key}"]) == 2
    warned = [event["text"] for event in events(begun, "warning")]
    assert any(f"the samples of this run are mixed: engine.{key} was {value!r}" in text for text in warned)


def test_a_finished_run_of_another_machine_has_nothing_to_refuse(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: dict[str, Any]
) -> None:
    run = run_here(monkeypatch, tmp_path, small)
    monkeypatch.setattr(base, "cores", lambda: 0)
    before = shutil.copytree(run, tmp_path / "before")
    run_here(monkeypatch, tmp_path, small | {"engine": small["engine"] | {"batch": 8}})
    assert_same_results(run, Path(before))


def test_runs_that_recorded_nothing_continue(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: dict[str, Any], begun: Path
) -> None:
    for path in begun.glob("iter-001/sample/*.parquet"):
        notes = tables.notes_of(path)
        notes["spec"] = {key: value for key, value in notes["spec"].items() if not key.startswith("engine.")}
        path.write_bytes(tables.table_bytes(tables.noted(tables.read(path), notes)))
    run_here(monkeypatch, tmp_path, small)


def test_a_machine_with_fewer_cores_does_not_train_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: dict[str, Any]
) -> None:
    small |= {"threads": None}

    def stop(worker: InProcess, job: Any) -> None:
        if job.method == "label" and "iteration 1" in job.name:
            raise Killed

    with pytest.raises(Killed):
        run_here(monkeypatch, tmp_path, small | {"sampling": small["sampling"] | {"shard_prompts": 8}}, after=stop)
    monkeypatch.setattr("loop.campaign.context.cores", lambda: 0)
    with pytest.raises(UserError, match=r"trained with 1 threads.*this machine has 0.*sampling\.exact=false"):
        run_here(monkeypatch, tmp_path, small | {"sampling": small["sampling"] | {"shard_prompts": 8}})


def test_cores_of_a_gpu_machine_do_not_count() -> None:
    on_gpu = BEFORE | {"engine.device": "cuda"}
    assert mixed(on_gpu, on_gpu | {"engine.threads": 9}) == ""
    assert mixed(BEFORE, BEFORE | {"engine.threads": 9}) == "engine.threads was 1 and is now 9"
    assert mixed(BEFORE, on_gpu) == "engine.device was 'cpu' and is now 'cuda'"


def test_a_stage_of_two_machines_names_both(tmp_path: Path) -> None:
    paths = [tmp_path / f"shard-{number:03d}.parquet" for number in range(3)]
    for path, threads in zip(paths, (1, 4, 1), strict=True):
        path.write_bytes(tables.to_bytes([], tables.RESPONSES, {"spec": BEFORE | {"engine.threads": threads}}))
    found = made_with_of(paths)
    assert found == {"engine.threads": [1, 4], "engine.batch": 16, "engine.device": "cpu", "engine.version": "5.0"}


def test_a_changed_option_of_sampling_or_evaluation_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: dict[str, Any]
) -> None:
    asked = {"top_k": 40, "stop_token_ids": [18, 19], "logit_bias": {17: -3}}
    given = small | {"sampling": small["sampling"] | asked, "eval": {"samples": 1, "min_tokens": 2}}
    run = run_here(monkeypatch, tmp_path, given)
    run_here(monkeypatch, tmp_path, given)
    shard = tables.read(run / "iter-001" / "sample" / "shard-000.parquet")
    ends = {
        ids[-1]
        for ids, why in zip(*shard.select(["token_ids", "finish_reason"]).to_pydict().values(), strict=True)
        if why == "stop"
    }
    assert ends <= {18, 19, tiny.EOS} != ends - {tiny.EOS}
    tokens = tables.read(run / "iter-000" / "eval" / "gate-000.parquet")["token_ids"].to_pylist()
    assert min(map(len, tokens)) >= 3
    for section, key, value in (("sampling", "top_k", 41), ("eval", "min_tokens", 3)):
        changed = given | {section: given[section] | {key: value}}
        with pytest.raises(UserError, match=rf"{section}\.{key} was {given[section][key]} and is now {value}"):
            run_here(monkeypatch, tmp_path, changed)
