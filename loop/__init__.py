# A package of prefloop; loop/cli/start.py looks for this line.
"""Runs campaigns: the order of the stages, the run folder, engines, pairing, promotion and the command line.

Passes prompts and responses to `judges` and preference data to `trainer`; neither imports it. `Campaign` is the Python
interface (docs/api.md). Importing this package imports no torch, transformers, vllm or datasets: what needs them runs
in worker processes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loop.api.handle import Campaign as Campaign
    from loop.commands.plan import Plan as Plan
    from loop.errors import UserError as UserError
    from loop.store.run_records import Event as Event
    from loop.store.run_state import RunState as RunState
    from loop.view.rows import Rows as Rows
    from loop.view.run_view import IterationView as IterationView

__version__ = "0.1.0"

_PUBLIC = {
    "Campaign": "loop.api.handle",
    "Event": "loop.store.run_records",
    "IterationView": "loop.view.run_view",
    "Plan": "loop.commands.plan",
    "Rows": "loop.view.rows",
    "RunState": "loop.store.run_state",
    "UserError": "loop.errors",
}
"""Public names and their modules, which are imported when the name is first used."""

__all__ = ["Campaign", "Event", "IterationView", "Plan", "Rows", "RunState", "UserError"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'loop' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
