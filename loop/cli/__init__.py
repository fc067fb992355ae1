"""The command line: typer commands that parse arguments and call loop.commands, loop.campaign or loop.view."""
