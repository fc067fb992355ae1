"""Room loop, the commands `prefloop judge …`: arguments come in, the catalog, new files or a report go out.

Nothing heavy is imported before a command needs it.
"""

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

judge_app = typer.Typer(
    name="judge",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="List, write and test judges.",
    epilog="Start with: `prefloop judge list`, then `prefloop judge new my-judge`.",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Named = "A built-in or installed judge, `package.module:Class` or `path/to/file.py:Class`"


@judge_app.command(name="list", epilog="Examples: `prefloop judge list` · `prefloop judge list gsm8k`")
def list_judges(
    name: Annotated[Optional[str], typer.Argument(metavar="[JUDGE]", help=f"{Named}: all about this one.")] = None,  # noqa: UP045
    as_json: AsJson = False,
) -> None:
    """Say which judges are installed, or what one of them takes."""
    from dataclasses import asdict

    from judges.catalog import catalog, describe_judge
    from loop.judge_tables import print_catalog, print_judge
    from loop.status_tables import print_json

    if name is not None:
        entry = describe_judge(name)
        print_json(asdict(entry)) if as_json else print_judge(entry)
        return
    entries = list(catalog())
    print_json([asdict(entry) for entry in entries]) if as_json else print_catalog(entries)


@judge_app.command(epilog="Examples: `prefloop judge new brief` · `prefloop judge new better --kind pairwise`")
def new(
    name: Annotated[str, typer.Argument(help="Name of the judge and of its file.")],
    kind: Annotated[
        Literal["pointwise", "pairwise", "group"],
        typer.Option(help="Looks at one response, compares two, or sees all responses to a prompt."),
    ] = "pointwise",
    folder: Annotated[Path, typer.Option("--dir", help="Where the two files go.")] = Path("."),
) -> None:
    """Write a small judge that works, and a test for it, to start from."""
    from loop.judge_new import what_next, write_judge

    print(what_next(write_judge(name, kind, folder)))


@judge_app.command(
    name="test",
    epilog="Examples: `prefloop judge test gsm8k --data labelled.jsonl` · `prefloop judge test my.yaml --data my.csv`",
)
def try_judge(
    judge: Annotated[str, typer.Argument(metavar="JUDGE|CONFIG", help=f"{Named}; or a campaign's YAML file.")],
    data: Annotated[Path, typer.Option("--data", help="Labelled examples: .jsonl, .csv or .parquet.")],
    arg: Annotated[Optional[list[str]], typer.Option(metavar="KEY=VALUE", help="An argument of the judge.")] = None,  # noqa: UP045
    limit: Annotated[Optional[int], typer.Option(min=1, help="Only the first so many examples.")] = None,  # noqa: UP045
    correct_at: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Score from which on a response is said to be right; default is the config's, or 1."),
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="How far a score may be from a labelled one.")] = 1e-6,
    show: Annotated[int, typer.Option(min=0, help="How many disagreements to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Run a judge on labelled examples: how well it agrees, and where it does not.

    A row has `prompt` and either `response` with `label` (right, wrong, abstain) or `score`, or `chosen` and
    `rejected`; `target` and other columns reach the judge.
    """
    from loop.judge_tables import print_report
    from loop.judge_trial import named_judge, run_test
    from loop.status_tables import print_json

    chosen = named_judge(judge, arg or [], correct_at)
    found = run_test(chosen, data, limit=limit, tolerance=tolerance, show=show, quiet=as_json)
    print_json(found) if as_json else print_report(found)
