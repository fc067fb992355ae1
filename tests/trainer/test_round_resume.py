"""A round killed with -9 and started again ends with the same bits as one that was left alone."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.logs import log_of
from trainer.data import PreferenceData
from trainer.errors import TrainerError
from trainer.round import train_round
from trainer.settings import LoraSettings
from trainer.spec import RoundSpec
from trainer.stopping import Stopped, ask_to_stop

ROOT = Path(__file__).parents[2]
Spec = Callable[..., RoundSpec]

# argv: a pickle with spec and data, and where to kill: "row 5" (while step 5 is under way), "checkpoint" (half
# written), "save" (the candidate half written)
VICTIM = """
import os, pickle, signal, sys
from pathlib import Path
import trainer.checkpoint, trainer.round
spec, data = pickle.loads(Path(sys.argv[1]).read_bytes())
where = sys.argv[2]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def report(event):
    under_way = event["phase"] == "train" and "loss" not in event
    if under_way and where == f"row {event['done']}":
        die()
if where == "checkpoint":
    real, calls = trainer.checkpoint.publish_folder, []
    def second_time_die(*folders):
        calls.append(folders)
        die() if len(calls) == 2 else real(*folders)
    trainer.checkpoint.publish_folder = second_time_die
if where == "save":
    trainer.round.write_summary = die
trainer.round.train_round(spec, data, report=report)
"""


def silent(_: dict[str, Any]) -> None:
    """A report that nobody reads."""


def killed(spec: RoundSpec, data: PreferenceData, where: str, folder: Path) -> None:
    job = folder / "job.pickle"
    job.write_bytes(pickle.dumps((spec, data)))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", VICTIM, str(job), where], cwd=folder, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not spec.out.exists()


def assert_same_result(one: RoundSpec, other: RoundSpec) -> None:
    ours, theirs = load_file(one.out / "model.safetensors"), load_file(other.out / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert log_of(one.work) == log_of(other.work)


@pytest.mark.parametrize(("where", "resumed_at"), [("row 5", 4), ("row 1", 0), ("checkpoint", 2), ("save", 10)])
def test_killed_and_resumed_equals_uninterrupted(
    make_spec: Spec, toy_data: PreferenceData, tmp_path: Path, where: str, resumed_at: int
) -> None:
    options = {"epochs": 3, "checkpoint_every": 2, "precision": "bf16-autocast"}
    whole, broken = make_spec("whole", **options), make_spec("broken", **options)
    train_round(whole, toy_data, report=silent)
    killed(broken, toy_data, where, tmp_path)
    summary = train_round(broken, toy_data, report=silent)
    assert summary.notes == ((f"resumed at step {resumed_at}",) if resumed_at else ())
    assert_same_result(whole, broken)
    assert not list(broken.work.glob("checkpoint-*"))


def test_a_round_that_is_asked_to_stop_writes_a_checkpoint_and_ends_as_one_that_was_left_alone(
    make_spec: Spec, toy_data: PreferenceData, tmp_path: Path
) -> None:
    whole = make_spec("whole", epochs=3, checkpoint_every=0)
    train_round(whole, toy_data, report=silent)
    ended = make_spec("stopped", epochs=3, checkpoint_every=0)

    def ask(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["done"] == 5:
            assert ask_to_stop()

    with pytest.raises(Stopped):
        train_round(ended, toy_data, report=ask)
    assert [path.name for path in ended.work.glob("checkpoint-*")] == ["checkpoint-000005"]
    assert not ask_to_stop()  # nothing makes steps now
    assert "resumed at step 5" in train_round(ended, toy_data, report=silent).notes
    assert_same_result(whole, ended)


def test_a_killed_lora_round_resumes_bit_for_bit(make_spec: Spec, toy_data: PreferenceData, tmp_path: Path) -> None:
    options = {"epochs": 2, "checkpoint_every": 3, "lora": LoraSettings(rank=4, alpha=8)}
    whole, broken = make_spec("whole", **options), make_spec("broken", **options)
    train_round(whole, toy_data, report=silent)
    killed(broken, toy_data, "row 4", tmp_path)
    assert train_round(broken, toy_data, report=silent).notes == ("resumed at step 3",)
    assert_same_result(whole, broken)


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        ("kto", {"dropout": 0.2, "use_dora": True, "modules_to_save": ("norm",)}),
        ("dpo", {"init_lora_weights": "pissa", "rank": 2}),
    ],
)
def test_rounds_of_other_adapters_resume_bit_for_bit(
    make_spec: Spec, toy_data: PreferenceData, loss: str, kind: dict[str, Any]
) -> None:
    """Dropout draws by step and row, so that a second pass (KTO has two) and a second attempt leave out the same."""
    options = {"lora": LoraSettings(**kind), "epochs": 2, "checkpoint_every": 3, "loss": loss}
    whole, broken = make_spec("whole", **options), make_spec("broken", **options)
    assert train_round(whole, toy_data, report=silent).first.get("margin", 0.0) == 0.0
    stopped(broken, toy_data, 5)
    assert train_round(broken, toy_data, report=silent).notes == ("resumed at step 3",)
    assert_same_result(whole, broken)
    checkpointing = make_spec("checkpointing", **options, gradient_checkpointing=True)
    train_round(checkpointing, toy_data, report=silent)
    ours, theirs = (load_file(spec.out / "model.safetensors") for spec in (whole, checkpointing))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
    if kind.get("dropout"):
        kept = make_spec("kept", **options | {"lora": LoraSettings(**kind | {"dropout": 0.0})})
        train_round(kept, toy_data, report=silent)
        without = load_file(kept.out / "model.safetensors")
        assert not torch.equal(without["model.norm.weight"], ours["model.norm.weight"])


def stopped(spec: RoundSpec, data: PreferenceData, step: int) -> None:
    def report(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["done"] == step:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_round(spec, data, report=report)


@pytest.mark.parametrize("loss", ["dpo", "beta_dpo", "bco", "kto", "tr_dpo", "dro_v", "tdpo2"])
def test_a_stopped_round_resumes_bit_for_bit_whatever_the_loss_keeps(
    make_spec: Spec, toy_data: PreferenceData, loss: str
) -> None:
    """Running statistics, a reference that moves, a value network, random draws."""
    pairs = tuple(replace(pair, score_w=1.0, score_l=-1.0) for pair in toy_data.relations)
    data = PreferenceData(toy_data.groups, pairs)
    chosen = {"name": loss, "tau": 2} if loss == "tr_dpo" else loss
    options = {"loss": chosen, "epochs": 2, "batch_pairs": 6, "checkpoint_every": 3, "probe_pairs": 4, "probe_every": 2}
    whole, broken = make_spec("whole", **options), make_spec("broken", **options)
    train_round(whole, data, report=silent)
    stopped(broken, data, 5)
    torch.manual_seed(12345)
    assert train_round(broken, data, report=silent).notes == ("resumed at step 3",)
    assert_same_result(whole, broken)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 1e-4}, "learning_rate"),
        ({"beta": 0.5}, "beta"),
        ({"seed": 1}, "plan, seed"),
        ({"reference_hash": "another"}, "reference"),
        ({"policy_hash": "another", "reference_hash": "another"}, "policy, reference"),
    ],
)
def test_a_checkpoint_of_another_round_is_refused(
    make_spec: Spec, toy_data: PreferenceData, changes: dict[str, Any], named: str
) -> None:
    stopped(make_spec(checkpoint_every=1), toy_data, 2)
    with pytest.raises(TrainerError, match=f"belongs to another round: it differs in {named}\\."):
        train_round(make_spec(checkpoint_every=1, **changes), toy_data, report=silent)


def test_other_data_are_refused_too(make_spec: Spec, toy_data: PreferenceData) -> None:
    spec = make_spec(checkpoint_every=1)
    stopped(spec, toy_data, 2)
    with pytest.raises(TrainerError, match="differs in plan"):
        train_round(spec, PreferenceData(toy_data.groups, toy_data.relations[1:]), report=silent)


def test_checkpoints_may_come_more_or_less_often_after_a_restart(make_spec: Spec, toy_data: PreferenceData) -> None:
    stopped(make_spec(checkpoint_every=1), toy_data, 2)
    summary = train_round(make_spec(checkpoint_every=3), toy_data, report=silent)
    assert summary.notes == ("resumed at step 1",)
    assert [line["step"] for line in log_of(make_spec().work)] == list(range(summary.steps))


def test_only_the_newest_checkpoint_is_kept(make_spec: Spec, toy_data: PreferenceData) -> None:
    spec = make_spec(checkpoint_every=1)
    stopped(spec, toy_data, 3)
    assert [folder.name for folder in sorted(spec.work.glob("checkpoint-*"))] == ["checkpoint-000002"]


def test_a_shortened_log_is_noticed(make_spec: Spec, toy_data: PreferenceData) -> None:
    spec = make_spec(checkpoint_every=1)
    stopped(spec, toy_data, 3)
    (spec.work / "steps.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(TrainerError, match="shorter than its checkpoint says"):
        train_round(spec, toy_data, report=silent)
