"""Room loop, settings fit to be shown: keys and values that look like secrets are blanked out. Pure."""

import os
import re
from typing import Any

HIDDEN = "(hidden)"
SECRET_NAMES = re.compile(r"(api.?key|secret|password|passwd|credential|authorization|bearer|cookie)", re.IGNORECASE)
PUBLIC_NAMES = re.compile(r"_env$")
"""`api_key_env` holds the name of a variable, not its value."""
SECRET_TOKEN = re.compile(r"(^|[._-])token$", re.IGNORECASE)
SECRET_VALUES = re.compile(
    r"\b(?:sk|pk|rk|hf|ghp|gho|xox[abp]|glpat|AKIA)[-_]?[A-Za-z0-9_-]{12,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


def redacted(value: Any, name: str = "") -> Any:
    """The value as it may be shown; lists and dicts are walked through."""
    if isinstance(value, dict):
        return {key: redacted(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, name) for item in value]
    if isinstance(value, str):
        return HIDDEN if is_secret(name) else SECRET_VALUES.sub(HIDDEN, value)
    return value


def is_secret(name: str) -> bool:
    """Whether a key of this name holds a secret."""
    return not PUBLIC_NAMES.search(name) and bool(SECRET_NAMES.search(name) or SECRET_TOKEN.search(name))


SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
"""Environment variables with such a name hold secrets."""
SHORTEST = 6
"""Shorter values are no secrets, and would be found in every text."""


def scrub(text: str) -> str:
    """The text with every secret value of the environment replaced by the name of its variable."""
    for name, value in sorted(os.environ.items(), key=lambda item: -len(item[1])):
        if SECRET.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, f"<{name}>")
    return text


def flat_settings(settings: Any, prefix: str = "") -> dict[str, str]:
    """Settings by dotted key, as texts without secrets."""
    if not isinstance(settings, dict) or not settings:
        return {prefix: scrub(str(settings))}
    found: dict[str, str] = {}
    for key, value in settings.items():
        found |= flat_settings(value, f"{prefix}.{key}" if prefix else str(key))
    return found
