"""The commands `prefloop judge ...`: list, write and test judges. They import heavy modules themselves."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from loop.cli.options import AsJson, RunName, Runs, print_json

judge_app = typer.Typer(
    name="judge",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="List, write and test judges, and hand people's labels to a run.",
    epilog="Start with: `prefloop judge list`, then `prefloop judge new my-judge`.",
)

JudgeSpec = "A built-in or installed judge, `package.module:Class` or `path/to/file.py:Class`"


@judge_app.command(name="list", epilog="Examples: `prefloop judge list` · `prefloop judge list gsm8k`")
def list_judges(
    name: Annotated[str | None, typer.Argument(metavar="[JUDGE]", help=f"{JudgeSpec}: show its details.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the installed judges, or show the arguments of one."""
    from judges.catalog import catalog, describe_judge
    from loop.commands.judge_tables import print_catalog, print_judge

    if name is not None:
        entry = describe_judge(name)
        print_json(asdict(entry)) if as_json else print_judge(entry)
        return
    entries = list(catalog())
    print_json([asdict(entry) for entry in entries]) if as_json else print_catalog(entries)


@judge_app.command(epilog="Examples: `prefloop judge new brief` · `prefloop judge new better --kind pairwise`")
def new(
    name: Annotated[str, typer.Argument(help="Name of the judge and its file.")],
    kind: Annotated[
        Literal["pointwise", "pairwise", "group"],
        typer.Option(help="Judge one response, compare two, or judge all responses to a prompt together."),
    ] = "pointwise",
    folder: Annotated[Path, typer.Option("--dir", help="Folder for the two files.")] = Path("."),
) -> None:
    """Write a small working judge and its test as a starting point."""
    from loop.commands.judge_new import what_next, write_judge

    print(what_next(write_judge(name, kind, folder)))


@judge_app.command(epilog="Examples: `prefloop judge label my labels.jsonl` · `prefloop run my`")
def label(
    run: RunName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Labels: the page's download, or a filled-in sheet.")],
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Check people's labels and hand them to a run that waits for them.

    Several files add up; two different labels of one item are refused.
    """
    from loop.commands.judge_label import print_labels, take_labels
    from loop.store.locate import find_run

    taken = take_labels(find_run(run, runs), file)
    print_json(taken.as_json()) if as_json else print_labels(taken)


@judge_app.command(
    name="test",
    epilog="Examples: `prefloop judge test gsm8k --data labelled.jsonl` · `prefloop judge test my.yaml --data my.csv`",
)
def try_judge(
    judge: Annotated[str, typer.Argument(metavar="JUDGE|CONFIG", help=f"{JudgeSpec}; or a campaign's YAML file.")],
    data: Annotated[Path, typer.Option("--data", help="Labelled examples: .jsonl, .csv or .parquet.")],
    arg: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An argument of the judge.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first examples, at most this many.")] = None,
    correct_at: Annotated[
        float | None, typer.Option(help="Lowest score of a correct response; default is the config's, or 1.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Largest allowed score difference from the label.")] = 1e-6,
    show: Annotated[int, typer.Option(min=0, help="Number of disagreements to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Run a judge on labelled examples and show where it disagrees with the labels.

    A row has `prompt` and either `response` with `label` (right, wrong, abstain) or `score`, or `chosen` and
    `rejected`; `target` and other columns are passed to the judge.
    """
    from loop.commands.judge_tables import print_report
    from loop.commands.judge_test import named_judge, run_test

    data = data.absolute()  # before the judge's code runs
    chosen = named_judge(judge, arg or [], correct_at)
    found = run_test(chosen, data, limit=limit, tolerance=tolerance, show=show, quiet=as_json)
    print_json(found.as_json()) if as_json else print_report(found)
