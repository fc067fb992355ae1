"""Every command reads run folders of this version's format, and refuses others with one paragraph."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from loop.campaign.run import run_campaign
from loop.cli.main import app
from loop.config.load import load_config
from loop.config.reward_settings import RunPairs
from loop.errors import UserError
from loop.store.files import read_json, to_json, write_file
from loop.store.run_folder import FORMAT, RunFolder
from loop.view.display import Display
from loop.view.run_view import RunView
from loop.workers.reward_service import run_of
from tests.helpers.campaigns import Cli, copy_run, refusal, times

OTHERS = {"newer": b'{"format": 2}', "none": b"{}", "missing": None, "damaged": b"{", "a list": b"[1]"}
COMMANDS = (
    *(["run", "RUN"], ["run", "CONFIG", "--name", "old"], ["plan", "RUN"], ["plan", "CONFIG", "--name", "old"]),
    *(["status", "old"], ["watch", "old", "--once"], ["show", "old@1"], ["show", "old", "--cache"], ["report", "old"]),
    *(["compare", "old", "other"], ["compare", "other", "old@1"], ["report", "old", "other"], ["fork", "old@1", "new"]),
    *(["prune", "old", "--yes"], ["export", "old@1", "--model", "out"], ["doctor", "old"]),
)


@pytest.fixture
def old(reference: Path, cli: Cli) -> Path:
    copy_run(reference, cli, "other")
    return copy_run(reference, cli, "old")


def set_format(run: Path, content: bytes | None) -> None:
    (run / "run.json").unlink()
    if content is not None:
        write_file(run / "run.json", content)


def test_a_run_and_its_fork_have_the_format(cli: Cli, old: Path) -> None:
    assert read_json(old / "run.json") == {"format": FORMAT}
    ended = cli("fork", "old@1", "new")
    assert ended.code == 0, ended.err
    assert read_json(cli.runs / "new" / "run.json") == {"format": FORMAT}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_refuses_another_format(cli: Cli, old: Path, command: list[str]) -> None:
    set_format(old, to_json({"format": FORMAT + 1}))
    before = times(cli.runs)
    named = {"RUN": str(old), "CONFIG": str(old / "campaign.yaml")}
    ended = CliRunner().invoke(app, [*(named.get(word, word) for word in command), "--runs", str(cli.runs)])
    assert isinstance(ended.exception, UserError), ended.output
    assert "has the run folder format 2; this version of prefloop reads format 1 only" in str(ended.exception)
    assert times(cli.runs) == before


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_the_refusal_is_one_paragraph_with_both_formats_and_what_to_do(
    cli: Cli, old: Path, content: bytes | None
) -> None:
    set_format(old, content)
    text = refusal(cli("status", "old"))
    assert ("format 2" if content == OTHERS["newer"] else "no format number in run.json") in text
    assert "reads format 1 only" in text
    assert f"prefloop run {old / 'campaign.yaml'} --name NEW" in text


def test_what_opens_a_run_without_a_command_refuses_it_too(old: Path) -> None:
    set_format(old, None)
    run, loaded = RunFolder(old), load_config(old / "campaign.yaml")
    for opened in (
        lambda: RunView.open(old),
        lambda: run_of(RunPairs(source="run", run=str(old))),
        lambda: run_campaign(run, loaded, Display(to_stderr=True)),
    ):
        with pytest.raises(UserError, match=r"no format number in run\.json"):
            opened()
