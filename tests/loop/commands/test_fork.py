"""A fork goes on from a finished iteration with other settings: nothing before it is made again, the parent is never
touched."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from judges.context import Usage
from loop.commands.fork import fork
from loop.config.load import load_config
from loop.errors import UserError
from loop.store import files
from loop.store.lineage import inherited_caches, read_lineage
from loop.store.locate import find_stage_at
from loop.store.run_folder import RunFolder
from loop.store.verdict_cache import VerdictCache
from loop.view.display import Display
from loop.view.status import collect
from loop.workers.pool import WorkerPool
from tests.helpers.campaigns import Cli, copy_run, read, refusal, results, times

FIRST = ("prompts/*.parquet", "iter-000/**/*", "iter-001/**/*")
"""What a fork of iteration 1 takes over."""


@pytest.fixture
def parent(cli: Cli, reference: Path) -> RunFolder:
    return RunFolder(copy_run(reference, cli, "parent"))


@pytest.fixture
def new(cli: Cli) -> RunFolder:
    return RunFolder(cli.runs / "new")


def first_times(run: Path) -> dict[str, int]:
    return {name: when for pattern in FIRST for name, when in times(run, pattern).items()}


@pytest.mark.slow
def test_a_fork_with_another_loss_trains_its_own_iteration_2_and_makes_nothing_of_iteration_1_again(
    cli: Cli, reference: Path
) -> None:
    before = times(reference), results(reference)
    done = cli("fork", f"{reference}@1", "new", "per_iteration.2.train.beta=0.4")
    assert (done.code, done.err) == (0, ""), done.err
    new = cli.runs / "new"
    assert f"Continue with: prefloop run {new}" in done.out
    taken = first_times(new)
    assert taken == first_times(reference)
    ended = cli("run", new)
    assert (ended.code, ended.err) == (0, ""), ended.out + ended.err
    assert first_times(new) == taken, "a finished file was written again"
    assert (times(reference), results(reference)) == before, "the parent was touched"
    ours, theirs = results(new), before[1]
    assert {name for name in ours if ours[name] != theirs[name]} >= {
        "iter-002/train/model/model.safetensors",
        "iter-002/train/steps.jsonl",
    }
    same = [name for name in ours if "iter-002/sample/" in name or "iter-002/pair/" in name]
    assert same, "iteration 2 was not sampled"
    assert all(ours[name] == theirs[name] for name in same), "the same policy samples the same responses"
    rows = [json.loads(line) for line in (new / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    lineage = read(new / "lineage.json")
    assert lineage["parent"]["run"] == str(reference)
    assert lineage["parent"]["changes"] == [{"key": "per_iteration.2", "from": None, "to": {"train.beta": 0.4}}]
    assert [start["changes"] for start in lineage["starts"]] == [[]]


def test_a_fork_of_the_base_holds_its_evaluation_alone_and_may_change_all_that_follows(
    parent: RunFolder, new: RunFolder
) -> None:
    done = fork(parent, 0, new, ["sampling.n=2", "train.loss=simpo", "iterations=1"])
    assert new.iterations() == [0]
    assert (
        done.linked == len(list(new.root.glob("prompts/*.parquet"))) + len(list(new.root.glob("iter-000/*/*-*.*"))) + 1
    )
    config = load_config(new.config)
    assert (config.base.sampling.n, config.base.train.loss, config.iterations) == (2, "simpo", 1)


def test_outputs_are_shared_and_what_may_be_edited_is_not(parent: RunFolder, new: RunFolder) -> None:
    done = fork(parent, 1, new, [])
    outputs = [folder.path / name for folder in new.stages() if (m := folder.manifest()) for name in m.outputs]
    others = [path for path in new.root.rglob("*") if path.is_file() and path not in outputs]
    assert done.linked == len(outputs) > 10
    assert all(path.stat().st_nlink == 2 for path in outputs)
    assert all(path.stat().st_nlink == 1 for path in others)


def test_where_there_are_no_hard_links_files_are_copied_with_their_times(
    parent: RunFolder, new: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(files.os, "link", refuse)
    done = fork(parent, 1, new, [])
    assert done.linked == 0
    assert first_times(new.root) == first_times(parent.root)
    assert all(path.stat().st_nlink == 1 for path in new.root.rglob("*") if path.is_file())


def test_a_fork_of_a_fork_reads_the_verdicts_of_both_and_names_its_parent(cli: Cli, parent: RunFolder) -> None:
    child, grandchild = (RunFolder(cli.runs / name) for name in ("child", "grandchild"))
    VerdictCache(parent.verdict_cache).put("a", "from the parent", "judge", Usage(1, 2, 3))
    fork(parent, 1, child, [])
    VerdictCache(child.verdict_cache).put("b", "from the child", "judge", Usage(1, 2, 3))
    fork(child, 1, grandchild, ["train.beta=0.3", "per_iteration.1.train.beta=null"])
    parent_of_grandchild = read_lineage(grandchild).parent
    assert parent_of_grandchild is not None
    assert parent_of_grandchild.run == str(child.root)
    assert inherited_caches(grandchild) == (child.verdict_cache, parent.verdict_cache)
    pool = WorkerPool(grandchild, load_config(grandchild.config).base, Display(to_stderr=True))
    cache = VerdictCache(pool.judge.judging["cache"], pool.judge.judging["parents"])
    assert [cache.get(key) for key in ("a", "b", "c")] == ["from the parent", "from the child", None]
    assert cache.spent("judge") == Usage()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("sampling.n=8", ("iteration 1, stage sample", "sampling.n was 4 and is now 8", "per_iteration", "@0")),
        ("seed=1", ("stage prompts", "seed was 0 and is now 1")),
        ("train.beta=0.4", ("iteration 1, stage train", "train.beta")),
        ("pairs.per_prompt=3", ("iteration 1, stage pair",)),
        ("judge.args.right=1", ("iteration 0, stage eval", "right")),
        ("eval.judge.name=length", ("iteration 0, stage eval", "length")),
        ("promote.rule=better", ("promote.rule",)),
        ("model.base=elsewhere/model", ("model.base",)),
        ("iterations=1", ()),
        ("train.bet=1", ("did you mean train.beta",)),
    ],
)
def test_a_change_of_finished_work_is_refused_as_a_resume_refuses_it(
    parent: RunFolder, new: RunFolder, change: str, words: tuple[str, ...]
) -> None:
    if not words:
        fork(parent, 1, new, [change])  # decides nothing that is finished
        return
    with pytest.raises(UserError) as refused:
        fork(parent, 1, new, [change])
    assert all(word in str(refused.value) for word in words), refused.value
    assert not any(path.name.startswith((".new", "new")) for path in new.root.parent.iterdir())


def test_another_reference_is_refused_where_a_round_was_anchored_and_free_before(
    parent: RunFolder, new: RunFolder, tmp_path: Path
) -> None:
    anchor = ["reference=path", f"reference_path={tmp_path / 'anchor'}"]
    with pytest.raises(UserError, match='reference was "incumbent" and is now "path"'):
        fork(parent, 1, new, anchor)
    fork(parent, 0, new, anchor)
    assert load_config(new.config).base.reference_path == str(tmp_path / "anchor")


def test_what_the_named_reference_was_found_to_be_comes_along(parent: RunFolder, new: RunFolder) -> None:
    parent.named_reference.write_text('{"named": "somewhere"}', encoding="utf-8")
    done = fork(parent, 1, new, [])
    assert read(new.named_reference) == {"named": "somewhere"}
    assert done.copied == len([p for p in new.root.glob("*/**/*") if p.is_file() and p.stat().st_nlink == 1])


def test_a_text_that_limits_name_and_that_is_gone_is_one_paragraph(parent: RunFolder, new: RunFolder) -> None:
    limits = ["promote.limits.perplexity_ratio=2", "promote.limits.text=gone.txt"]
    with pytest.raises(UserError, match=r"promote\.limits\.text: .*gone\.txt cannot be read"):
        fork(parent, 1, new, limits)


def test_an_unfinished_iteration_is_refused_with_what_it_lacks(parent: RunFolder, new: RunFolder) -> None:
    parent.promotion(2).unlink()
    parent.stage(2, "eval").manifest_path.unlink()
    with pytest.raises(UserError, match=r"iteration 2, stage eval, the decision of iteration 2 missing.*parent@1"):
        fork(parent, 2, new, [])


@pytest.mark.parametrize("harm", ["change", "remove", "model"])
def test_a_damaged_parent_is_refused_whatever_its_sizes_and_times_say(
    parent: RunFolder, new: RunFolder, harm: str
) -> None:
    path = parent.stage(1, "train").model / "model.safetensors" if harm == "model" else parent.stage(1, "pair").pairs
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[-9] ^= 1
    path.unlink()
    if harm != "remove":
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match=rf"parent@1 cannot be forked: .*{path.name}.*--repair"):
        fork(parent, 1, new, [])
    assert not new.root.exists()


def test_a_base_model_that_was_moved_is_refused(parent: RunFolder, new: RunFolder) -> None:
    record = read(parent.promotion(0))
    record["policy"]["path"] = "/nowhere/model"
    parent.promotion(0).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=r"the base model should be in /nowhere/model .* missing"):
        fork(parent, 1, new, [])


def test_mistakes_are_one_paragraph(cli: Cli, parent: RunFolder) -> None:
    (cli.runs / "taken").mkdir()
    assert "There is no run 'stranger'" in refusal(cli("fork", "stranger@1", "new"))
    assert "; did you mean parent? The runs there: parent" in refusal(cli("fork", "parents@1", "new"))
    for name, words in {"parent": "is a run already", "taken": "exists already", "a@b": "RUN@K"}.items():
        with pytest.raises(UserError, match=words):
            fork(parent, 1, RunFolder(cli.runs / name), [])
    with pytest.raises(UserError, match="begins with 2 finished ones"):
        fork(parent, 2, RunFolder(cli.runs / "new"), ["iterations=1"])


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("sample", "per_iteration.2.pairs.per_prompt=3"),
        ("pair", "per_iteration.2.train.beta=0.4"),
        ("eval", "per_iteration.2.promote.rule=better"),
    ],
)
def test_a_fork_from_a_stage_takes_over_what_comes_before_and_may_change_what_follows(
    parent: RunFolder, new: RunFolder, stage: str, change: str
) -> None:
    done = fork(parent, 2, new, [change], stage=stage)
    stages = ["sample", "judge", "pair", "train", "eval"]
    taken = stages[: stages.index(stage) + 1]
    assert [name for name in stages if new.stage(2, name).manifest()] == taken
    assert new.promotion(1).exists()
    assert not new.promotion(2).exists()
    assert times(new.root, "iter-001/**/*") == times(parent.root, "iter-001/**/*")
    origin = read_lineage(new).parent
    assert origin is not None
    assert (str(origin), done.as_json()["stage"]) == (f"stage {stage} of iteration 2 of {parent.root}", stage)
    assert collect(new).incumbent == 1


def test_a_fork_from_a_stage_refuses_what_would_change_that_stage(parent: RunFolder, new: RunFolder) -> None:
    with pytest.raises(UserError, match=r"iteration 2, stage pair is finished.*pairs\.per_prompt.*RUN@2/judge NEW"):
        fork(parent, 2, new, ["per_iteration.2.pairs.per_prompt=3"], stage="pair")
    parent.stage(2, "judge").manifest_path.unlink()
    with pytest.raises(UserError, match=r"Stage pair of iteration 2 of .*stage judge missing"):
        fork(parent, 2, new, [], stage="pair")


def test_a_stage_is_named_after_its_iteration(cli: Cli, parent: RunFolder) -> None:
    assert find_stage_at("parent@2/pair", cli.runs)[1:] == (2, "pair")
    assert find_stage_at(f"{parent.root}@2", cli.runs)[1:] == (2, "")
    assert find_stage_at("parent@0/eval", cli.runs)[1:] == (0, "")
    for wrong in ("parent@1/promote", "parent@0/pair"):
        with pytest.raises(UserError, match=r"names no stage of iteration .; its stages are"):
            find_stage_at(wrong, cli.runs)


def test_a_lost_verdict_cache_is_told_before_anything_is_paid_again(
    cli: Cli, parent: RunFolder, new: RunFolder
) -> None:
    VerdictCache(parent.verdict_cache).put("a", "paid", "judge", Usage(1, 2, 3))
    fork(parent, 2, new, [])
    parent.root.rename(cli.runs / "moved")
    ended = cli("run", new.root)
    assert ended.code == 0, ended.err
    assert f"warning: {parent.verdict_cache} is gone" in ended.out
    assert "nothing left to do" in ended.out
