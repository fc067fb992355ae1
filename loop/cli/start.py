"""The entry point of `prefloop`, which refuses to run when another distribution has replaced one of its packages.

The wheel has a copy of this file outside the packages, as `prefloop.py`: it also runs when `loop` itself is replaced.
"""

import signal
import sys
from importlib.util import find_spec

PACKAGES = ("loop", "judges", "trainer")
MARK = "# A package of prefloop"
"""How the `__init__.py` of each package begins."""

REINSTALL = "reinstall prefloop (`pip install --force-reinstall --no-deps`, see docs/install.md)"


def replaced_packages() -> dict[str, str | None]:
    """The packages that are not prefloop's, each with the file that Python would import for it, if there is one."""
    files = {package: spec.origin if (spec := find_spec(package)) else None for package in PACKAGES}
    return {package: file for package, file in files.items() if file is None or not _is_marked(file)}


def _is_marked(file: str) -> bool:
    with open(file, encoding="utf-8", errors="replace") as source:
        return source.readline().startswith(MARK)


def explain(package: str, file: str | None) -> str:
    """Which package is replaced, by which distributions, and what to do about it."""
    from importlib.metadata import packages_distributions  # takes a second where much is installed

    owners = sorted(set(packages_distributions().get(package, [])) - {"prefloop"})
    if file is None:
        return f"its package `{package}` is missing or incomplete. To repair this, {REINSTALL}."
    if not owners:
        return (
            f"Python finds a package `{package}` at {file} before prefloop's package of that name. Rename it, or "
            "remove its folder from PYTHONPATH."
        )
    return (
        f"the distribution {' and '.join(owners)} has replaced its package `{package}` by its own ({file}). The two "
        "cannot share an environment: install prefloop into a fresh one, or run "
        f"`pip uninstall {' '.join(owners)}` and then {REINSTALL}."
    )


def main() -> None:
    """Run the command, or say why it cannot run here."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback before `listen`
    if replaced := replaced_packages():
        causes = " Also, ".join(explain(package, file) for package, file in replaced.items())
        print(f"\nprefloop cannot start: {causes}", file=sys.stderr)
        sys.exit(2)
    from loop import interrupt

    interrupt.listen()  # before the slow imports
    from loop.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
