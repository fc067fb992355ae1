"""Put on PYTHONPATH by tests: processes of a campaign stop at chosen files, so that a kill hits an exact moment.

PAUSE_AT holds patterns of file events, separated by `|`. The first process that comes to one leaves its pid in the file
PAUSE_MARK.<number of the pattern> and then does what PAUSE_ACTION says: `sleep` (the default), `die` by SIGKILL, or
`full`: this write, and every other that matches, fails as on a full disk until the mark is removed.
"""

import errno
import fnmatch
import os
import signal
import sys
import time
from typing import Any

PATTERNS = os.environ.get("PAUSE_AT", "").split("|")
MARK, ACTION = os.environ.get("PAUSE_MARK", ""), os.environ.get("PAUSE_ACTION", "sleep")


def stop_at_the_file(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook: `open` comes with a path, `os.rename` and `os.link` with two, each before it happens."""
    if event not in ("open", "os.rename", "os.link"):
        return
    paths = [path for path in args[: 1 if event == "open" else 2] if isinstance(path, str | os.PathLike)]
    for number, pattern in enumerate(PATTERNS):
        if any(fnmatch.fnmatch(f"{event}:{os.fspath(path)}", pattern) for path in paths):
            act(f"{MARK}.{number}", os.fspath(paths[0]))


def act(mark: str, path: str) -> None:
    """Do it once; `full` goes on."""
    if ACTION == "full":
        if os.path.exists(mark):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return
    try:
        handle = os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return
    os.write(handle, str(os.getpid()).encode())
    os.close(handle)
    if ACTION == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)


if MARK:
    sys.addaudithook(stop_at_the_file)
