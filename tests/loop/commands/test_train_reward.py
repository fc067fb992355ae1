"""`prefloop train-reward` as a user runs it: from pairs to a folder that transformers load, over kills and mistakes."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from loop.cli.main import main
from loop.commands.train_reward import work_folder
from loop.config.reward_settings import load_reward_config
from loop.errors import UserError
from loop.store.run_folder import locked
from loop.workers.reward_service import PAD, RewardService, set_padding
from tests.helpers import tiny
from tests.helpers.campaigns import descendants, is_alive
from tests.loop.workers.test_reward_service import make_run
from trainer.data import PreferenceData, PromptGroup, Response
from trainer.errors import TrainerError
from trainer.reward.summary import RewardSummary

ROOT = Path(__file__).resolve().parents[3]
Command = Callable[..., tuple[int, str, str]]
QUICK = {"precision": "fp32", "learning_rate": 3e-3, "batch_pairs": 8, "held_out": 0.2, "checkpoint_every": 2}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in a folder of its own: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prefloop", "train-reward", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def refused(ended: tuple[int, str, str]) -> str:
    """The message of a user's mistake."""
    code, out, err = ended
    assert (code, out.strip()) == (2, ""), ended
    assert err.strip().startswith("prefloop: ")
    assert "Traceback" not in err
    return err


def save_pairs(path: Path, count: int = 40) -> Path:
    """Longer answers are better."""
    rng = random.Random(0)
    rows = [
        {
            "prompt": f"{rng.randrange(100)} + {at} =",
            "chosen": "y" * rng.randint(4, 8),
            "rejected": "n" * rng.randint(1, 3),
        }
        for at in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def config(toys: Path, tmp_path: Path) -> Path:
    """Settings of a small reward model from a file of pairs."""
    pairs = save_pairs(tmp_path / "pairs.jsonl")
    settings = {"base": str(toys / "model"), "data": {"source": "file", "path": str(pairs)}, "train": QUICK}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(settings | {"out": "rm", "threads": 1}), encoding="utf-8")
    return path


def scores(folder: Path, texts: list[str], **how: Any) -> list[float]:
    """What the model card tells a user to do."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False, **how)
    with torch.no_grad():
        return model(**batch).logits[:, 0].tolist()


Train = Callable[..., RewardSummary]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """What the command's worker does, without a worker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def training(config: str | Path, *overrides: str) -> RewardSummary:
        loaded = load_reward_config(config, overrides)
        return RewardService().train(loaded, work_folder(loaded), lambda **_: None)

    return training


def test_pairs_of_a_file_become_a_model_that_transformers_score_with(train: Train, config: Path) -> None:
    summary = train(config)
    folder = config.parent / "rm"
    assert (summary.pairs, summary.held_out) == (32, 8)
    assert summary.before is not None
    assert summary.after is not None
    assert summary.after.accuracy == 1.0
    assert summary.after.loss < 0.5 < 0.6 < summary.before.loss
    asked = "u:1 + 1 =\na:"
    texts = [f"{asked}yyyyyy<eos>", f"{asked}n<eos>", f"{asked}yyyy<eos>"]
    together = scores(folder, texts)
    assert together[0] > together[1]
    assert together == pytest.approx([scores(folder, [text])[0] for text in texts], abs=1e-5)
    assert f"Pairs: {config.parent / 'pairs.jsonl'}" in (folder / "README.md").read_text(encoding="utf-8")
    with pytest.raises(TrainerError, match=r"already holds the result of another training, .* differs in seed"):
        train(config, "seed=1")


@pytest.mark.slow
def test_killed_with_its_worker_and_called_again_it_ends_with_the_same_weights(
    command: Command, train: Train, config: Path, tmp_path: Path
) -> None:
    expected = train(config, "out=whole", "train.epochs=4")
    call = [sys.executable, "-m", "loop.cli.main", "train-reward", str(config), "out=broken", "train.epochs=4"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(call, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "broken.work").glob("checkpoint-??????/state.json")):
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    workers = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline, "the worker outlives its driver"
        time.sleep(0.02)
    assert not (tmp_path / "broken").exists()

    code, out, err = command(config, "out=broken", "train.epochs=4")
    assert (code, err) == (0, "")
    assert "Note: resumed at step " in out
    assert "8 held-out pairs of other prompts" in out
    assert expected.before is not None
    assert expected.after is not None
    assert re.search(rf"accuracy, % +{100 * expected.before.accuracy:.1f} +100.0", out)
    assert f"The model is in {tmp_path / 'broken'}" in out
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("broken", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    changed = (tmp_path / "broken" / "model.safetensors").stat().st_mtime_ns
    code, out, _ = command(config, "out=broken", "train.epochs=4", "--json")
    told = json.loads(out)
    assert (code, told["after"], told["out"]) == (0, expected.after.model_dump(), str(tmp_path / "broken"))
    assert (tmp_path / "broken" / "model.safetensors").stat().st_mtime_ns == changed


def test_a_campaigns_pairs_need_no_base(train: Train, toys: Path, tmp_path: Path) -> None:
    rng = random.Random(0)

    def letters(low: int, high: int) -> list[int]:
        return [*(rng.randrange(97, 122) for _ in range(rng.randint(low, high))), tiny.EOS]

    sampled = {k: {f"prompt {at}": [letters(5, 8), letters(1, 2)] for at in range(12)} for k in (1, 2)}
    make_run(tmp_path / "runs" / "toy", toys / "model", sampled)
    settings = {"data": {"source": "run", "run": "runs/toy", "iterations": [2]}, "train": QUICK, "out": "rm"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    summary = train("run.yaml")
    assert summary.pairs + summary.held_out == 12
    assert "Pairs: the run toy, iterations 2." in (tmp_path / "rm" / "README.md").read_text(encoding="utf-8")

    other = tiny.save_model(tmp_path / "other")
    words = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = words["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    with pytest.raises(UserError, match=r"other has another tokenizer than .*Leave base out"):
        train("run.yaml", "base=other", "out=rm2")


def test_two_commands_do_not_write_the_same_model(command: Command, config: Path) -> None:
    with locked(config.parent / "rm.work", "a reward model"):
        assert "rm.work is being worked on by another process" in refused(command(config))


def test_mistakes_are_one_paragraph_each(train: Train, config: Path, toys: Path, tmp_path: Path) -> None:
    (tmp_path / "weightless").mkdir()
    (tmp_path / "weightless" / "config.json").write_bytes((toys / "model" / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"has no weights \(\*\.safetensors\)"):
        train(config, "base=weightless")
    save_pairs(tmp_path / "one.jsonl", 1)
    with pytest.raises(TrainerError, match=r"they belong to 1 prompt\. Give pairs of more prompts"):
        train(config, "data.path=one.jsonl")
    same = {"prompt": "q", "chosen": "same", "rejected": "same"}
    (tmp_path / "same.jsonl").write_text(f"{json.dumps(same)}\n", encoding="utf-8")
    with pytest.raises(
        TrainerError, match=r"None of the 1 pairs in .*same\.jsonl can be trained on: 1 identical responses"
    ):
        train(config, "data.path=same.jsonl")


@pytest.mark.slow
def test_a_mistake_inside_the_worker_is_one_paragraph(command: Command, config: Path) -> None:
    (config.parent / "empty.jsonl").touch()
    said = refused(command(config, "data.path=empty.jsonl", "--json"))
    assert "empty.jsonl is empty (0 bytes)" in said
    assert "\n" not in said.strip()


# ---- the config ----


def test_a_config_is_refused_by_key_with_a_guess(config: Path) -> None:
    with pytest.raises(UserError, match=r"train\.centering is not a known key.* Known keys of train: .*centre"):
        load_reward_config(config, ["train.centering=0.1"])
    with pytest.raises(UserError, match=r"train\.epoch is not a known key; did you mean train\.epochs\?"):
        load_reward_config(config, ["train.epoch=2"])
    with pytest.raises(UserError, match=r"override 'train.held_out=0.9': train\.held_out is 0\.9, expected a number"):
        load_reward_config(config, ["train.held_out=0.9"])
    with pytest.raises(UserError, match=r"base is missing: .* Only with data\.source=run"):
        load_reward_config(config, ["base=null"])
    with pytest.raises(
        UserError, match=r"data\.path is not a known key of this source, but of file; .* replace all of data"
    ):
        load_reward_config(config, ["data.source=run", "data.run=runs/quickstart"])
    with pytest.raises(UserError, match=r"per_iteration is not a known key"):
        load_reward_config(config, ["per_iteration={1: {train.beta: 1}}"])


# ---- padding ----


@pytest.fixture
def tokenizer(toys: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(toys / "model")


def ending_in(token: int) -> PreferenceData:
    return PreferenceData((PromptGroup("p", (1,), (Response("r", (2, token)),)),), ())


def test_the_bases_own_padding_is_kept_where_it_can_be(tokenizer: Any, toys: Path, tmp_path: Path) -> None:
    assert set_padding(tokenizer, ending_in(tiny.EOS), base=toys / "model", own=tmp_path / "own") == toys / "model"
    assert tokenizer.pad_token_id == tiny.PAD


@pytest.mark.parametrize("why", ["pad is eos", "no pad", "a response ends with it", "padding on the left"])
def test_padding_that_would_move_a_reward_is_replaced(tokenizer: Any, toys: Path, tmp_path: Path, why: str) -> None:
    from transformers import AutoTokenizer

    if why == "padding on the left":
        tokenizer.padding_side = "left"
    elif why != "a response ends with it":
        tokenizer.pad_token = tokenizer.eos_token if why == "pad is eos" else None
    end = tiny.PAD if why == "a response ends with it" else tiny.EOS
    folder = set_padding(tokenizer, ending_in(end), base=toys / "model", own=tmp_path / "own")
    assert folder == tmp_path / "own"
    saved: Any = AutoTokenizer.from_pretrained(folder)
    assert saved.padding_side == "right"
    assert saved.pad_token_id == tokenizer.pad_token_id != end
    assert (saved.pad_token == PAD) is (why != "padding on the left")
    assert saved.chat_template == tiny.TEMPLATE
