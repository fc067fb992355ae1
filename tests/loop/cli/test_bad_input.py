"""Whatever a user gives a command: one paragraph says what is wrong, where, and what to do, and nothing is lost."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt
from pydantic import BaseModel

import loop.commands.train_reward
import loop.workers.pool
from loop.config.reward_settings import RewardConfig
from loop.config.settings import Config
from loop.config.types import alternatives, models_of
from tests.helpers import bad_input
from tests.helpers.bad_input import BadInput
from tests.helpers.campaigns import Ended
from tests.helpers.inprocess import InProcess

SECONDS = 10.0
LONG = "x" * 300

# ---- the command line itself ----

COMMANDS = {
    "run": ("ok.yaml",),
    "plan": ("ok.yaml",),
    "status": ("made",),
    "watch": ("made", "--once"),
    "show": ("made@1",),
    "compare": ("made", "other"),
    "report": ("made",),
    "fork": ("made@1", "new"),
    "prune": ("made",),
    "export": ("made@1", "--pairs", "out.jsonl"),
    "sweep": ("ok.yaml", "seed=1,2"),
    "doctor": (),
    "recipes": (),
    "train-reward": ("rm.yaml",),
    "judge new": ("mine",),
    "judge test": ("exact", "--data", "l-label.jsonl"),
    "judge list": (),
    "judge label": ("made", "l-label.jsonl"),
    "runs": (),
}
"""Every command with arguments that would do."""


def command_lines() -> Iterator[BadInput]:
    """Arguments that are missing, unknown or of another type."""
    for command, good in COMMANDS.items():
        words = tuple(command.split())
        yield BadInput((*words, *good, "--no-such-option"), ("--no-such-option",))
        if good:
            yield BadInput(words, ("Missing",))
    for args, word in (
        (("nonsense",), "nonsense"),
        (("judge", "nonsense"), "nonsense"),
        (("rnu", "ok.yaml"), "rnu"),
        (("status", "made", "more"), "more"),
        (("judge", "new", "mine", "--kind", "triple"), "triple"),
        (("export", "made@1", "--format", "xml", "--pairs", "out.jsonl"), "xml"),
        (("export", "made@1", "--model"), "--model"),
        (("show", "made@1", "--limit", "many"), "--limit"),
        (("show", "made@1", "--limit", "-1"), "--limit"),
        (("compare", "made", "other", "--limit", "-1"), "--limit"),
        (("report", "made", "other", "--limit", "x"), "--limit"),
        (("prune", "made", "--keep-last", "1.5"), "--keep-last"),
        (("judge", "test", "exact"), "--data"),
        (("judge", "test", "exact", "--data", "l-label.jsonl", "--limit", "0"), "--limit"),
        (("judge", "test", "exact", "--data", "l-label.jsonl", "--tolerance", "-1"), "--tolerance"),
        (("judge", "test", "exact", "--data", "l-label.jsonl", "--correct-at", "high"), "--correct-at"),
        (("run", "ok.yaml", "--name"), "--name"),
        (("run", "ok.yaml", "--verify=perhaps"), "--verify"),
        (("status", "--runs"), "--runs"),
    ):
        yield BadInput(args, (word,))


# ---- runs ----

RUN_COMMANDS: dict[str, tuple[str, ...]] = {
    "status": ("RUN",),
    "watch": ("RUN", "--once"),
    "show": ("RUN@1",),
    "show --cache": ("RUN",),
    "compare": ("made", "RUN"),
    "report": ("RUN",),
    "report made": ("RUN",),
    "fork": ("RUN@1", "new"),
    "prune": ("RUN", "--yes"),
    "export": ("RUN@1", "--model", "out"),
    "export --pairs out.jsonl": ("RUN@1",),
    "run": ("RUN",),
    "plan": ("RUN",),
    "doctor": ("RUN",),
    "judge label": ("RUN", "l-label.jsonl"),
}
NO_RUNS = {
    "nowhere": ("nowhere",),
    "runs/nowhere": ("nowhere",),
    "file": ("file",),
    "a-folder": ("a-folder",),
    "empty": ("empty",),
    "..": ("..",),
    "../made": ("made",),
    "runs/made/iter-001": ("iter-001",),
    "made\0": (),
    LONG: (),
    "": (),
    "circle": ("circle",),
    "caf\udce9": (),
    "\x1b[31mred": (),
}
FOREIGN = {
    "unmarked": ("unmarked", "run.json"),
    "future": ("99",),
    "broken": ("run.json",),
    "list": ("run.json",),
}
"""Folders of runs that this version cannot read."""


def no_runs() -> Iterator[BadInput]:
    """Every command that reads a run, with names that are none."""
    for command, good in RUN_COMMANDS.items():
        for name, words in NO_RUNS.items():
            yield BadInput((*command.split(), *(arg.replace("RUN", name) for arg in good)), words)
        for name, words in FOREIGN.items():
            yield BadInput((*command.split(), *(arg.replace("RUN", f"runs/{name}") for arg in good)), words)


def iterations() -> Iterator[BadInput]:
    """Iterations that a run does not have, and what cannot be done with it."""
    for command, good in RUN_COMMANDS.items():
        if "RUN@1" in good:
            for at in ("made", "made@", "made@9", "made@-1", "made@one", "made@1.5", "@1", "made@1@1", "made@\u00b2"):
                yield BadInput((*command.split(), *(arg.replace("RUN@1", at) for arg in good)), (at.partition("@")[0],))
    for at in ("made@9", "made@x", "nowhere@1"):
        yield BadInput(("compare", "other", at), (at.partition("@")[0],))
    yield BadInput(("compare", "made"), ("two",))
    yield BadInput(("show", "made@1", "--set", "dev"), ("train, gate or test",))
    yield BadInput(("export", "made@1"), ("--model", "--pairs"))
    yield BadInput(("export", "made@0", "--model", "out"), ("base model",))
    yield BadInput(("export", "made@0", "--pairs", "out.jsonl"), ("base model",))
    yield BadInput(("export", "made@1", "--pairs", "out.csv"), (".jsonl", ".parquet"))
    yield BadInput(("export", "made@1", "--pairs", "prompts.jsonl"), ("exists already",))
    yield BadInput(("export", "made@1", "--model", "a-folder"), ("exists already",))
    yield BadInput(("prune", "made", "--keep-last", "-1", "--yes"), ("keep-last",))
    for until in ("0/pair", "x", "1/nonsense", "1/", "-1", "1/pair/2", "", "9"):
        yield BadInput(("run", "ok.yaml", "--until", until), ("until",))
    yield BadInput(("run", "runs/made", "--toy"), ("--toy",))
    yield BadInput(("run", "runs/made", "--name", "x"), ("--name",))


NEW_NAMES = ("made", "a@1", "\0", LONG, "..", ".", "", "a-file/x", "circle/x", "caf\udce9", "\n")
"""Names that a new run cannot have."""


def new_names() -> Iterator[BadInput]:
    """Commands that make a run, a page, a model or a judge, with names that none can have."""
    for name in NEW_NAMES:
        yield BadInput(("fork", "made@1", name))
        if name != "made":
            yield BadInput(("run", "ok.yaml", "--name", name))
            yield BadInput(("plan", "ok.yaml", "--name", name))
            yield BadInput(("sweep", "ok.yaml", "seed=1,2", "--name", name))
    for out in ("a-folder", "a-file/page.html", LONG, "runs/circle/page.html"):
        yield BadInput(("report", "made", "--out", out))
        yield BadInput(("report", "made", "other", "--out", out))
    for out in ("a-file", LONG, "runs/circle"):
        yield BadInput(("export", "made@1", "--pairs", f"{out}/pairs.jsonl"))
    for name in ("class", "1st", "a b", "a/b", "../up", "", "json", "gsm8k", "\u00e9t\u00e9", "a.py", "\0", LONG):
        yield BadInput(("judge", "new", name))
    yield BadInput(("judge", "new", "parity"), ("exists already",))
    for folder in ("a-file", "a-file/x", "\0", LONG, "runs/circle"):
        yield BadInput(("judge", "new", "mine", "--dir", folder))
    for runs in ("a-file", "a-file/x", "\0", LONG, "runs/circle"):
        for command in ("status", "watch", "report", "prune", "doctor"):
            yield BadInput((command, "nowhere", "--runs", runs))
        yield BadInput(("run", "ok.yaml", "--runs", runs))
        yield BadInput(("fork", "runs/made@1", "new", "--runs", runs))


# ---- settings ----


def values_of(field: Any, turn: int) -> Iterator[str]:
    """Values that a field cannot have; of those for numbers and choices one, by turns."""
    kinds = [*alternatives(field.annotation)]
    if any(get_origin(kind) is dict or kind is dict for kind in kinds) or models_of(field):
        yield "5"
        return
    yield "{zz: 1}"
    choice = any(get_origin(kind) is Literal for kind in kinds)
    if any(kind in (int, float) for kind in kinds):
        bounded = any(isinstance(limit, Ge | Gt) for limit in limits(field))
        values = [*(["true"] if choice else ["many", "true"]), ".nan", "-.inf", "9" * 40, *["-7"] * bounded]
        yield values[turn % len(values)]
    elif choice:
        yield ("no-such-choice", "7")[turn % 2]


def limits(field: Any) -> Iterator[Any]:
    """The bounds of a number, wherever its type names them."""
    yield from field.metadata
    for part in (field.annotation, *get_args(field.annotation)):
        yield from getattr(part, "__metadata__", ())


def wrong_values(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key below a model with values that it cannot have, and an unknown key in every section."""
    for turn, (name, field) in enumerate(model.model_fields.items()):
        for value in values_of(field, turn):
            yield f"{prefix}{name}", value
        inside = models_of(field)
        if len(inside) == 1 and field.default is not None and get_origin(field.annotation) is not list:
            yield f"{prefix}{name}.no_such_key", "1"
            yield from wrong_values(inside[0], f"{prefix}{name}.")


PLACES: tuple[tuple[str, ...], ...] = (
    ("plan", "ok.yaml", "SET"),
    ("run", "ok.yaml", "SET"),
    ("plan", "ok.yaml", "SET", "--check"),
    ("sweep", "ok.yaml", "trackers.samples=1,2", "SET", "--dry-run"),
    ("fork", "made@1", "new", "SET"),
    ("run", "runs/made", "SET"),
)
"""Commands that take settings; the table of wrong values goes around them."""
FREE = {"judge.args", "model.chat_template_kwargs", "per_iteration", "pairs.replay"}
"""Keys with free values, or that are read before they are checked."""
NO_SETTINGS = (
    *("beta", "=", "=1", "train.=1", ".train=1", "train..beta=1", "train.beta", "train.beta=", "train.beta= "),
    *("train.beta={", "train.beta=[1", "train.beta='1", "seed=2024-13-45", "judge=!!python/x 1"),
    *("train.beta=*a", "seed.x=1", "train.loss.x.y=1", "train.loss=nonsense", "train.loss=own.py:f", "train.loss=[]"),
    *("judge.name=", "judge.name=exakt", "judge.name=own.py:Mine", "judge.name=own.py"),
    *("judge=null", "judge={}", "model.base=''", "model.base=/nowhere/model"),
    *("model.base=nowhere.gguf", "model.base=pypi:no-such-package", "prompts.path=nowhere.jsonl", "prompts=null"),
    *("prompts={source: nonsense}", "prompts={source: file}", "prompts={}", "prompts.test_path=nowhere.jsonl"),
    *("prompts.train=2", "sampling.n=1", "sampling.max_tokens=100000", "engine.max_model_len=8"),
    *("per_iteration.9.train.beta=1", "per_iteration.0.train.beta=1", "per_iteration.x.train.beta=1"),
    *("per_iteration.1.model.base=x", "per_iteration.1.train=1", "per_iteration=[1]", "threads=100000"),
    *(
        "iterations=1000000000",
        "iterations=10001",
        "iterations=1e9",
        "sampling.temperature=[]",
        "sampling.temperature=[1, x]",
    ),
    *("trackers=[nonsense]", "trackers=[wandb, wandb]", "trackers={names: tensorboard}", "reference=path"),
    *("reference_path=/nowhere", "pairs.rule=nonsense", "pairs.replay={x: 1}", "pairs.offline={path: nowhere.jsonl}"),
    *("train.mix={path: nowhere.jsonl}", "promote.metric=nonsense", "pairs.correct_at=.nan", "seed=\ud800"),
    *("train.beta=" + "9" * 400, "seed=" + "9" * 30, "sampling.n=" + "9" * 30, "prompts.system=" + "[" * 2000),
    *("prompts.few_shot=[{prompt: a}]", "prompts.few_shot=5", "sampling.stop=5", "eval.judge={name: exakt}"),
)
"""Overrides that are none, or that name what is not there."""


def settings() -> Iterator[BadInput]:
    """Every setting with values of the wrong type, in every command that takes settings."""
    wrong = [(key, value) for key, value in wrong_values(Config) if key not in FREE]
    for at, (key, value) in enumerate(wrong):
        place = PLACES[at % len(PLACES)]
        yield BadInput(tuple(f"{key}={value}" if arg == "SET" else arg for arg in place), (key.rpartition(".")[2],))
    for text in NO_SETTINGS:
        yield BadInput(("plan", "ok.yaml", text))
        yield BadInput(("sweep", "ok.yaml", "sampling.top_p=0.5,0.6", text, "--dry-run"))
    for text, word in (
        ("prompts.train=100000", "100000"),
        ("judge.args={no_such: 1}", "no_such"),
        ("judge.name=a.b.c:D", "a.b.c"),
    ):
        yield BadInput(("plan", "ok.yaml", text, "--check"), (word,))
    for key, value in wrong_values(RewardConfig):
        yield BadInput(("train-reward", "rm.yaml", f"{key}={value}"), (key.rpartition(".")[2],))
    for text in ("base", "out=", "data.source=nonsense", "data.path=nowhere.jsonl", "base=/nowhere", "threads=0"):
        yield BadInput(("train-reward", "rm.yaml", text))
    for texts in (
        "seed=1",
        "seed",
        "seed=1,1",
        "seed=1,2 seed=3",
        "seed=1,",
        "=1,2",
        "seed=a,b",
        "seed=,",
        "seed.x=1,2",
    ):
        yield BadInput(("sweep", "ok.yaml", *texts.split(), "--dry-run"))


def config_files() -> Iterator[BadInput]:
    """Files that are no config, for every command that reads one."""
    others = ("nowhere.yaml", "a-folder", "a-file", "prompts.jsonl", "model", LONG, "", "nonsense", "a-file/x.yaml")
    for name in (*(f"c-{name}.yaml" for name in bad_input.CONFIGS), *others):
        yield BadInput(("plan", name))
        yield BadInput(("run", name))
    for name in ("list", "tabs", "twice", "latin-1", "empty", "open-quote", "bytes"):
        yield BadInput(("doctor", f"c-{name}.yaml"))
        yield BadInput(("sweep", f"c-{name}.yaml", "seed=1,2"))
        yield BadInput(("train-reward", f"c-{name}.yaml"))
        yield BadInput(("judge", "test", f"c-{name}.yaml", "--data", "l-label.jsonl"))
    for name in ("nowhere.yaml", "a-folder", "quickstart", LONG, ""):
        yield BadInput(("train-reward", name))
    yield BadInput(("run", "reward"))


# ---- data, models, judges ----


def data() -> Iterator[BadInput]:
    """Files of prompts, pairs, examples and labels that no campaign can use."""
    for name in bad_input.PROMPTS:
        judge = ("judge={name: exact}",) * name.endswith("-target.jsonl")
        words = () if name == "long.jsonl" or judge else (name,)
        yield BadInput(("plan", "ok.yaml", "--check", f"prompts.path={name}", *judge), words)
    for name in bad_input.UNFIT:
        yield BadInput(("run", "ok.yaml", f"prompts.path={name}"), (name,))
        yield BadInput(("doctor", f"d-{name}.yaml"), ("error:", name), code=1)
    for name in bad_input.PAIRS:
        given = f"pairs.offline={{path: {name}, chosen_column: chosen, rejected_column: rejected}}"
        yield BadInput(("plan", "ok.yaml", "--check", given), (name,))
        yield BadInput(("train-reward", "rm.yaml", f"data.path={name}"))
        yield BadInput(("plan", "ok.yaml", "--check", f"train.mix={{path: {name}}}"), (name,))
    for name in bad_input.LABELLED:
        yield BadInput(("judge", "test", "exact", "--data", name), (name,))
    for name in ("nowhere.jsonl", "a-folder", "runs/circle", f"{LONG}.jsonl"):
        yield BadInput(("judge", "test", "exact", "--data", name))
        yield BadInput(("plan", "ok.yaml", "--check", f"judge.examples={name}"))
        yield BadInput(("plan", "ok.yaml", "--check", f"prompts.path={name}"))
    for name in ("l-empty.jsonl", "l-label.jsonl", "l-both.jsonl", "l-text.parquet"):
        yield BadInput(("plan", "ok.yaml", "--check", f"judge.examples={name}"), (name,))


def models() -> Iterator[BadInput]:
    """Model folders with a fault."""
    faults = ("vocab", "hidden", "layers", "type", "short", "stops", "stop-text", "quantised", "config", "config-list")
    faults += ("tokenizer", "cut", "pointer", "generation", "no-config", "no-weights", "no-tokenizer", "adapter")
    faults += (*bad_input.TEMPLATES,)
    for name in (*(f"m-{fault}" for fault in faults), "fake.gguf", "cut.gguf", "a-folder", "prompts.jsonl", "a/b/c"):
        yield BadInput(("plan", "ok.yaml", "--check", f"model.base={name}"))
    for name in ("m-cut", "m-config", "m-no-tokenizer", "fake.gguf"):
        yield BadInput(("run", "ok.yaml", f"model.base={name}"))
        yield BadInput(("train-reward", "rm.yaml", f"base={name}"))
        yield BadInput(("plan", "ok.yaml", "--check", "reference=path", f"reference_path={name}"))


def judges() -> Iterator[BadInput]:
    """Judges that do not import, are none, or do not know their own examples."""
    for name in bad_input.JUDGES:
        if name != "j_examples":
            yield BadInput(("judge", "test", f"{name}.py:Mine", "--data", "l-good.jsonl"), (name,))
        if name not in ("j_examples", "j_field"):
            yield BadInput(("judge", "list", f"{name}.py:Mine"), (name,))
        yield BadInput(("plan", "ok.yaml", "--check", f"judge.name={name}.py:Mine"), ("Mine",))
    for name in ("exakt", "nowhere.py:Mine", "a-folder:Mine", "no.module:Mine", "parity.py", "parity.py:", ":Mine", ""):
        yield BadInput(("judge", "test", name, "--data", "l-good.jsonl"))
        yield BadInput(("judge", "list", name))
    for name in ("os:path", "json:dumps", "\0.py:Mine", f"{LONG}.py:Mine", "a-file:Mine"):
        yield BadInput(("judge", "test", name, "--data", "l-good.jsonl"))
    for arg in ("right", "right=many", "no_such=1", "=1", "right={", "right=[1]"):
        yield BadInput(("judge", "test", "parity.py:Parity", "--data", "l-good.jsonl", "--arg", arg))


def surroundings() -> Iterator[BadInput]:
    """Environment variables, and files that may not be read."""
    for runs in ("a-file", "nowhere", "\udce9", LONG, "runs/circle"):
        yield BadInput(("status", "made"), ("made",), env={"PREFLOOP_RUNS": runs})
    for cache in ("a-file", "a-file/x", "runs/circle", LONG):
        yield BadInput(("plan", "ok.yaml", "--check", "model.base=cut.gguf"), env={"PREFLOOP_CACHE": cache})
    judge = "judge={name: llm, args: {model: m, url: 'http://localhost:1/v1', api_key_env: NO_KEY, rubric: x}}"
    yield BadInput(("plan", "ok.yaml", "--check", judge), env={"NO_KEY": ""})
    for hidden, args in (
        ("ok.yaml", ("plan", "ok.yaml")),
        ("ok.yaml", ("run", "ok.yaml")),
        ("rm.yaml", ("train-reward", "rm.yaml")),
        ("runs", ("status", "made")),
        ("runs/made", ("status", "made")),
        ("runs/made", ("show", "made@1")),
        ("runs/made", ("report", "made")),
        ("runs/made", ("fork", "made@1", "new")),
        ("runs/made/campaign.yaml", ("plan", "runs/made")),
        ("runs/made/iter-001", ("export", "made@1", "--pairs", "out.jsonl")),
        ("runs/made/iter-001", ("compare", "made", "other")),
        ("runs/made/prompts", ("show", "made@1")),
        ("prompts.jsonl", ("plan", "ok.yaml", "--check")),
        ("parity.py", ("plan", "ok.yaml", "--check")),
        ("model", ("plan", "ok.yaml", "--check")),
        ("model/config.json", ("plan", "ok.yaml", "--check")),
        ("model/tokenizer.json", ("plan", "ok.yaml", "--check")),
        ("model/model.safetensors", ("plan", "ok.yaml", "--check")),
        ("l-good.jsonl", ("judge", "test", "exact", "--data", "l-good.jsonl")),
    ):
        yield BadInput(args, hidden=hidden)


KINDS = (command_lines, no_runs, iterations, new_names, settings, config_files, data, models, judges, surroundings)
ROWS = list({row.name: row for kind in KINDS for row in kind()}.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    bad_input.make_folder(folder)
    return folder


def check(row: BadInput, ended: Ended, seconds: float) -> None:
    """One paragraph with the expected words, in time."""
    told = ended.err.strip() if row.code == 2 else ended.out
    assert ended.code == row.code, (ended.code, ended.out, ended.err)
    assert "Traceback" not in ended.out + ended.err, ended.err
    assert told.startswith("prefloop: ") or row.code != 2, told
    assert "\n\n" not in told, told
    assert len(told) > 40, told
    for word in row.words:
        assert word in told, (word, told)
    assert seconds < SECONDS


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_bad_input_is_refused_in_one_paragraph(row: BadInput, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(loop.workers.pool, "Worker", InProcess)
    monkeypatch.setattr(loop.commands.train_reward, "Worker", InProcess)
    for key, value in row.env.items():
        monkeypatch.setenv(key, value)
    before = bad_input.digests(folder)
    with bad_input.hidden(folder / row.hidden) if row.hidden else nullcontext():
        ended, seconds = bad_input.call(row.args, monkeypatch)
    after = bad_input.digests(folder)
    assert {name for name, digest in before.items() if after.get(name) != digest} == set(), "something was lost"
    print(ended.err)
    check(row, ended, seconds)


ALONE = (
    ("status", "nowhere"),
    ("show", "made@9"),
    ("plan", "c-twice.yaml"),
    ("run", "c-latin-1.yaml"),
    ("plan", "ok.yaml", "train.beta=high"),
    ("run", "ok.yaml", "--no-such-option"),
    ("export", "made@1"),
    ("judge", "new", "class"),
    ("sweep", "ok.yaml", "seed=1"),
    ("train-reward", "rm.yaml", "data.source=nonsense"),
)


@pytest.mark.parametrize("args", ALONE, ids=" ".join)
def test_bad_input_is_refused_by_a_process_of_its_own(args: tuple[str, ...], folder: Path) -> None:
    before, path = bad_input.digests(folder), str(Path(__file__).parents[3])
    command = [sys.executable, "-m", "loop.cli.main", *args]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert bad_input.digests(folder) == before
    check(BadInput(args), Ended(done.returncode, done.stdout, done.stderr), 0.0)


def test_there_are_many_kinds_of_bad_input() -> None:
    print(f"\n{len(ROWS)} distinct bad inputs over {len(COMMANDS)} commands")
    assert len({(row.args, tuple(row.env.items()), row.hidden) for row in ROWS}) == len(ROWS) >= 250
