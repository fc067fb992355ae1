"""Whatever is wrong with what a user gives, or with the machine: one clear paragraph, and nothing is lost."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loop.errors import UserError
from loop.workers.train_service import TrainService, TrainTask
from tests.helpers import tiny
from tests.helpers.campaigns import (
    Cli,
    Ended,
    assert_same_results,
    copy_run,
    events,
    refusal,
    results,
    times,
)
from tests.helpers.inprocess import Here
from trainer.settings import TrainSettings
from trainer.spec import RoundSpec

# ---- settings: refused before anything is written ----

WRONG_SETTINGS = {
    "a wrong key": ({"sampling": {"temprature": 1}}, ("temprature", "temperature", "did you mean")),
    "a wrong section": ({"trian": {}}, ("trian", "train", "did you mean")),
    "a wrong type": ({"sampling": {"n": "many"}}, ("sampling.n", "whole number", "many")),
    "a value out of bounds": ({"train": {"beta": -1}}, ("train.beta", "above 0", "-1")),
    "an unknown judge": ({"judge": {"name": "exakt"}}, ("exakt", "exact")),
    "an answer longer than the context": ({"sampling": {"max_tokens": 500}}, ("max_tokens", "engine.max_model_len")),
}


@pytest.mark.parametrize("what", WRONG_SETTINGS)
def test_a_setting_that_cannot_be_is_refused_before_anything_is_written(
    cli: Cli, settings: dict[str, Any], what: str
) -> None:
    changes, words = WRONG_SETTINGS[what]
    for section, values in changes.items():
        settings[section] = {**settings.get(section, {}), **values}
    told = refusal(cli("run", cli.write(settings)))
    for word in words:
        assert word.lower() in told.lower()
    assert "campaign" in told or what == "an unknown judge"
    assert results(cli.runs / "campaign") == {}


def test_a_config_that_is_not_there_is_named(cli: Cli) -> None:
    told = refusal(cli("run", "nowhere.yaml"))
    assert "nowhere.yaml" in told
    assert "quickstart" in told


def test_a_run_that_is_not_there_is_named(cli: Cli) -> None:
    assert "'nowhere'" in refusal(cli("status", "nowhere"))
    assert "nowhere" in refusal(cli("show", "nowhere@1"))


# ---- data and model: refused before a model is loaded ----


def test_a_missing_data_file_is_named(cli: Cli, settings: dict[str, Any]) -> None:
    settings["prompts"]["path"] = str(cli.folder / "nowhere.jsonl")
    told = refusal(cli("run", cli.write(settings)))
    assert "prompts.path" in told
    assert "nowhere.jsonl" in told


def test_a_column_that_is_not_there_is_named_with_those_that_are(cli: Cli, settings: dict[str, Any]) -> None:
    settings["prompts"]["prompt_column"] = "question"
    told = refusal(cli("run", cli.write(settings)))
    for word in ("prompt_column", "question", "prompt", "target"):
        assert word in told


def test_prompts_that_are_all_empty_are_refused_with_the_count(cli: Cli, settings: dict[str, Any]) -> None:
    (cli.folder / "empty.jsonl").write_text('{"prompt": " ", "target": "1"}\n' * 5, encoding="utf-8")
    settings["prompts"]["path"] = str(cli.folder / "empty.jsonl")
    told = refusal(cli("run", cli.write(settings)))
    assert "5 empty" in told
    assert "empty.jsonl" in told


def test_a_model_folder_without_weights_is_refused(here: Here, settings: dict[str, Any], toys: Path) -> None:
    shutil.copytree(toys / "model", here.folder / "model")
    (here.folder / "model" / "model.safetensors").unlink()
    settings["model"]["base"] = str(here.folder / "model")
    told = refusal(here("run", here.write(settings)))
    assert "no weights (*.safetensors)" in told
    assert str(here.folder / "model") in told


# ---- judges ----

JUDGES = {
    "import nothing_of_this_name": ("nothing_of_this_name", "own.py:1"),
    "def broken(:": ("SyntaxError", "own.py"),
    "class Parity: pass": ("not a judge", "PointwiseJudge"),
    "Other = 1": ("has no 'Parity'", "own.py"),
}


@pytest.mark.parametrize("source", JUDGES)
def test_a_judge_that_cannot_be_built_is_refused_before_a_model_is_loaded(
    cli: Cli, settings: dict[str, Any], source: str
) -> None:
    (cli.folder / "own.py").write_text(source + "\n", encoding="utf-8")
    settings["judge"]["name"] = f"{cli.folder / 'own.py'}:Parity"
    told = refusal(cli("run", cli.write(settings)))
    for word in JUDGES[source]:
        assert word in told
    assert {event["worker"] for event in events(cli.runs / "campaign", "worker_started")} == {"judge"}


HEAD = "from judges.contract import Judge, PointwiseJudge, Verdict\n"
POINTWISE = HEAD + "class Parity(PointwiseJudge):\n    def one(self, prompt, response):\n        "
GROUPWISE = HEAD + "class Parity(Judge):\n    def __call__(self, groups):\n        "
FAILING = {
    "raises": (POINTWISE + "return 1 / 0", ("ZeroDivisionError", "own.py:4", "max_error_share")),
    "returns a text": (POINTWISE + "return 'good'", ("finite number", "'good'")),
    "returns nothing": (POINTWISE + "pass", ("finite number", "None")),
    "returns NaN": (POINTWISE + "return float('nan')", ("finite number", "nan")),
    "raises for a group": (GROUPWISE + "return groups[9999]", ("IndexError", "own.py:4")),
    "returns too few": (GROUPWISE + "return []", ("returned 0 lists", "groups")),
    "returns NaN for a group": (
        GROUPWISE + "return [[Verdict.of(float('nan')) for r in g.responses] for g in groups]",
        ("finite number", "nan"),
    ),
    "exits": (GROUPWISE + "import os; print('leaving'); os._exit(3)", ("worker failed", "code 3", "leaving")),
}


@pytest.mark.slow
def test_a_judge_that_fails_is_named_and_the_responses_are_kept_until_it_is_mended(
    cli: Cli, settings: dict[str, Any], reference: Path
) -> None:
    judge, run = cli.folder / "own.py", cli.runs / "campaign"
    settings["judge"]["name"] = f"{judge}:Parity"
    config, written = cli.write(settings), None
    for what, (source, words) in FAILING.items():
        judge.write_text(source + "\n", encoding="utf-8")
        told = refusal(cli("run", config))
        for word in words:
            assert word in told, (what, told)
        assert not list(run.glob("iter-*/*/*verdicts*.parquet")), what
        written = written or times(run, "iter-000/eval/gate-000.parquet")
        assert written
        assert times(run, "iter-000/eval/gate-000.parquet") == written, "the responses were sampled again"
    judge.write_text(tiny.PARITY, encoding="utf-8")
    running = cli.start("run", config)
    running.wait_for("the evaluation", (run / "iter-000" / "eval" / "manifest.json").exists)
    running.kill()
    assert times(run, "iter-000/eval/gate-000.parquet") == written
    for name in ("gate", "test"):
        sampled = f"iter-000/eval/{name}-000.parquet"
        assert (run / sampled).read_bytes() == (reference / sampled).read_bytes()


@pytest.mark.slow
def test_a_campaign_without_any_pair_says_why_and_keeps_the_samples(
    here: Here, settings: dict[str, Any], reference: Path
) -> None:
    settings["judge"]["args"] = {"right": 2}  # no length is 2 modulo 2
    told = refusal(here("run", here.write(settings)))
    assert "every prompt was all-wrong (16 of 16)" in told
    assert "raise sampling.temperature" in told
    run = here.runs / "campaign"
    sampled = sorted((run / "iter-001" / "sample").glob("*.parquet"))
    assert [p.read_bytes() for p in sampled] == [
        p.read_bytes() for p in sorted((reference / "iter-001" / "sample").glob("*.parquet"))
    ]
    before = times(run, "iter-*/*/*.parquet")
    settings["pairs"] |= {"correct_at": 0.0}  # of eval too, so the evaluation that is finished forbids it
    assert "pairs.correct_at" in refusal(here("run", here.write(settings)))
    assert times(run, "iter-*/*/*.parquet") == before


# ---- damaged files ----


def flip(path: Path, *, keep_time: bool = False) -> None:
    """Invert some bytes in the middle."""
    content, stat = bytearray(path.read_bytes()), path.stat()
    for place in range(len(content) // 3, len(content) // 3 + 8):
        content[place] ^= 255
    path.write_bytes(bytes(content))
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def cut(path: Path) -> None:
    """Lose the second half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "iter-001/sample/shard-001.parquet": flip,
    "iter-001/judge/shard-002.parquet": cut,
    "iter-001/pair/pairs.parquet": flip,
    "iter-001/train/model/model.safetensors": flip,
    "iter-001/train/steps.jsonl": Path.unlink,
    "iter-001/eval/gate-000.parquet": Path.unlink,
    "iter-001/eval/metrics.json": cut,
    "iter-002/eval/manifest.json": cut,
    "iter-002/promotion.json": cut,
}


@pytest.mark.slow
def test_damaged_files_are_refused_by_name_and_repair_makes_just_them_again(
    here: Here, settings: dict[str, Any], reference: Path
) -> None:
    config, run, before = here.write(settings), copy_run(reference, here), times(reference)
    for name, hurt in DAMAGE.items():
        hurt(run / name)
        told = refusal(here("run", config))
        assert f"{run / name} is damaged" in told
        assert "--repair" in told
        shutil.copy2(reference / name, run / name)
    for name, hurt in DAMAGE.items():
        hurt(run / name)
    here.run(config, "--repair")
    assert_same_results(run, reference)
    again = {*DAMAGE, "iter-001/judge/shard-001.parquet"}  # verdicts go with the responses they are about
    kept = [name for name in before if "shard-" in name and name not in again]
    assert {name: times(run)[name] for name in kept} == {name: before[name] for name in kept}
    assert here("run", config, "--verify").code == 0


@pytest.mark.slow
def test_silent_damage_is_found_by_verify(here: Here, settings: dict[str, Any], reference: Path) -> None:
    run = copy_run(reference, here)
    flip(run / "iter-001" / "sample" / "shard-001.parquet", keep_time=True)
    told = refusal(here("run", here.write(settings), "--verify"))
    assert "shard-001.parquet is damaged (its content has changed)" in told


@pytest.mark.slow
def test_a_damaged_shard_of_an_unfinished_stage_is_made_again(
    here: Here, settings: dict[str, Any], reference: Path
) -> None:
    run = copy_run(reference, here)
    for name in ("sample", "judge"):
        (run / "iter-002" / name / "manifest.json").unlink()
    flip(run / "iter-002" / "sample" / "shard-001.parquet")
    cut(run / "iter-002" / "judge" / "shard-003.parquet")
    here.run(here.write(settings))
    assert_same_results(run, reference)


def test_a_policy_that_was_replaced_is_not_trained(tmp_path: Path, toys: Path) -> None:
    model, digest, steps = toys / "model", "0" * 64, tmp_path / "steps.jsonl"
    spec = RoundSpec(model, digest, model, digest, tmp_path / "work", tmp_path / "model", TrainSettings(), 0, 1)
    task = TrainTask("iteration 1", spec, digest, (), tmp_path / "pairs.parquet", steps)
    with pytest.raises(UserError, match=r"policy in .*model is not the model this run was made with.*Put the original"):
        TrainService().train(task, lambda **_: None)
    assert list(tmp_path.iterdir()) == []


# ---- a full disk ----

FULL = """
set -e
mount -t tmpfs -o size={sampling} tmpfs {runs}
run() {{ set +e; {command} >{out}/$1.out 2>{out}/$1.err; echo $? >{out}/$1.code; set -e; }}
run sampling
mount -o remount,size={training} {runs}
run training
mount -o remount,size=64m {runs}
run room
cp -a {runs}/campaign {out}/campaign
"""


def on_a_small_disk(cli: Cli, config: Path) -> dict[str, Ended]:
    """The same command three times, its runs on a tmpfs: too small to sample, too small to train, with room."""
    cli.runs.mkdir()
    command = shlex.join([sys.executable, "-m", "loop.cli.main", "run", str(config), "--runs", str(cli.runs)])
    values = {"runs": cli.runs, "out": cli.folder, "command": command, "sampling": "80k", "training": "1m"}
    subprocess.run(
        ["unshare", "-rm", "sh", "-c", FULL.format(**values)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"},
    )
    text = {
        p.name: p.read_text(encoding="utf-8") for p in cli.folder.iterdir() if p.suffix in (".out", ".err", ".code")
    }
    names = ("sampling", "training", "room")
    return {n: Ended(int(text[f"{n}.code"]), text[f"{n}.out"], text[f"{n}.err"]) for n in names}


def on_a_pretended_one(cli: Cli, config: Path) -> dict[str, Ended]:
    """Where nothing can be mounted: writing shards, then checkpoints, fails with the error of a full disk."""
    ended = {}
    for name, pattern in {
        "sampling": "open:*/eval/.test-000*",
        "training": "open:*/work/checkpoint-*/state.json",
    }.items():
        (cli.folder / f"{name}.0").touch()
        hooks = {"PAUSE_AT": pattern, "PAUSE_MARK": str(cli.folder / name), "PAUSE_ACTION": "full"}
        ended[name] = cli("run", config, env=hooks)
    return ended | {"room": cli("run", config)}


def can_mount() -> bool:
    probe = "mount -t tmpfs tmpfs /tmp"
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(["unshare", "-rm", "sh", "-c", probe], capture_output=True).returncode
    )


@pytest.mark.slow
def test_a_full_disk_stops_sampling_and_training_and_loses_nothing(
    cli: Cli, settings: dict[str, Any], reference: Path
) -> None:
    mounted = can_mount()
    config = cli.write(settings)
    ended = (on_a_small_disk if mounted else on_a_pretended_one)(cli, config)
    run = cli.folder / "campaign" if mounted else cli.runs / "campaign"
    for name in ("sampling", "training"):
        told = refusal(ended[name])
        assert "The disk is full" in told
        assert "Free some space and run the same command" in told
    assert ended["room"].code == 0, ended["room"].err
    assert not (set(stages(run, 0)) - {("prompts", 0)}), "the small disk had room for a whole stage"
    assert ("pair", 1) in stages(run, 1)
    assert ("train", 1) in stages(run, 2)
    assert_same_results(run, reference)


def stages(run: Path, start: int) -> list[tuple[str, int]]:
    """Stages that were finished by the start of that number, from 0."""
    found: list[list[tuple[str, int]]] = []
    for event in events(run):
        if event["event"] == "worker_started" and event["worker"] == "judge":
            found.append([])
        elif event["event"] == "stage_finished":
            found[-1].append((event["stage"], event["iteration"]))
    return found[start]
