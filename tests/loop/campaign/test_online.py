"""Online and semi-online iterations: slices of prompts sampled, judged, paired and trained in turn."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import loop.engines.base
import loop.workers.handover
from loop.campaign.stages.online import cut
from loop.campaign.stages.online_record import of_slices
from loop.commands.fork import fork
from loop.commands.plan import make_plan
from loop.config.engine_section import EngineConfig
from loop.config.fit import prompts_per_slice
from loop.config.load import load_config
from loop.engines.base import number_format
from loop.errors import UserError
from loop.store.run_folder import RunFolder
from loop.view.comparison import compare_runs
from loop.view.prompt_records import collect_prompts
from loop.view.status import collect
from loop.workers.handover import handover_folder
from loop.workers.process import Job, Worker
from tests.helpers import tiny
from tests.helpers.campaigns import Cli, assert_same_results, copy_run, read, results, rows, times
from tests.helpers.inprocess import Hook, Killed, Lost, run_here

Change = dict[str, Any]
SHARDS = "iter-001/[sj]*/shard-*.parquet"


@pytest.fixture(scope="module")
def online_settings(toys: Path) -> dict[str, Any]:
    """One iteration of 12 prompts in 3 slices of 4, which give at most 2 pairs each: at most 2 steps of 4 pairs."""
    settings = tiny.settings(toys / "model", toys / "prompts.jsonl", toys / "parity.py")
    settings |= {"iterations": 1, "prompts": settings["prompts"] | {"train": 24, "per_iteration": 12, "gate": 2}}
    settings["prompts"]["test"] = 2
    settings["sampling"]["shard_prompts"] = None
    settings["eval"] = {"samples": 1}
    settings["train"]["sync_every"] = 2
    return settings


@pytest.fixture(scope="module")
def online(online_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An online campaign that nothing interrupted; tests only read it."""
    with pytest.MonkeyPatch.context() as patch:
        return run_here(patch, tmp_path_factory.mktemp("online"), online_settings)


@pytest.fixture
def given(online_settings: dict[str, Any]) -> dict[str, Any]:
    """Its settings, to change at will."""
    return copy.deepcopy(online_settings)


@pytest.fixture
def begun(online: Path, tmp_path: Path) -> Path:
    """A folder with a copy of that campaign as it was before its first iteration."""
    target = tmp_path / "runs" / "run"
    shutil.copytree(online, target)
    shutil.rmtree(target / "iter-001")
    return tmp_path


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "iter-001/train/steps.jsonl").read_text(encoding="utf-8").splitlines()]


def manifest(run: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = read(run / "iter-001" / stage / "manifest.json")
    return found


def test_every_slice_is_sampled_from_the_weights_that_the_ones_before_have_trained(online: Path) -> None:
    """The trainer scores what was sampled, with the weights of the same moment: equal to the sampler's own log-probs in
    fp32, and off by far more once a step lies between them."""
    fresh = [step["sampler_gap"] for step in steps_of(online) if step["staleness"] == 0]
    stale = [step["sampler_gap"] for step in steps_of(online) if step["staleness"] == 1]
    assert len(fresh) == 3
    assert max(fresh) < 1e-5 < 1e-3 < min(stale)
    hashes = [rows(path)[0]["policy_hash"] for path in sorted(online.glob("iter-001/sample/*.parquet"))]
    assert hashes[0] == read(online / "iter-000/promotion.json")["policy"]["hash"]
    assert len(set(hashes)) == 3


def test_counts_and_staleness_add_up(online: Path) -> None:
    sampled, judged, paired, trained = (
        manifest(online, stage)["counts"] for stage in ("sample", "judge", "pair", "train")
    )
    steps, slices = steps_of(online), sampled["slices"]
    assert (sampled["prompts"], sampled["responses"], len(slices)) == (12, 48, 3)
    assert judged["score"] + judged["abstain"] == 48
    assert sum(paired["responses"].values()) == 48
    assert sum(paired["prompts"].values()) == 12
    assert paired["pairs"] == len(rows(online / "iter-001/pair/pairs.parquet")) == sum(s["pairs"] for s in slices)
    assert trained["pairs"] == paired["pairs"]
    assert trained["steps"] == len(steps) == sum(s["steps"] for s in slices)
    assert [step["step"] for step in steps] == list(range(len(steps)))
    for at, one in enumerate(slices):
        own = [step for step in steps if step["slice"] == at]
        assert one["sampled_at_step"] == own[0]["step"]
        assert [step["staleness"] for step in own] == list(range(one["steps"]))
        assert one["steps"] <= 2
        assert one["staleness_most"] == one["steps"] - 1
    assert trained["sampler_gap"] < 1e-5
    assert manifest(online, "train")["seconds"]["hand over"] > 0


def test_staleness_by_hand() -> None:
    """Three steps of slice 0, none of slice 1, one of slice 2."""

    class Made:
        def __init__(self, count: int) -> None:
            self.relations = [None] * count

    found = of_slices([0, 0, 0, 2], [Made(9), Made(0), Made(2)])  # type: ignore[list-item]
    assert found == [
        {"sampled_at_step": 0, "steps": 3, "pairs": 9, "staleness_mean": 1.0, "staleness_most": 2},
        {"sampled_at_step": 3, "steps": 0, "pairs": 0},
        {"sampled_at_step": 3, "steps": 1, "pairs": 2, "staleness_mean": 0.0, "staleness_most": 0},
    ]


def test_whatever_reads_a_run_folder_reads_an_online_one(online: Path, tmp_path: Path) -> None:
    run = RunFolder(online)
    state = collect(run).iterations[1]
    assert (state.finished, set(state.stages.values())) == (True, {"finished"})
    shown = collect_prompts(run, 1, "train", None, 100)
    assert len(shown) == 12
    assert sum(len(prompt.pairs) for prompt in shown) == manifest(online, "pair")["counts"]["pairs"]
    assert len(compare_runs([str(online), str(online)], online.parent, 1).entrants) == 2
    assert fork(run, 1, RunFolder(tmp_path / "forked"), []).iteration == 1
    assert not list(online.glob("**/handed-over")) + list(online.glob("iter-001/train/work"))


def test_nothing_stays_in_shared_memory(
    begun: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(loop.workers.handover, "SHARED", shared)
    seen: list[Path] = []
    run_here(monkeypatch, begun, given, after=lambda worker, job: seen.extend(shared.iterdir()))
    assert len(set(seen)) == 1
    assert list(shared.iterdir()) == []


@pytest.fixture(scope="module")
def ordinary(online_settings: dict[str, Any], online: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same iteration as an ordinary one, everything sampled before the first step."""
    folder = tmp_path_factory.mktemp("ordinary")
    shutil.copytree(online, folder / "runs" / "run")
    shutil.rmtree(folder / "runs" / "run" / "iter-001")
    settings = online_settings | {"train": online_settings["train"] | {"sync_every": "round"}}
    with pytest.MonkeyPatch.context() as patch:
        return run_here(patch, folder, settings)


def test_one_slice_is_the_ordinary_loop(
    begun: Path, given: dict[str, Any], ordinary: Path, online: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given["train"]["sync_every"] = 100
    run = run_here(monkeypatch, begun, given)
    ours, theirs = results(run), results(ordinary)
    assert ours.keys() == theirs.keys()
    different = {name for name in ours if ours[name] != theirs[name]}
    assert different == {"iter-001/train/steps.jsonl"}, "its lines name the slice and the staleness"
    plain = [
        {k: v for k, v in step.items() if k not in ("slice", "staleness", "sampler_gap")} for step in steps_of(run)
    ]
    assert [p["loss"] for p in plain] == [step["loss"] for step in steps_of(ordinary)]
    slices = "iter-001/train/model/model.safetensors"
    assert results(online)[slices] != theirs[slices], "three slices are another training"


def at_job(worker: str, method: str, nth: int, error: type[BaseException]) -> Hook:
    """A hook that raises once, when the nth such job of the iteration is done (its answer is lost)."""
    seen = 0

    def after(found: Worker, job: Job) -> None:
        nonlocal seen
        task = job.details.get("task")
        here = (found.name, job.method) == (worker, method) and "of the evaluation" not in getattr(task, "name", "")
        seen += here
        if here and seen == nth:
            raise error

    return after


KILLS = {
    "the second slice is sampled": ("engine", "sample", 2),
    "the first slice is trained": ("trainer", "train_slice", 1),
    "the weights are handed over": ("trainer", "publish_weights", 1),
    "the candidate is saved": ("trainer", "close_round", 1),
}


@pytest.mark.parametrize("moment", KILLS)
def test_killed_and_continued_ends_as_if_nothing_had_happened(
    begun: Path, given: dict[str, Any], online: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    worker, method, nth = KILLS[moment]
    with pytest.raises(Killed):
        run_here(monkeypatch, begun, given, after=at_job(worker, method, nth, Killed))
    finished = times(begun / "runs/run", SHARDS)
    run = run_here(monkeypatch, begun, given)
    assert finished.items() <= times(run, SHARDS).items(), "a finished shard was made again"
    assert_same_results(run, online)
    assert manifest(run, "sample")["counts"]["slices"] == manifest(online, "sample")["counts"]["slices"]


@pytest.mark.parametrize("checkpoints", [1, 0], ids=["goes on in place", "goes back to the first slice"])
def test_a_lost_trainer_is_made_good(
    begun: Path, given: dict[str, Any], online: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: int
) -> None:
    given["train"]["checkpoint_every"] = checkpoints
    run = run_here(monkeypatch, begun, given, after=at_job("trainer", "train_slice", 2, Lost))
    assert_same_results(run, online)


def test_a_kill_between_two_manifests_is_made_good(
    begun: Path, given: dict[str, Any], online: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(online / "iter-001", begun / "runs/run/iter-001")
    for name in ("pair/manifest.json", "train/manifest.json", "promotion.json"):
        (begun / "runs/run/iter-001" / name).unlink()
    shutil.rmtree(begun / "runs/run/iter-001/eval")
    before = times(begun / "runs/run", "iter-001/train/model/*")
    run = run_here(monkeypatch, begun, given)
    assert times(run, "iter-001/train/model/*") == before, "the candidate was there"
    assert_same_results(run, online)


def test_without_the_samples_it_was_trained_on_a_round_begins_anew(
    begun: Path, given: dict[str, Any], online: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        run_here(monkeypatch, begun, given, after=at_job("trainer", "train_slice", 2, Killed))
    (begun / "runs/run/iter-001/sample/shard-001.parquet").unlink()
    assert_same_results(run_here(monkeypatch, begun, given), online)


def test_changed_settings_begin_an_unfinished_iteration_anew(
    begun: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        run_here(monkeypatch, begun, given, after=at_job("trainer", "train_slice", 3, Killed))
    first, others = (rows(begun / f"runs/run/iter-001/sample/shard-00{i}.parquet") for i in (0, 1))
    given["train"]["learning_rate"] = 2e-4
    run = run_here(monkeypatch, begun, given)
    assert rows(run / "iter-001/sample/shard-000.parquet") == first, "no training had a part in it"
    assert rows(run / "iter-001/sample/shard-001.parquet") != others
    given["train"]["learning_rate"] = 3e-4
    with pytest.raises(UserError, match=r"train.learning_rate was 0.0002 and is now 0.0003"):
        run_here(monkeypatch, begun, given)


def test_slices_follow_the_order_of_a_mixture(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sources with a column of solve rates each, the easier prompts first: online iterations take them in this
    order, and a kill inside the second one changes nothing."""
    sources = []
    for name, weight in (("even", 2), ("odd", 1)):
        some = [
            {"prompt": f"{name} {i} + {i % 7} =", "target": str(i + i % 7), f"ease of {name}": (i * 7 % 40) / 40}
            for i in range(40)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
        columns = {"target_column": "target", "solve_rate_column": f"ease of {name}"}
        sources.append({"weight": weight, "prompts": {"source": "file", "path": str(path), **columns}})
    sizes = {"train": 36, "per_iteration": 12, "gate": 3, "test": 3}
    given["prompts"] = {"source": "mixture", "sources": sources, "order": "easy_to_hard", **sizes}
    given["iterations"] = 2
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = run_here(monkeypatch, tmp_path / "whole", given)
    ease = {
        row["id"]: next(float(value) for name, value in json.loads(row["columns"]).items() if name.startswith("ease"))
        for row in rows(whole / "prompts/train.parquet")
    }
    taken = []
    for k in (1, 2):
        shards = sorted((whole / f"iter-{k:03d}/sample").glob("shard-*.parquet"))
        assert len(shards) == 3
        taken.append(sorted({row["prompt_id"] for path in shards for row in rows(path)}))
    assert [len(part) for part in taken] == [12, 12]
    assert sorted((ease[id] for part in taken for id in part), reverse=True) == sorted(ease.values(), reverse=True)[:24]
    assert min(ease[id] for id in taken[0]) >= max(ease[id] for id in taken[1])
    with pytest.raises(Killed):
        run_here(monkeypatch, tmp_path / "cut", given, after=at_job("trainer", "train_slice", 5, Killed))
    assert_same_results(run_here(monkeypatch, tmp_path / "cut", given), whole)


def test_an_iteration_without_a_pair_says_why(
    begun: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given["pairs"]["correct_at"] = 2.0
    shutil.rmtree(begun / "runs")
    with pytest.raises(UserError, match=r"There is nothing to train on: .*12"):
        run_here(monkeypatch, begun, given)


REFUSED: dict[str, tuple[Change, str]] = {
    "people": ({"judge": {"name": "external"}, "eval": {"judge": {"name": "exact"}}}, "people (judge external)"),
    "another start": ({"start": "initial"}, "start initial trains another model"),
    "a retry": ({"promote": {"on_reject": "retry"}}, "a retry trains again"),
    "a cap": ({"pairs": {"max_pairs": 9}}, "pairs.max_pairs is divided among"),
    "balance": ({"pairs": {"balance": "solve_rate"}}, "pairs.balance needs all prompts"),
    "replay": ({"iterations": 2, "pairs": {"replay": {1: 0.5}}}, "pairs.replay depends on how many pairs"),
    "offline": ({"pairs": {"offline": {"path": "p", "share": 0.5}}}, "pairs.offline depends on how many pairs"),
    "scales": ({"pairs": {"rule": "scored"}, "train": {"loss": "dro_v"}}, "pairs.standardise iteration"),
    "shards": ({"sampling": {"shard_prompts": 4}}, "set sampling.shard_prompts to null"),
    "kto": ({"train": {"loss": "kto", "batch_pairs": 99}}, "the loss kto compares with responses to other prompts"),
    "pairs": ({"pairs": {"per_prompt": 9}}, "one prompt may give 9 pairs, more than are trained"),
    "epochs": ({"train": {"epochs": 8}}, "train.epochs 8 makes more than 2 steps of every pair"),
    "processes": ({"train": {"processes": 2}}, "processes cannot be used with sync_every 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_go_slice_by_slice_is_refused_with_the_way_out(
    case: str, given: dict[str, Any], tmp_path: Path
) -> None:
    changes, words = REFUSED[case]
    for section, values in changes.items():
        given[section] = given.get(section, {}) | values if isinstance(values, dict) else values
    config = tmp_path / "campaign.yaml"
    config.write_text(yaml.safe_dump(given), encoding="utf-8")
    with pytest.raises(UserError) as refused:
        load_config(config)
    assert words in str(refused.value)
    assert str(refused.value).count("\n") == 0


def loaded(settings: dict[str, Any], folder: Path) -> Any:
    config = folder / "campaign.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return load_config(config)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 4),  # 2 steps of 4 pairs, 2 pairs a prompt
        ({"train": {"sync_every": 1, "batch_pairs": 5}}, 2),  # 5 pairs hold two prompts' pairs
        ({"train": {"epochs": 2}}, 2),  # each pair twice
        ({"pairs": {"rule": "best_vs_worst"}}, 8),  # one pair a prompt
        ({"train": {"loss": "npo"}, "pairs": {"rule": "labels"}}, 2),  # 4 responses a prompt
    ],
)
def test_a_slice_holds_what_its_steps_can_train_at_most(
    changes: Change, expected: int, given: dict[str, Any], tmp_path: Path
) -> None:
    for section, values in changes.items():
        given[section] |= values
    assert prompts_per_slice(loaded(given, tmp_path).base) == expected


def test_prompts_are_cut_into_few_and_equal_slices() -> None:
    assert [list(part) for part in cut(range(7), 3)] == [[0, 1], [2, 3], [4, 5, 6]]  # type: ignore[arg-type]
    assert [len(part) for part in cut(range(12), 100)] == [12]  # type: ignore[arg-type]


def test_a_schedule_may_go_from_rounds_to_online(given: dict[str, Any], tmp_path: Path) -> None:
    found = loaded(given | {"iterations": 2, "train": given["train"] | {"sync_every": ["round", 1]}}, tmp_path)
    assert [found.at(k).train.sync_every for k in (1, 2)] == ["round", 1]
    plan = make_plan(RunFolder(tmp_path / "none"), found, check=False).as_json()
    assert "new weights" not in plan["iterations"][0]["sample"]
    assert "in slices of 2 prompts, new weights after at most 1 step" in plan["iterations"][1]["sample"]


def test_weights_pass_through_shared_memory_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, weights, spare = (tmp_path / name for name in ("shared", "weights", "work"))
    for folder in (shared, weights):
        folder.mkdir()
    (weights / "model.safetensors").write_bytes(b"0" * 1000)
    monkeypatch.setattr(loop.workers.handover, "SHARED", shared)
    free: Callable[[int], Any] = lambda size: lambda _: shutil._ntuple_diskusage(0, 0, size)  # type: ignore[attr-defined]  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", free(3000))
    left = shared / f"prefloop-{os.getuid()}-of-a-killed-run"
    (left / "slice-0001").mkdir(parents=True)
    (shared / "of-another-program").mkdir()
    with handover_folder(weights, spare) as found:
        assert sorted(path.name for path in shared.iterdir()) == ["of-another-program", found.name]
        with handover_folder(weights, spare) as other:
            assert other.parent == shared
            assert other != found
        assert found.is_dir(), "its driver is alive"
        assert not other.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.workers.handover, "_locked", lambda folder: None)  # a file system without locks
        with handover_folder(weights, spare) as found:
            assert found == spare
    monkeypatch.setattr(shutil, "disk_usage", free(2999))
    with handover_folder(weights, spare) as found:
        assert found == spare
        assert spare.is_dir()
    assert [path.name for path in shared.iterdir()] == ["of-another-program"]
    assert not spare.exists()


def test_weights_go_over_in_the_format_in_which_the_engine_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert number_format(EngineConfig(kind="transformers")) == "float32"
    assert number_format(EngineConfig(kind="transformers", dtype="float16")) == "float16"
    monkeypatch.setattr(loop.engines.base, "chosen_engine", lambda settings: settings.kind)
    assert number_format(EngineConfig(kind="vllm")) == "bfloat16"


@pytest.mark.soak
def test_an_online_campaign_killed_by_force_goes_on(cli: Cli, given: dict[str, Any], online: Path) -> None:
    config, run = cli.write(given), copy_run(online, cli)
    shutil.rmtree(run / "iter-001")
    cli.pause_at("os.link:*/iter-001/sample/.shard-002.parquet.partial*", config).kill()
    finished = times(run, SHARDS)
    assert len(finished) == 4, "two slices were sampled and judged"
    cli.run(config)
    assert finished.items() <= times(run, SHARDS).items()
    assert_same_results(run, online)
