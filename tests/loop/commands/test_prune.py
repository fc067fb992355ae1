"""Pruning frees what nothing needs: by the rules, never against a resume, and the run stays whole."""

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loop.cli.main import app
from loop.commands.fork import Origin, check_forkable, fork
from loop.commands.prune import PrunePlan, Rules, kept_iterations, plan_prune, remove
from loop.config.load import load_config
from loop.config.yaml_text import to_yaml
from loop.errors import UserError
from loop.format import in_bytes
from loop.store.files import read_json, write_file
from loop.store.model_refs import averages
from loop.store.run_folder import RunFolder
from loop.view.status import collect
from tests.helpers.campaigns import Cli, copy_run, refusal, times

INCUMBENT_ONLY = Rules(best=False, promoted=False, last=0)


@pytest.fixture
def run(cli: Cli, reference: Path) -> RunFolder:
    return RunFolder(copy_run(reference, cli, "campaign"))


def weights(run: RunFolder) -> list[int]:
    """The iterations whose weights are there."""
    return [k for k in run.iterations() if (run.stage(k, "train").model / "model.safetensors").exists()]


def decide(run: RunFolder, k: int, *, promoted: bool, policy: int) -> None:
    """Rewrite a decision: whether iteration k was promoted, and from which iteration the next one starts."""
    record = read_json(run.promotion(k))
    record["promoted"] = promoted
    record["policy"] = read_json(run.promotion(policy))["candidate" if policy else "policy"]
    run.promotion(k).write_text(json.dumps(record), encoding="utf-8")


def score(run: RunFolder, k: int, value: float) -> None:
    path = run.stage(k, "eval").metrics
    metrics = read_json(path)
    metrics["gate"]["sampled_accuracy"]["value"] = value
    path.write_text(json.dumps(metrics), encoding="utf-8")


def test_each_rule_keeps_its_iterations(run: RunFolder) -> None:
    decide(run, 2, promoted=False, policy=1)
    score(run, 1, 0.2)
    score(run, 2, 0.9)
    assert kept_iterations(run, INCUMBENT_ONLY) == {1: "the run continues from it"}
    assert kept_iterations(run, Rules(best=True, promoted=False, last=0)).keys() == {1, 2}
    assert kept_iterations(run, Rules(best=False, promoted=False, last=1)).keys() == {1, 2}
    decide(run, 2, promoted=False, policy=0)
    assert kept_iterations(run, INCUMBENT_ONLY) == {0: "the run continues from it"}
    assert kept_iterations(run, Rules(best=False, promoted=True, last=0)).keys() == {0, 1}


def test_with_the_default_rules_a_promoted_run_loses_nothing(run: RunFolder) -> None:
    assert plan_prune(run, Rules()).removals == []


def test_only_weights_and_leftovers_go_and_status_says_the_same_as_before(run: RunFolder) -> None:
    before, files = collect(run), times(run.root)
    size = (run.stage(1, "train").model / "model.safetensors").stat().st_size
    plan = plan_prune(run, INCUMBENT_ONLY)
    assert plan.freed == size
    remove(run, plan)
    assert weights(run) == [2]
    assert collect(run) == before
    gone = files.keys() - times(run.root).keys()
    assert gone == {"iter-001/train/model/model.safetensors"}
    assert plan_prune(run, INCUMBENT_ONLY).removals == []


def test_a_pruned_run_is_whole_is_forked_and_goes_on(cli: Cli, run: RunFolder) -> None:
    remove(run, plan_prune(run, INCUMBENT_ONLY))
    loaded = load_config(run.config)
    check_forkable(Origin(run, 2), loaded, loaded)  # hashes everything and takes the walk of a resume
    child = RunFolder(cli.runs / "child")
    fork(run, 2, child, [])
    assert weights(child) == [2]
    with pytest.raises(UserError, match="the model of iteration 1 was pruned"):
        fork(run, 1, RunFolder(cli.runs / "other"), [])
    ended = cli("run", run.root, "--verify")
    assert ended.code == 0, ended.err
    assert "nothing left to do" in ended.out


def test_what_else_is_damaged_is_still_found(run: RunFolder) -> None:
    remove(run, plan_prune(run, INCUMBENT_ONLY))
    (run.stage(1, "train").model / "config.json").unlink()
    folder = run.stage(1, "train")
    manifest = folder.manifest()
    assert manifest is not None
    assert folder.damaged(manifest) == [folder.model / "config.json"]
    with pytest.raises(UserError, match="missing"):
        folder.check(manifest, verify=False)


def test_the_last_candidate_stays_where_the_next_iteration_starts_from_it(run: RunFolder) -> None:
    decide(run, 2, promoted=False, policy=1)
    assert kept_iterations(run, INCUMBENT_ONLY).keys() == {1}
    raw = load_config(run.config).raw
    for key in ("start", "reference"):
        run.config.write_text(to_yaml(raw | {key: "previous"}), encoding="utf-8")
        assert kept_iterations(run, INCUMBENT_ONLY).keys() == {1, 2}


def test_attempts_that_were_tried_again_go_whatever_is_kept(run: RunFolder) -> None:
    for stage in ("train", "eval"):
        shutil.copytree(run.stage(1, stage).path, run.stage(1, stage, 2).path)
    record = read_json(run.promotion(1))
    record["attempts"] *= 2
    run.promotion(1).write_text(json.dumps(record), encoding="utf-8")
    plan = plan_prune(run, Rules())
    assert [removal.what for removal in plan.removals] == ["weights of iteration 1, attempt 1"]
    remove(run, plan)
    assert not (run.stage(1, "train").model / "model.safetensors").exists()
    assert (run.stage(1, "train", 2).model / "model.safetensors").exists()


def test_of_the_averages_the_last_one_stays(run: RunFolder) -> None:
    for k in (1, 2):
        folder = run.stage(k, "reference")
        write_file(folder.model / "model.safetensors", bytes(k))
        weights = [folder.model / "model.safetensors"]
        folder.finish(weights, inputs={}, counts={"weights_hash": str(k)}, seconds={}, versions={})
    assert [average.hash for average in averages(run, 2)] == ["1", "2"]
    (removal,) = plan_prune(run, Rules()).removals
    assert removal.paths == (run.stage(1, "reference").model / "model.safetensors",)


def test_checkpoints_go_with_a_finished_stage_and_stay_for_an_unfinished_one(run: RunFolder) -> None:
    for k in (1, 2):
        run.stage(k, "train").work.mkdir()
        (run.stage(k, "train").work / "checkpoint").write_bytes(b"x" * 1000)
    (run.stage(1, "sample").path / ".shard-000.parquet.partial-ab").write_bytes(b"x" * 500)
    run.stage(2, "train").manifest_path.unlink()
    run.promotion(2).unlink()
    plan = plan_prune(run, INCUMBENT_ONLY)
    assert [removal.what for removal in plan.removals] == [
        "half-written files of iteration 1, stage sample",
        "checkpoints of iteration 1, stage train",
    ]
    assert plan.freed == 1500
    remove(run, plan)
    assert not run.stage(1, "train").work.exists()
    assert run.stage(2, "train").work.exists()
    assert weights(run) == [1, 2]


def test_a_kill_between_record_and_removal_is_made_good_by_the_next_prune(run: RunFolder) -> None:
    run.stage(1, "train").pruned_path.write_text('["model/model.safetensors"]', encoding="utf-8")
    remove(run, plan_prune(run, INCUMBENT_ONLY))
    assert weights(run) == [2]


def test_what_a_fork_shares_frees_nothing(cli: Cli, run: RunFolder) -> None:
    os.link(run.stage(1, "train").model / "model.safetensors", cli.folder / "elsewhere")
    (removal,) = plan_prune(run, INCUMBENT_ONLY).removals
    assert removal.bytes(shared=False) == 0
    assert removal.bytes(shared=True) == (cli.folder / "elsewhere").stat().st_size


def test_the_command_asks_nobody_where_nobody_is_and_obeys_yes(run: RunFolder) -> None:
    arguments = ["prune", str(run), "--no-keep-promoted", "--no-keep-best", "--keep-last", "0"]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, UserError)
    assert "Pass --yes" in str(refused.exception)
    assert weights(run) == [1, 2]
    told = CliRunner().invoke(app, [*arguments, "--json"])
    assert [r["what"] for r in json.loads(told.output)["removals"]] == ["weights of iteration 1"]
    assert weights(run) == [1, 2]
    done = CliRunner().invoke(app, [*arguments, "--yes"])
    assert (done.exit_code, weights(run)) == (0, [2])
    assert "freed." in done.output


def test_a_run_that_works_is_not_pruned(cli: Cli, run: RunFolder) -> None:
    with run.locked():
        assert "worked on by another process" in refusal(cli("prune", run.root, "--yes"))


def test_sizes_are_rounded_for_people() -> None:
    assert [in_bytes(size) for size in (0, 1, 2_500_000, 1_540_000_000)] == ["0 kB", "1 kB", "2.5 MB", "1.5 GB"]
    assert PrunePlan({}, []).freed == 0
