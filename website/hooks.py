"""Hooks of the documentation site: the pages that are generated, and links that lead out of docs/."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import typer.main
from mkdocs.structure.files import File, Files

from loop import api
from loop.cli.main import app

ROOT = Path(api.__file__).resolve().parents[2]
OUTSIDE = {"../README.md": "index.md", "../CHANGELOG.md": "changelog.md"}
"""Files outside docs/ that are pages of the site."""
ELSEWHERE = r"\.\./|LICENSE|CITATION|CONTRIBUTING|SECURITY|tutorial/|notebooks/"
"""How links to files of the repository begin that are no pages of the site."""
SHIM = "assets/iframe-worker.js"
PYTHON = (
    ("Campaigns", ("loop.api.handle.Campaign", "loop.view.run_view.IterationView", "loop.view.rows.Rows")),
    ("Records", ("loop.store.run_records.Event", "loop.commands.plan.Plan", "loop.store.run_state.RunState")),
    ("Judges", ("judges.contract.PointwiseJudge", "judges.pairwise.PairwiseJudge", "judges.types.Prompt")),
    ("What judges say", ("judges.types.Response", "judges.types.Verdict", "judges.pairwise.Preference")),
    ("Losses", ("trainer.losses.batch.Pairs", "trainer.losses.batch.Singles", "trainer.losses.batch.Groups")),
)
"""Sections of the Python reference, and what stands in them."""


def on_files(files: Files, config: object) -> Files:
    """Add the pages that are not in docs/."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    pages = {
        "index.md": readme,
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "]("),
        "commands.md": "\n".join(commands_page()),
        "python.md": "\n".join(python_page()),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))  # type: ignore[arg-type]
    shim = (ROOT / "website" / "iframe-worker.js").read_text(encoding="utf-8")
    files.append(File.generated(config, SHIM, content=shim))  # type: ignore[arg-type]
    return files


def on_post_page(output: str, **_: object) -> str:
    """Load the search's helper from the site itself, not from the network."""
    return output.replace("https://unpkg.com/iframe-worker/shim", SHIM)


def on_post_template(output_content: str, **_: object) -> str:
    """The same for the page that a server shows for a wrong address."""
    return on_post_page(output_content)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links to pages outside docs/ lead to their copies; links to other files of the repository become plain names."""
    for outside, inside in OUTSIDE.items():
        markdown = markdown.replace(f"]({outside}", f"]({inside}")
    return re.sub(rf"\[([^\]]+)\]\((?:{ELSEWHERE})[^)]*\)", r"\1", markdown)


def python_page() -> Iterator[str]:
    """The Python reference; mkdocstrings fills it in."""
    yield "# Python reference\n\nFrom the docstrings. [What is public](api.md#what-is-public) stays as it is."
    for section, names in PYTHON:
        yield f"\n## {section}\n"
        yield from (f"::: {name}\n    options: {{heading_level: 3}}\n" for name in names)


def commands_page() -> Iterator[str]:
    """All commands with their arguments and options, as `--help` prints them."""
    yield "# Commands\n\nWhat `prefloop COMMAND --help` prints."
    yield from of_commands("prefloop", typer.main.get_command(app))


def of_commands(path: str, group: click.Command) -> Iterator[str]:
    """The commands of a group, and those of the groups in it."""
    for name, command in sorted(group.commands.items()):  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            yield from of_commands(f"{path} {name}", command)
        else:
            yield from of_command(f"{path} {name}", command)


def of_command(path: str, command: click.Command) -> Iterator[str]:
    """One command: usage, text, arguments and options, examples."""
    yield f"\n## {path}\n\n```text\n{usage(path, command)}\n```\n"
    yield str(command.help)
    rows = [row for parameter in command.params if (row := row_of(parameter))]
    if rows:
        yield "\n| | |\n|---|---|"
        yield from (f"| <code>{name}</code> | {about} |" for name, about in rows)
    if command.epilog:
        yield f"\n{command.epilog}\n"


def usage(path: str, command: click.Command) -> str:
    """The command with its arguments."""
    names = [named(one) for one in command.params if one.param_type_name == "argument"]
    return " ".join([path, *names, "[OPTIONS]"])


def named(argument: click.Parameter) -> str:
    """An argument as the help shows it."""
    return argument.metavar or str(argument.name).upper()


def row_of(parameter: click.Parameter) -> tuple[str, str] | None:
    """An argument or option, and what it does; none for a hidden one."""
    if getattr(parameter, "hidden", False):
        return None
    names = " / ".join([*parameter.opts, *parameter.secondary_opts])
    if parameter.param_type_name == "argument":
        names = named(parameter)
    default = parameter.default
    shown = f" Default: `{default}`." if default not in (None, False, True, ()) and not callable(default) else ""
    return names.replace("|", "&#124;"), f"{getattr(parameter, 'help', None) or ''}{shown}".replace("|", "\\|")
