"""Blanks out keys and values that look like secrets before settings are shown. Pure.

Secrets are known by the name of their key, by their shape (tokens, credentials in an address), and by being the value
of an environment variable whose name says so.
"""

import os
import re
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


def is_secret(name: str) -> bool:
    """Whether a key of this name holds a secret."""
    return not PUBLIC_NAMES.search(name) and bool(SECRET_NAMES.search(name) or SECRET_TOKEN.search(name))


def _without_secrets(text: str) -> str:
    found = [
        (name, value)
        for name, value in os.environ.items()
        if len(value) >= SHORTEST and value in text and SECRET_VARIABLES.search(name)
    ]
    for name, value in sorted(found, key=lambda item: -len(item[1])):  # a longer value may hold a shorter one
        text = text.replace(value, f"<{name}>")
    return SECRET_PARAMETERS.sub(rf"\1{HIDDEN}", SECRET_VALUES.sub(HIDDEN, text))


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
