"""Damage: whatever happens to a file of a run, every command ends in one paragraph or a right result, and `--repair`
mends the run or names another way."""

import itertools
import os
import shutil
from pathlib import Path

import pytest

from loop.store.files import new_folder, take_lock
from loop.store.lineage import read_lineage
from loop.store.run_folder import RunFolder
from tests.helpers.campaigns import assert_same_results, results
from tests.helpers.damage import COMMANDS, HURTS, Walk, command, finished_run, hurt, kinds_of_files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests only read it."""
    return finished_run(tmp_path_factory.mktemp("damage"))


@pytest.fixture
def walk(whole: Path, tmp_path: Path) -> Walk:
    return Walk(whole, tmp_path / "walk")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "runs" / "whole"))


def test_every_command_ends_in_a_paragraph_or_a_right_result(whole: Path, walk: Walk) -> None:
    """A sample of the walk below in which every kind of file meets every command or every damage."""
    cases = [
        (name, how, what)
        for (i, name), (j, how) in itertools.product(enumerate(kinds_of_files(whole)), enumerate(HURTS))
        for what in [list(COMMANDS)[(i + 3 * j) % len(COMMANDS)]]
        if (i + j) % 5 == 0
    ]
    found = {case: problem for case in cases if (problem := walk.problem(*case))}
    assert found == {}
    assert len(cases) > 40


@pytest.mark.soak
def test_every_file_every_damage_every_command(whole: Path, walk: Walk) -> None:
    cases = list(itertools.product(kinds_of_files(whole), HURTS, COMMANDS))
    found = {case: problem for case in cases if (problem := walk.problem(*case))}
    assert found == {}
    print(f"{len(cases)} cases")


def test_repair_writes_the_settings_again_from_the_config_that_the_refusal_names(run: Path, whole: Path) -> None:
    for how in ("gone", "empty", "an object", "a list"):  # a cut can leave valid settings, which finished stages refuse
        hurt(run / "campaign.yaml", how)
        told = command("status", run).err
        config = whole.parents[1] / "campaign.yaml"
        assert f"prefloop run {config} --name whole --runs {run.parent} --repair." in told, told
        done = command("run", config, "--name", "whole", "--runs", run.parent, "--repair")
        assert done.code == 0, done.err
        assert (run / "campaign.yaml").read_bytes() == (whole / "campaign.yaml").read_bytes()


def test_the_lineage_of_a_fork_is_made_again_with_its_origin_and_caches(run: Path, tmp_path: Path) -> None:
    fork = RunFolder(tmp_path / "runs" / "fork")
    assert command("fork", f"{run}@1", fork).code == 0
    before = read_lineage(fork)
    hurt(fork.lineage, "cut")
    told = command("run", fork, "--until", "1").err
    assert "lineage.json is damaged" in told
    done = command("run", fork, "--until", "1", "--repair")
    assert done.code == 0, done.err
    after = read_lineage(fork)
    assert before.parent is not None
    assert after.parent is not None
    assert (after.parent.run, after.parent.iteration) == (before.parent.run, 1)
    assert after.verdict_caches == before.verdict_caches != ()


def test_several_damaged_files_of_a_stage_are_mended_at_once(run: Path, whole: Path) -> None:
    for name in ("model/model.safetensors", "steps.jsonl"):
        hurt(run / "iter-001" / "train" / name, "cut")
    done = command("run", run, "--repair")
    assert done.code == 0, done.err
    assert "repairing model/model.safetensors, steps.jsonl in" in done.out
    assert_same_results(run, whole)


@pytest.mark.parametrize("name", ["iter-001/pair/manifest.json", "iter-001/promotion.json", "prompts/manifest.json"])
def test_a_changed_digit_in_a_record_is_found_by_verify_and_mended(run: Path, whole: Path, name: str) -> None:
    content = (run / name).read_text(encoding="utf-8")
    digit = next(c for c in content if c.isdigit() and c != "9")
    (run / name).write_text(content.replace(digit, "9", 1), encoding="utf-8")
    assert f"{name} is damaged (it is not as it was written)" in command("run", run, "--verify").err
    assert command("run", run, "--repair").code == 0
    assert_same_results(run, whole)


@pytest.mark.parametrize(("name", "how"), [("model/tokenizer.json", "empty"), ("steps.jsonl", "a list")])
def test_a_report_names_a_damaged_file_of_a_round(run: Path, tmp_path: Path, name: str, how: str) -> None:
    hurt(run / "iter-001" / "train" / name, how)
    done = command("report", run, "--out", tmp_path / "report.html")
    assert done.code == 2
    assert f"{run / 'iter-001' / 'train' / name} is damaged" in done.err


@pytest.mark.parametrize("name", ["run.json", "lineage.json", "iter-001/promotion.json", "iter-001/pair/manifest.json"])
def test_json_that_is_nested_too_deeply_is_a_damaged_file(run: Path, name: str) -> None:
    (run / name).write_text("[" * 100_000, encoding="utf-8")
    done = command("run", run)
    assert done.code == 2
    assert name.rpartition("/")[2] in done.err


def test_a_lost_manifest_of_a_round_is_made_again_without_what_describes_its_model(run: Path, whole: Path) -> None:
    (run / "iter-001/train/manifest.json").unlink()
    assert command("run", run, "--repair").code == 0
    assert command("run", run, "--verify").code == 0
    assert_same_results(run, whole)


@pytest.mark.parametrize("stage", ["sample", "judge"])
def test_pairs_are_not_exported_without_all_shards_behind_them(run: Path, tmp_path: Path, stage: str) -> None:
    gone = run / "iter-001" / stage / "shard-001.parquet"
    gone.unlink()
    done = command("export", f"{run}@1", "--pairs", tmp_path / "pairs.jsonl")
    assert done.code == 2
    assert f"{gone} is missing or has changed" in done.err
    assert not (tmp_path / "pairs.jsonl").exists()


def test_a_pruned_run_with_a_lost_list_of_what_was_pruned_is_made_whole(run: Path) -> None:
    command("prune", run, "--no-keep-promoted", "--no-keep-best", "--yes")
    right = results(run)
    hurt(run / "iter-001/train/pruned.json", "an object")
    assert "pruned.json is damaged" in command("run", run).err
    assert command("run", run, "--repair").code == 0
    assert {name: content for name, content in results(run).items() if name in right} == right


def test_what_killed_writes_forks_and_exports_left_is_swept(run: Path, tmp_path: Path) -> None:
    left = [run / ".lineage.json.partial-0a1b2c3d", run / "iter-001" / "eval" / ".metrics.json.partial-0a1b2c3d"]
    for path in left:
        path.write_text("half", encoding="utf-8")
    for name in (".new.partial-0a1b2c3d", ".other.partial-0a1b2c3d"):
        shutil.copytree(run / "prompts", run.parent / name)
    left += [run.parent / ".new.partial-0a1b2c3d", tmp_path / ".pairs.jsonl.partial-0a1b2c3d"]
    left[-1].write_text("half", encoding="utf-8")
    left += [tmp_path / ".model.partial-0a1b2c3d"]
    left[-1].mkdir()
    assert command("run", run).code == 0
    assert command("fork", f"{run}@1", run.parent / "new").code == 0
    assert command("export", f"{run}@1", "--model", tmp_path / "model", "--pairs", tmp_path / "pairs.jsonl").code == 0
    assert [path for path in left if path.exists()] == []


def test_a_folder_that_another_process_is_filling_is_not_swept(tmp_path: Path) -> None:
    with new_folder(tmp_path / "model") as filling:
        (filling / "file").write_text("so far", encoding="utf-8")
        with new_folder(tmp_path / "other"):
            pass
        assert (filling / "file").exists()
        handle = os.open(filling, os.O_RDONLY)
        assert not take_lock(handle)
        os.close(handle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]


def test_killed_forks_are_no_runs(run: Path) -> None:
    shutil.copytree(run, run.parent / ".new.partial-0a1b2c3d")
    assert RunFolder.names_in(run.parent) == ["whole"]
