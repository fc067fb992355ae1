"""Blanks out secrets in settings and texts before they are shown, or written anywhere but campaign.yaml.

Secrets are known by the name of their key, by their shape (tokens, credentials in an address), by being the value of an
environment variable whose name says so, and by being a value under such a key in the settings of this process's run.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from io import TextIOWrapper
from typing import Any

HIDDEN = "(hidden)"
SECRET_NAMES = re.compile(r"(api.?key|secret|password|passwd|credential|authorization|bearer|cookie)", re.IGNORECASE)
PUBLIC_NAMES = re.compile(r"_env$")
"""`api_key_env` holds the name of a variable, not its value."""
SECRET_TOKEN = re.compile(r"(^|[._-])token$", re.IGNORECASE)
SECRET_VALUES = re.compile(
    r"\b(?:sk|pk|rk|hf|ghp|gho|xox[abp]|glpat|AKIA)[-_]?[A-Za-z0-9_-]{12,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?<=\bBearer )[A-Za-z0-9._~+/=-]{8,}"
)
SECRET_PARAMETERS = re.compile(
    r"([?&](?:[\w-]*(?:token|secret|password|signature)|(?:api|access|subscription)?[_-]?key|sig|auth)=)[^&\s\"']+",
    re.IGNORECASE,
)
"""Parameters of an address: `?token=...`."""
SECRET_VARIABLES = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
"""Environment variables with such a name hold secrets."""
SHORTEST = 6
"""Shorter values of variables are no secrets, and would be found in every text."""
REMEMBERED: set[str] = set()
"""Secrets in the settings of the run that this process works on."""
FOLDERS = re.compile(r"(?<![\w/:.~])~?/(?:[^\s/\"'`]+/)+")
"""The folders of an absolute path, anywhere in a text."""


def redacted(value: Any, name: str = "") -> Any:
    """The value without secrets; lists and mappings are walked through. `name`: the value's key, dotted or not."""
    if isinstance(value, dict):
        return {key: redacted(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, name) for item in value]
    if isinstance(value, str):
        return HIDDEN if is_secret(name) else _without_secrets(value)
    return value


def setting_text(value: Any, key: str) -> str:
    """A setting's value as JSON without secrets: for messages and tables, and valid in a config."""
    return json.dumps(redacted(value, key), ensure_ascii=False, default=str)


def is_secret(name: str) -> bool:
    """Whether a key of this name holds a secret."""
    return not PUBLIC_NAMES.search(name) and bool(SECRET_NAMES.search(name) or SECRET_TOKEN.search(name))


def _without_secrets(text: str) -> str:
    variables = {value for name, value in os.environ.items() if SECRET_VARIABLES.search(name)}
    found = [value for value in REMEMBERED | variables if len(value) >= SHORTEST and value in text]
    for value in sorted(found, key=len, reverse=True):  # a longer value may hold a shorter one
        text = text.replace(value, HIDDEN)
    return SECRET_PARAMETERS.sub(rf"\1{HIDDEN}", SECRET_VALUES.sub(HIDDEN, text))


def remember_secrets(settings: Any) -> None:
    """From now on hide the values under secret keys of these settings in every text of this process."""
    REMEMBERED.update(_secrets_in(settings, ""))


def _secrets_in(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _secrets_in(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets_in(item, name)
    elif isinstance(value, str) and is_secret(name):
        yield value


def unchanged(stored: Any, value: Any) -> bool:
    """Whether `value` is what was stored as redacted JSON. What is hidden there matches any text, so a new key or token
    invalidates no finished work."""
    return _matches(stored, json.loads(json.dumps(value, default=str)))


def _matches(stored: Any, value: Any) -> bool:
    if isinstance(stored, dict) and isinstance(value, dict):
        return stored.keys() == value.keys() and all(_matches(stored[key], value[key]) for key in stored)
    if isinstance(stored, list) and isinstance(value, list):
        return len(stored) == len(value) and all(map(_matches, stored, value))
    if isinstance(stored, str) and isinstance(value, str) and HIDDEN in stored:
        pattern = ".*".join(map(re.escape, stored.split(HIDDEN)))
        return re.fullmatch(pattern, value, re.DOTALL) is not None
    return bool(stored == value)


class RedactedStream(TextIOWrapper):
    """A text stream, such as a worker's log, that hides secrets in everything written to it."""

    def write(self, text: str, /) -> int:
        """Write the text without secrets; returns the length of the original, as callers expect. On a full disk the log
        loses it, and the work goes on."""
        with suppress(OSError):
            super().write(_without_secrets(text))
        return len(text)

    def flush(self) -> None:
        """Flush what the disk takes."""
        with suppress(OSError):
            super().flush()


def flat_settings(settings: Any, prefix: str = "") -> dict[str, str]:
    """Settings by dotted key, as texts without secrets."""
    if not isinstance(settings, dict) or not settings:
        return {prefix: str(redacted(settings, prefix))}
    found: dict[str, str] = {}
    for key, value in settings.items():
        found |= flat_settings(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def publishable(value: Any, name: str = "") -> Any:
    """As `redacted`, and absolute paths keep their last part only: for what is shared with others."""
    if isinstance(value, dict):
        return {key: publishable(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [publishable(item, name) for item in value]
    shown = redacted(value, name)
    return FOLDERS.sub("", shown) if isinstance(shown, str) else shown
