"""Every promoted model tells where it comes from, and nothing that is checked by hash notices."""

from pathlib import Path

import pytest

from loop.commands.fork import fork
from loop.report.model_card import describe_models
from loop.store.files import read_json, to_json, write_file
from loop.store.model_folder import weights_hash
from loop.store.run_folder import RunFolder
from tests.helpers.campaigns import Cli, copy_run, times


@pytest.fixture
def run(cli: Cli, reference: Path) -> RunFolder:
    return RunFolder(copy_run(reference, cli))


def test_a_promoted_model_has_its_card_and_its_numbers(reference: Path) -> None:
    run = RunFolder(reference)
    for k in (1, 2):
        folder, decision = run.stage(k, "train"), read_json(run.promotion(k))
        card = (folder.model / "README.md").read_text(encoding="utf-8")
        assert f"iteration {k}" in card
        assert decision["reason"] in card
        told = read_json(folder.model / "metrics.json")
        test = read_json(run.stage(k, "eval").metrics)["test"]["sampled_accuracy"]
        ends = [told["metrics"][f"eval/test/sampled{end}"] for end in ("", "_low", "_high")]
        assert ends == [test["value"], test["low"], test["high"]]
        assert told["weights_hash"] == decision["candidate"]["hash"] == weights_hash(folder.model)
        assert told["base_metrics"]["iteration"] == 0
        assert told["trained_from"]["iteration"] == k - 1


def test_the_files_are_no_outputs_and_every_check_reads_past_them(cli: Cli, run: RunFolder) -> None:
    folder = run.stage(1, "train")
    manifest = folder.manifest()
    assert manifest is not None
    assert not {"model/README.md", "model/metrics.json"} & manifest.outputs.keys()
    before = weights_hash(folder.model)
    (folder.model / "README.md").write_text("mine", encoding="utf-8")
    assert weights_hash(folder.model) == before
    ended = cli("run", run.root, "--verify")
    assert (ended.code, ended.err) == (0, "")
    assert (folder.model / "README.md").read_text(encoding="utf-8") == "mine"


def test_what_is_missing_is_written_and_nothing_else_is_touched(run: RunFolder) -> None:
    before = times(run.root)
    (run.stage(1, "train").model / "README.md").unlink()
    rejected = read_json(run.promotion(2)) | {"promoted": False}
    write_file(run.promotion(2), to_json(rejected))
    (run.stage(2, "train").model / "README.md").unlink()
    describe_models(run)
    after = times(run.root)
    changed = {name for name in before if before[name] != after.get(name)}
    assert changed == {"iter-001/train/model/README.md", "iter-002/train/model/README.md", "iter-002/promotion.json"}
    assert "iter-002/train/model/README.md" not in after


def test_a_model_without_weights_gets_no_card(run: RunFolder) -> None:
    folder = run.stage(1, "train").model
    for path in [*folder.glob("*.safetensors"), folder / "README.md"]:
        path.unlink()
    describe_models(run)
    assert not (folder / "README.md").exists()


def test_a_fork_takes_the_card_along_as_a_copy(run: RunFolder, tmp_path: Path) -> None:
    child = RunFolder(tmp_path / "child")
    fork(run, 1, child, ["iterations=1"])
    for name in ("README.md", "metrics.json"):
        ours, theirs = (one.stage(1, "train").model / name for one in (child, run))
        assert ours.read_bytes() == theirs.read_bytes()
        assert (ours.stat().st_nlink, ours.stat().st_mtime_ns) == (1, theirs.stat().st_mtime_ns)
    before = times(child.root)
    describe_models(child)
    assert times(child.root) == before
