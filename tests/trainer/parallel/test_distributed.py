"""A round that several processes train is the round that one would have trained: data, log, weights, resumption.

Equal up to rounding, not to the bit: a sum over rows is taken in another order when two processes have a part of the
rows each. AdamW divides a gradient by its own size, which would blow rounding up wherever a gradient is nearly 0; the
rounds here set `adam_epsilon` so high that updates are proportional to gradients."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

import trainer.round
from tests.helpers.logs import log_of
from trainer.data import PreferenceData
from trainer.errors import TrainerError
from trainer.learner import Learner
from trainer.parallel.processes import ProcessError, run_together
from trainer.parallel.team import Team
from trainer.round import train_round
from trainer.settings import LoraSettings, TrainSettings
from trainer.spec import RoundSpec
from trainer.steps import StepsJob
from trainer.stopping import Stopped, ask_to_stop
from trainer.tree.rows import plan_rows

pytestmark = pytest.mark.slow

Spec = Callable[..., RoundSpec]
ROOT = Path(__file__).parents[3]
CLOSE = 1e-5
"""Of a tensor's largest value."""
SMOOTH: dict[str, Any] = {"adam_epsilon": 1e-2, "learning_rate": 0.1, "row_tokens": 32, "max_steps": 4}
ROUNDS: dict[str, dict[str, Any]] = {
    "full": {"probe_pairs": 4, "probe_every": 2},
    "lora": {"lora": LoraSettings(rank=4, alpha=8)},
    "plain rows": {"layout": "plain", "grouping": "shuffled", "gradient_checkpointing": True},
    "fewer rows than processes": {"row_tokens": 1000},
    "rows without a loss": {"loss": "sft", "row_tokens": 16},
    "bf16": {"precision": "bf16-autocast", "max_steps": 1},
    "whole step": {"loss": "kto"},
    "running statistic": {"loss": "beta_dpo"},
    "live reference": {"loss": "tdpo2"},
    "moving reference": {"loss": {"name": "tr_dpo", "tau": 2}},
    "value network": {"loss": "dro_v"},
}
"""What is trained in one process and in two: fields of `TrainSettings` beside those of `SMOOTH`."""


class Held(NamedTuple):
    """How a process holds the model while it trains."""

    parts: set[bool]
    """Is a parameter a DTensor?"""
    share: float
    """Of all weights, those in this process's memory."""


class Together(NamedTuple):
    """All rounds, trained by two processes."""

    distribute: str
    folder: Path
    held: dict[str, Held]


def silent(_: dict[str, Any]) -> None:
    """A report that nobody reads."""


def spec_of(name: str, folder: Path, policy: Path, **changes: Any) -> RoundSpec:
    settings = TrainSettings(**{"precision": "fp32", "batch_pairs": 8, "checkpoint_every": 0} | SMOOTH | changes)
    return RoundSpec(policy, "policy", policy, "policy", folder / name / "work", folder / name / "out", settings, 0, 1)


def train_all(specs: dict[str, RoundSpec], data: PreferenceData, *, team: Team, report: Any) -> dict[str, Held]:
    """Inside a process: one round after the other, with a look at the weights as each one's training begins."""
    held: dict[str, Held] = {}
    real = trainer.round.train_steps

    def train_steps(learner: Learner, job: StepsJob, **more: Any) -> int:
        weights = [parameter.detach() for parameter in learner.model.parameters()]
        own = sum((w.to_local() if isinstance(w, DTensor) else w).numel() for w in weights)
        held[name] = Held({isinstance(w, DTensor) for w in weights}, own / sum(w.numel() for w in weights))
        return real(learner, job, **more)

    trainer.round.train_steps = train_steps
    for name, spec in specs.items():  # noqa: B007  `train_steps` reads it
        train_round(spec, data, report=report, team=team)
    return held


@pytest.fixture(scope="module")
def scored_data(toy_data: PreferenceData) -> PreferenceData:
    """Every chosen response scores 1, every rejected one 0."""
    return replace(toy_data, relations=tuple(replace(pair, score_w=1.0, score_l=0.0) for pair in toy_data.relations))


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def together(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, policy: Path, scored_data: PreferenceData
) -> Together:
    """All rounds by one pair of processes, which take seconds to start."""
    folder, sharded = tmp_path_factory.mktemp(request.param), request.param == "fsdp"
    specs = {name: spec_of(name, folder, policy, **changes) for name, changes in ROUNDS.items()}
    work = partial(train_all, specs, scored_data)
    held = run_together(2, work, sharded=sharded, logs=folder, report=silent)
    return Together(request.param, folder, held)


@pytest.mark.parametrize("name", ROUNDS)
def test_two_processes_train_what_one_trains(
    together: Together, name: str, tmp_path: Path, policy: Path, scored_data: PreferenceData
) -> None:
    alone = spec_of(name, tmp_path, policy, **ROUNDS[name])
    train_round(alone, scored_data, report=silent)
    assert_same_result(alone, spec_of(name, together.folder, policy, **ROUNDS[name]))


@pytest.mark.parametrize("name", ROUNDS)
def test_each_process_holds_what_it_should(together: Together, name: str) -> None:
    """`ddp`: plain tensors, all of them; `fsdp`: DTensors, adapters and frozen weights too, half of them each."""
    parts, share = together.held[name]
    assert parts == {together.distribute == "fsdp"}
    assert share == pytest.approx(0.5 if together.distribute == "fsdp" else 1.0, abs=0.02)


def test_the_rounds_above_have_uneven_rows(policy: Path, tmp_path: Path, scored_data: PreferenceData) -> None:
    def rows(name: str) -> set[int]:
        settings = spec_of(name, tmp_path, policy, **ROUNDS[name]).settings
        return {len(step.rows) for step in plan_rows(scored_data, settings, seed=0, layout="tree").steps}

    assert any(count % 2 and count > 2 for count in rows("full"))
    assert rows("fewer rows than processes") == {1}


def test_a_killed_process_ends_the_round_and_one_process_goes_on(make_spec: Spec, toy_data: PreferenceData) -> None:
    changes = SMOOTH | {"learning_rate": 0.02, "epochs": 2, "max_steps": 8, "checkpoint_every": 2}
    whole = make_spec("whole", **changes)
    train_round(whole, toy_data, report=silent)
    members: list[Any] = []

    def kill_one(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["done"] == 3:
            members.extend(multiprocessing.active_children())
            os.kill(next(member.pid for member in members if member.name == "prefloop-train-2"), signal.SIGKILL)

    broken = make_spec("broken", **changes, processes=2, distribute="fsdp")
    with pytest.raises(TrainerError) as caught:
        train_round(broken, toy_data, report=kill_one)
    first, *words = str(caught.value).splitlines()
    assert first.startswith("Training stopped: process 2 of 2 was killed by SIGKILL. If it was killed, the machine may")
    assert first.endswith(f"The end of its log {broken.work / 'process-2.log'}:")
    assert all(line.startswith("    ") for line in words)
    assert len(members) == 2
    assert not any(is_alive(member.pid) for member in members)
    assert not broken.out.exists()
    summary = train_round(make_spec("broken", **changes), toy_data, report=silent)
    assert summary.notes[0].startswith("resumed at step ")
    assert_same_result(whole, broken)


def test_two_processes_go_on_where_one_was_stopped(make_spec: Spec, toy_data: PreferenceData) -> None:
    """AdamW's moments, a moving reference and a running statistic are shared out too."""
    changes = SMOOTH | {"loss": [{"name": "tr_dpo", "tau": 1}, {"name": "beta_dpo"}], "checkpoint_every": 2}
    whole, broken = make_spec("whole", **changes), make_spec("broken", **changes)
    train_round(whole, toy_data, report=silent)

    def stop(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["done"] == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_round(broken, toy_data, report=stop)
    both = make_spec("broken", **changes, processes=2, distribute="fsdp")
    assert train_round(both, toy_data, report=silent).notes == ("2 processes, fsdp", "resumed at step 2")
    assert_same_result(whole, both)


def test_two_processes_that_are_asked_to_stop_write_a_checkpoint_together(
    make_spec: Spec, toy_data: PreferenceData
) -> None:
    spec = make_spec("ended", **SMOOTH | {"epochs": 4, "max_steps": 16, "checkpoint_every": 0, "processes": 2})
    asked: list[bool] = []

    def ask(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["done"] == 1 and not asked:
            asked.append(ask_to_stop())

    with pytest.raises(Stopped):
        train_round(spec, toy_data, report=ask)
    assert asked == [True]
    assert not multiprocessing.active_children()
    (checkpoint,) = spec.work.glob("checkpoint-*")
    steps = int(checkpoint.name.rpartition("-")[2])  # no `.partial`
    assert len((spec.work / "steps.jsonl").read_bytes().splitlines()) == steps < 16


# argv: a pickle with spec and data. Prints the pids of its processes in the midst of training, then is killed.
CALLER = """
import multiprocessing, os, pickle, signal, sys
from pathlib import Path
import trainer.round
spec, data = pickle.loads(Path(sys.argv[1]).read_bytes())
def report(event):
    if event["phase"] == "train":
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
trainer.round.train_round(spec, data, report=report)
"""


def test_no_process_outlives_a_killed_caller(make_spec: Spec, toy_data: PreferenceData, tmp_path: Path) -> None:
    job = tmp_path / "job.pickle"
    job.write_bytes(pickle.dumps((make_spec(**SMOOTH, epochs=500, processes=2), toy_data)))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CALLER, str(job)]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    pids = [int(pid) for pid in ended.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 5
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))


def fail_in_the_second(error: Exception, *, team: Team, report: Any) -> None:
    """One process raises; the other waits for it, and may be told that it has gone."""
    if team.rank == 1:
        raise error
    team.wait()


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (TrainerError("Lower the learning rate."), TrainerError, r"^Lower the learning rate\.$"),
        (
            ZeroDivisionError("of two"),
            ProcessError,
            r"^ZeroDivisionError: of two \(in process 2 of 2; end of its log .*",
        ),
    ],
)
def test_the_cause_of_a_failure_is_told_not_its_echo(
    tmp_path: Path, error: Exception, raised: type[Exception], text: str
) -> None:
    with pytest.raises(raised, match=text):
        run_together(2, partial(fail_in_the_second, error), sharded=False, logs=tmp_path, report=silent)
    assert not multiprocessing.active_children()


def is_alive(pid: int) -> bool:
    """Does the process run? One that ended and was not waited for does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def assert_same_result(one: RoundSpec, other: RoundSpec) -> None:
    """Candidate and log up to rounding; the reference's log-probs to the bit."""
    ours, theirs = load_file(one.out / "model.safetensors"), load_file(other.out / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (theirs[name] - tensor).abs().max() <= CLOSE * tensor.abs().max(), name
    assert numbers(one) == pytest.approx(numbers(other), rel=CLOSE, abs=10 * CLOSE)  # log-ratios of tens of nats
    assert log_ratios(one) == pytest.approx(log_ratios(other), abs=0.002)  # they are rounded
    references = {path.name: path.read_bytes() for path in one.work.glob("reference-*")}
    assert references == {path.name: path.read_bytes() for path in other.work.glob("reference-*")}
    assert files(one.out) == files(other.out)


def numbers(spec: RoundSpec) -> dict[str, float]:
    """The whole log as one flat mapping, without what the machine decides."""
    flat: dict[str, float] = {}
    for line in log_of(spec.work):
        for name, value in line.items():
            if name != "log_ratios":
                inner = value if isinstance(value, dict) else {"": value}
                flat |= {f"{line['step']} {name} {key}": number for key, number in inner.items()}
    return flat


def log_ratios(spec: RoundSpec) -> list[float]:
    """Those of the pairs in the log: step by step the chosen ones in rising order, then the rejected ones."""
    pairs = [line.get("log_ratios", []) for line in log_of(spec.work)]
    return [value for step in pairs for side in (0, 1) for value in sorted(pair[side] for pair in step)]


def files(folder: Path) -> list[Path]:
    """What lies in a candidate folder."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))
