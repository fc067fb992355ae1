"""Room loop"""

import typer

judge_app = typer.Typer()
