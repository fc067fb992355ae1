"""Put on PYTHONPATH by tests: whichever process of a campaign first touches a file that matches PAUSE_AT stops there.

It leaves its pid in the file PAUSE_MARK and sleeps, so that a test can kill the campaign at exactly that moment. With
PAUSE_ACTION=die it kills itself instead, once.
"""

import fnmatch
import os
import signal
import sys
import time
from typing import Any

PATTERN, MARK = os.environ.get("PAUSE_AT", ""), os.environ.get("PAUSE_MARK", "")


def stop_at_the_file(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook: `open` comes with a path, `os.rename` and `os.link` with two, each before it happens."""
    if event not in ("open", "os.rename", "os.link"):
        return
    paths = [path for path in args[: 1 if event == "open" else 2] if isinstance(path, str | os.PathLike)]
    if not any(fnmatch.fnmatch(f"{event}:{os.fspath(path)}", PATTERN) for path in paths):
        return
    try:
        handle = os.open(MARK + ".part", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return  # it happened once already
    os.write(handle, str(os.getpid()).encode())
    os.close(handle)
    os.replace(MARK + ".part", MARK)
    os.close(os.open(MARK + ".part", os.O_CREAT | os.O_WRONLY))
    if os.environ.get("PAUSE_ACTION") == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)


if PATTERN:
    sys.addaudithook(stop_at_the_file)
