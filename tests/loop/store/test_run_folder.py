"""The run folder: files appear whole or not at all, a finished stage is recognised, one process writes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from loop.errors import UserError
from loop.store import tables
from loop.store.files import append_line, read_json, to_json, write_file
from loop.store.run_folder import RunFolder
from loop.store.run_records import AttemptRecord, Difference, ModelRecord, PromotionRecord, plain
from loop.store.stage import StageFolder


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    return StageFolder(tmp_path / "iter-001" / "sample", "sample", 1)


def finish(stage: StageFolder, *contents: bytes) -> None:
    for number, content in enumerate(contents):
        write_file(stage.shard(number), content)
    files = [stage.shard(number) for number in range(len(contents))]
    stage.finish(files, inputs={"seed": 0}, counts={"responses": 1}, seconds={"wall": 1.0}, versions={})


def damage(path: Path, *, keep_time: bool) -> None:
    """Flip the last byte, as a failing disk does (the time stays) or as an editor does (it does not)."""
    content, stat = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_the_first_writer_of_a_shard_wins(tmp_path: Path) -> None:
    write_file(tmp_path / "shard", b"first", replace=False)
    write_file(tmp_path / "shard", b"second", replace=False)
    assert (tmp_path / "shard").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "file", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(tmp_path / "file", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_a_line_cut_by_a_kill_damages_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append_line(path, {"event": "one"})
    path.write_bytes(path.read_bytes() + b'{"event": "tw')
    append_line(path, {"event": "three"})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["event"] for line in (lines[0], lines[2])] == ["one", "three"]


def test_a_stage_is_finished_when_its_manifest_exists(stage: StageFolder) -> None:
    write_file(stage.shard(0), b"content")
    assert stage.manifest() is None
    finish(stage, b"content")
    manifest = stage.manifest()
    assert manifest is not None
    assert (manifest.stage, manifest.iteration, list(manifest.outputs)) == ("sample", 1, ["shard-000.parquet"])
    stage.check(manifest, verify=True)


def test_a_finished_stage_keeps_no_partial_file_of_a_killed_worker(stage: StageFolder) -> None:
    write_file(stage.path / ".shard-000.parquet.partial-0123abcd", b"half")
    finish(stage, b"content")
    assert sorted(path.name for path in stage.path.iterdir()) == ["manifest.json", "shard-000.parquet"]


@pytest.mark.parametrize(
    ("hurt", "words"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "4 bytes instead of 7"),
        (lambda path: damage(path, keep_time=False), "content has changed"),
    ],
    ids=["missing", "truncated", "edited"],
)
def test_a_damaged_output_is_refused_by_name_and_mended_by_itself(stage: StageFolder, hurt: Any, words: str) -> None:
    finish(stage, b"content", b"another")
    manifest = stage.manifest()
    assert manifest is not None
    hurt(stage.shard(0))
    with pytest.raises(UserError, match=rf"shard-000\.parquet is damaged \(it.*{words}.*--repair"):
        stage.check(manifest, verify=False)
    assert stage.repair(manifest) == [stage.shard(0)]
    assert stage.manifest() is None
    assert [path.name for path in stage.path.iterdir()] == ["shard-001.parquet"]


def test_silent_damage_is_found_by_verify(stage: StageFolder) -> None:
    finish(stage, b"content")
    manifest = stage.manifest()
    assert manifest is not None
    damage(stage.shard(0), keep_time=True)
    stage.check(manifest, verify=False)
    with pytest.raises(UserError, match="content has changed"):
        stage.check(manifest, verify=True)


def test_a_copied_run_whose_times_changed_is_still_whole(stage: StageFolder) -> None:
    finish(stage, b"content")
    manifest = stage.manifest()
    assert manifest is not None
    os.utime(stage.shard(0))
    stage.check(manifest, verify=False)
    assert stage.repair(manifest) == []


def test_repair_makes_a_damaged_model_folder_again_as_a_whole(tmp_path: Path) -> None:
    stage = StageFolder(tmp_path / "iter-001" / "train", "train", 1)
    for name in ("model.safetensors", "config.json", "train_summary.json"):
        write_file(stage.model / name, name.encode())
    stage.finish(sorted(stage.model.iterdir()), inputs={}, counts={}, seconds={}, versions={})
    manifest = stage.manifest()
    assert manifest is not None
    damage(stage.model / "model.safetensors", keep_time=True)
    stage.repair(manifest)
    assert not stage.model.exists()


def test_a_damaged_table_is_a_paragraph_not_a_parquet_error(tmp_path: Path) -> None:
    path = tmp_path / "shard-000.parquet"
    rows = [{"prompt_id": "p", "response_id": str(i), "token_ids": list(range(200))} for i in range(200)]
    path.write_bytes(tables.to_bytes(rows, tables.RESPONSES, {"spec": 1}))
    content = path.read_bytes()
    assert tables.notes_of(path) == {"spec": 1}
    for hurt in (
        content[: len(content) // 2],
        content[:500] + bytes(b ^ 255 for b in content[500:600]) + content[600:],
    ):
        path.write_bytes(hurt)
        with pytest.raises(UserError, match="is damaged"):
            tables.read(path)


def test_damaged_json_is_a_paragraph(tmp_path: Path) -> None:
    (tmp_path / "promotion.json").write_text('{"policy": ', encoding="utf-8")
    with pytest.raises(UserError, match=r"promotion\.json is damaged"):
        read_json(tmp_path / "promotion.json")


def test_a_run_has_one_writer_and_says_which(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.locked(), pytest.raises(UserError, match=f"pid {os.getpid()} on"), RunFolder(tmp_path / "run").locked():
        pass
    with run.locked():
        pass


def test_what_was_decided_on_is_the_latest_even_if_more_was_begun(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert (run.begun(1), run.attempts(1)) == (1, 1)
    for attempt in (2, 3):
        run.stage(1, "train", attempt).path.mkdir(parents=True)
    assert (run.begun(1), run.attempts(1), run.latest(1, "train").attempt) == (3, 3, 3)
    model, gain = ModelRecord("model", "hash", 1), Difference(0.1, 0.0, 0.2, 0.05, 9)
    attempt = AttemptRecord({}, True, "promoted", gain, (), {}, "hash")
    two = PromotionRecord(1, True, "promoted", gain, (), (attempt, attempt), model, model, model, model, model, {})
    write_file(run.promotion(1), to_json(plain(two)))  # the third was given up when retries was lowered
    assert (run.begun(1), run.attempts(1), run.latest(1, "eval").attempt) == (3, 2, 2)
    assert run.latest(1, "pair").attempt == 1
    write_file(run.promotion(1), b'{"attempts": 3}')
    with pytest.raises(UserError, match=r"promotion\.json is damaged \(iteration: Field required\)"):
        run.attempts(1)
    write_file(run.stage(1, "pair").manifest_path, b'{"stage": "pair"}')
    write_file(run.promotion(0), b'{"base": "model"}')
    wrong = {run.promotion(0), run.promotion(1), run.stage(1, "pair").manifest_path}
    assert set(run.misshapen()) == wrong  # what --repair removes, so that it is made again
