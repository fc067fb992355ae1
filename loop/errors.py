"""Exceptions that stop a command with a message for the user, and the message for what the operating system refuses."""

import errno
import os
import re
from pathlib import Path


class AwaitingLabels(Exception):
    """No failure: the text says what people must do before the run can continue; the command line exits with 3."""


class UserError(ValueError):
    """A mistake or an obstacle that the user can do something about. Its text is one paragraph: what is wrong, where
    (file, line or key), and what to do. The command line prints it and exits with 2; nothing finished is lost."""


class StoppedAtUntil(Exception):
    """No failure: the run has come to the stage that `--until` named, and stops there."""


_ELSEWHERE = "name another place, or move that file away"
_FREE = "Free some space and run the same command; it continues from here"
_LOCKS = ("cannot be locked: its file system offers no locks", "put it on a local disk, e.g. with --runs")
_RIGHTS = ("cannot be used: this user lacks the permission", "change the permissions, or name another place")
OBSTACLES = {
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: ("cannot be written: its file system is read-only", "name a place that can be written"),
    errno.ENAMETOOLONG: ("has a name or path that is too long for this system", "choose a shorter one"),
    errno.ENOTDIR: ("cannot be reached: a part of this path is a file, where a folder is needed", _ELSEWHERE),
    errno.EEXIST: ("exists already and is not what is needed there, e.g. a file instead of a folder", _ELSEWHERE),
    errno.EISDIR: ("is a folder, where a file is needed", "name a file, or move the folder away"),
    errno.ELOOP: ("cannot be reached: its symbolic links lead in a circle", "repair the links, or name another place"),
    errno.ENOLCK: _LOCKS,
    errno.EOPNOTSUPP: _LOCKS,
    errno.EMFILE: ("cannot be opened: this process has too many open files", "raise the limit, e.g. ulimit -n 4096"),
    errno.ENFILE: ("cannot be opened: this machine has too many open files", "end other programs, or wait"),
    errno.EFBIG: (
        "would be larger than this user may write",
        "raise the limit (ulimit -f), or use another file system",
    ),
    errno.EIO: ("cannot be read or written: the disk reports an error", "check the disk, or name another place"),
    errno.ESTALE: ("has changed on its file server while it was open", "mount the file system again"),
}
"""By error number: what is wrong with a file, and what to do. Another try would fail as well."""
CACHES = ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_HOME", "PREFLOOP_CACHE", "XDG_CACHE_HOME", "TMPDIR")
"""Variables that name folders for caches, the narrower ones first."""


def is_obstacle(error: BaseException) -> bool:
    """Whether the operating system refuses a file for a lasting reason, or a text is not UTF-8; also when a library has
    wrapped that error."""
    cause = _cause(error)
    return is_disk_full(cause) or isinstance(cause, UnicodeError) or _number(cause) in OBSTACLES


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for lack of space, also when a library has wrapped the error."""
    return _number(error) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def explain_obstacle(error: BaseException) -> str:
    """One paragraph for an error of the operating system: what is wrong, with which file, and what to do."""
    error = _cause(error)
    file = _file_of(error)
    if is_disk_full(error):
        return f"The disk is full{f' (writing {file})' if file else ''}: {error}. {_FREE}{_about_cache(file)}."
    named = file or "A file"
    if isinstance(error, UnicodeDecodeError):
        line = error.object.count(b"\n", 0, error.start) + 1
        wrong = f"line {line} holds the byte 0x{error.object[error.start]:02x}"
        return (
            f"{named} is not a text file in UTF-8: {wrong}. Save it as UTF-8, e.g. with iconv -f ISO-8859-1 -t UTF-8."
        )
    if isinstance(error, UnicodeError):
        return f"{named} cannot hold a text that is no valid Unicode ({error}). Remove these characters from the text."
    number = _number(error)
    reason = os.strerror(number) if number else " ".join(str(error).split()) or type(error).__name__
    if number not in OBSTACLES:
        kind = f"{file} cannot be read or written" if file else "The operating system refused what the command needs"
        return f"{kind}: {reason}. Finished work is kept; once this is mended, run the same command to continue."
    what, advice = OBSTACLES[number]
    return (
        f"{named} {what} ({reason}). To mend this, {advice}{_about_cache(file)}. Finished work is kept, and the same "
        "command continues from it."
    )


def _cause(error: BaseException) -> BaseException:
    """The error of the operating system behind an error; the error itself if there is none."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError | UnicodeError) or _number(found):
            return found
        found = found.__cause__
    return error


def _number(error: BaseException) -> int:
    """Its error number, which libraries that are not written in Python only mention in the text; 0 if it has none."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"\[Errno (\d+)\]|\(os error (\d+)\)", str(error)[:300])
    return int(found[1] or found[2]) if found else 0


def _file_of(error: BaseException) -> str:
    """The file that the error names, or else the innermost path that was being worked on; may be empty."""
    if isinstance(error, OSError) and error.filename is not None:
        return os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
    found, step = "", error.__traceback__
    while step is not None:
        paths = [value for value in step.tb_frame.f_locals.values() if isinstance(value, Path)]
        found, step = str(paths[0]) if paths else found, step.tb_next
    return found


def _about_cache(file: str) -> str:
    """What to add if the file belongs to a cache, and not to the user's data or runs."""
    for variable in CACHES:
        if (folder := os.environ.get(variable)) and Path(file).is_relative_to(folder):
            return f"; it belongs to the cache in {folder}, which the variable {variable} names"
    if file and Path(file).is_relative_to(Path.home() / ".cache"):
        return "; it belongs to a cache, for which HF_HOME or PREFLOOP_CACHE can name another folder"
    return ""
