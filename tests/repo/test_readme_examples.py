"""What README.md and the guides show is true: the judge works, the YAML loads, commands and files exist."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from judges import Group, Judge, Prompt, Response, Verdict, judge_groups, self_test
from judges.resolve import build_judge
from loop.cli.main import app
from loop.config.load import LoadedConfig, load_config, shipped_configs
from loop.config.reward_settings import load_reward_config

ROOT = Path(__file__).resolve().parents[2]
GUIDES = (
    "README.md",
    "docs/campaign.md",
    "docs/data.md",
    "docs/faq.md",
    "docs/gpu.md",
    "docs/judge-command.md",
    "docs/recipes.md",
    "docs/reward-models.md",
    "docs/signal.md",
    "docs/sizing.md",
    "docs/steering.md",
    "docs/supervised.md",
    "docs/troubleshooting.md",
    "docs/tutorial.md",
    "docs/upgrade.md",
    "docs/watch.md",
)
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in GUIDES}
README = PAGES["README.md"]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(text: str, kind: str) -> list[str]:
    """The fenced blocks of one kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def command_lines(text: str, command: str) -> list[str]:
    """The lines of plain blocks that call a command, without their comments."""
    lines = [line.partition("  #")[0].strip() for block in blocks(text, "") for line in block.splitlines()]
    return [line for line in lines if line.startswith(f"{command} ")]


def flags(name: str, words: list[str]) -> set[str]:
    """The options of a command; of a group of commands, those of the one that the words begin with."""
    command = COMMANDS[name]
    if hasattr(command, "commands"):
        command = command.commands[words[0]]
    return {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}


# ---- the custom judge ----

(JUDGE,) = blocks(README, "python")


@pytest.fixture
def custom(tmp_path: Path) -> Judge:
    """The README's judge, built as its YAML names it."""
    section: dict[str, Any] = yaml.safe_load(blocks(README, "yaml")[0])["judge"]
    (tmp_path / section["name"].partition(":")[0]).write_text(JUDGE, encoding="utf-8")
    return build_judge(section["name"], section["args"], base_dir=tmp_path)


def verdicts(judge: Judge, target: str | None, *texts: str) -> list[Verdict]:
    """What the judge says of the texts as answers to one prompt."""
    responses = tuple(Response(str(index), text, "stop") for index, text in enumerate(texts))
    (row,) = judge_groups(judge, [Group(Prompt("p", (), target, {}), responses)])
    return row


def test_the_custom_judge_has_at_most_twenty_lines() -> None:
    assert len(JUDGE.splitlines()) <= 20


def test_the_custom_judge_tells_right_from_wrong_and_reads_both(custom: Judge) -> None:
    found = verdicts(custom, "18", '{"answer": 18}', '{"answer": "18"}', '{"answer": 17}')
    assert [(v.kind, v.score, v.extracted, v.well_formed) for v in found] == [
        ("score", 1.0, "18", True),
        ("score", 1.0, "18", True),
        ("score", 0.0, "17", True),
    ]


def test_the_custom_judge_calls_what_it_cannot_read_wrong_and_says_why(custom: Judge) -> None:
    found = verdicts(custom, "18", "18", "the answer is 18", '{"result": 18}', '{"answer": 18', "[18]")
    assert [(v.kind, v.score, v.extracted, v.well_formed) for v in found] == [("score", 0.0, None, False)] * 5
    assert all(v.why.startswith("unparsable: ") for v in found)


def test_the_custom_judge_abstains_where_nothing_is_known(custom: Judge) -> None:
    assert [v.kind for v in verdicts(custom, None, '{"answer": null}')] == ["abstain"]


def test_the_files_of_the_tutorial_are_those_on_its_page() -> None:
    page, folder = PAGES["docs/tutorial.md"], ROOT / "docs" / "tutorial"
    assert blocks(page, "python")[0] == (folder / "short_answer.py").read_text(encoding="utf-8")
    assert blocks(page, "yaml")[0] == (folder / "capitals.yaml").read_text(encoding="utf-8")
    assert self_test(build_judge("short_answer.py:ShortAnswer", {}, base_dir=folder)) == 2
    rows = (folder / "capitals.csv").read_text(encoding="utf-8").splitlines()
    assert (rows[:3], len(rows)) == (blocks(page, "text")[0].splitlines(), 111)


# ---- YAML and commands ----


def load_example(folder: Path, text: str, overrides: list[str]) -> LoadedConfig:
    """A YAML block as a campaign; a block without prompts is a part, and goes with the README's whole one."""
    given = yaml.safe_load(text)
    whole = given if "prompts" in given else yaml.safe_load(blocks(README, "yaml")[0]) | given
    (folder / "my.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    return load_config(folder / "my.yaml", overrides)


@pytest.mark.parametrize(
    "text", [block for page in PAGES.values() for block in blocks(page, "yaml")], ids=lambda text: text.split("\n")[0]
)
def test_every_yaml_block_loads(text: str, tmp_path: Path) -> None:
    if "out" in yaml.safe_load(text):
        (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
        load_reward_config(tmp_path / "my.yaml")
    else:
        load_example(tmp_path, text, [])


def test_the_schedule_of_the_readme_means_what_the_text_says(tmp_path: Path) -> None:
    loaded = load_example(tmp_path, blocks(README, "yaml")[1], ["iterations=4"])
    assert [loaded.at(k).sampling.temperature for k in range(1, 5)] == [0.8, 0.8, 1.3, 1.3]
    assert [loaded.at(k).pairs.per_prompt for k in range(1, 4)] == [10, 4, 10]


@pytest.mark.parametrize("line", [line for page in PAGES.values() for line in command_lines(page, "prefloop")])
def test_every_command_line_is_one_that_prefloop_understands(line: str, tmp_path: Path) -> None:
    _, name, *words = shlex.split(line)
    source = words.pop(0) if words else ""
    assert {word for word in words if word.startswith("--")} <= flags(name, [source])
    if name == "train-reward":
        load_reward_config("reward", [word for word in words if "=" in word])
    elif name in ("run", "plan"):
        overrides = [word for word in words if "=" in word]
        if source.endswith(".yaml"):
            load_example(tmp_path, blocks(README, "yaml")[0], overrides)
        else:
            load_config(source, overrides)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_the_text_exists(page: str) -> None:
    for name, rest in re.findall(r"`prefloop ([a-z][a-z-]*)([^`]*)`", PAGES[page]):
        assert name in COMMANDS, f"prefloop {name}"
        assert set(re.findall(r"--[a-z-]+", rest)) <= flags(name, rest.split()) | {"--help"}


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", README)) | {line.split()[1] for line in command_lines(README, "make")}
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("page", [*PAGES, "docs/results.md", "benchmarks/README.md"])
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not ((ROOT / page).parent / link.partition("#")[0]).exists()] == []


def test_every_config_and_built_in_file_that_the_readme_names_is_there() -> None:
    named = re.findall(r"`((?:configs|docs|judges|trainer|tests)/[\w./-]+)`", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert {"quickstart", "gsm8k"} <= set(shipped_configs())
