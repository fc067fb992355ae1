"""Toy size: shrinks a campaign's settings to the same algorithm on a small model, sums and a rule.

The replacements are in configs/toy/settings.yaml. All of it is installed with prefloop; nothing is downloaded.
"""

import copy
from pathlib import Path
from typing import Any

from loop.config.schedule import Raw, set_at
from loop.config.yaml_text import parse_yaml

SLICING = ("parts", "order", "order_by")
"""Keys of `prompts` that belong to the algorithm, not to its data."""
OF_GIVEN = ("replay", "correct_at")
"""Keys of `pairs` that apply to preference data."""


def made_small(raw: Raw, folder: Path) -> Raw:
    """Valid settings, defaults included, at toy size; `folder` holds settings.yaml and sums.jsonl."""
    toy = parse_yaml((folder / "settings.yaml").read_text(encoding="utf-8"), str(folder / "settings.yaml"))
    small, data = copy.deepcopy(raw), str(folder / "sums.jsonl")
    for key, most in toy["at_most"].items():
        set_at(small, key, _at_most(_value_at(small, key), most))
    for key, value in toy["set"].items():
        set_at(small, key, value)
    settled = toy["at_most"] | toy["set"]
    for changes in small["per_iteration"].values():
        for key in settled.keys() & changes.keys():
            del changes[key]
    _replace_judges(small, toy["judge"])
    small |= {"model": toy["model"], "engine": toy["engine"], "prompts": _prompts(small, toy["prompts"], data)}
    _replace_data(small, data)
    _fit_together(small)
    return small


def _value_at(raw: Raw, key: str) -> Any:
    for part in key.split("."):
        raw = raw[part]
    return raw


def _at_most(value: Any, most: int) -> Any:
    """A number, or each of a schedule, lowered; null means no bound."""
    if isinstance(value, list):
        return [_at_most(one, most) for one in value]
    return most if value is None else min(value, most)


def _replace_judges(raw: Raw, judge: Raw) -> None:
    """Use the toy's judge wherever the campaign has one."""
    if raw["judge"] is not None:
        raw["judge"], raw["eval"]["judge"] = judge, None
    elif raw["eval"]["judge"] is not None:
        raw["eval"]["judge"] = judge


def _prompts(raw: Raw, sizes: Raw, data: str) -> Raw:
    """The section `prompts`: sums, sliced if the campaign slices its own data."""
    before, each = raw["prompts"], sizes["train"]
    kept = {key: before[key] for key in SLICING if before.get(key) is not None}
    slices = kept.get("parts") or (raw["iterations"] if before["per_iteration"] else 1)
    sizes = sizes | kept | {"train": each * slices, "per_iteration": each if before["per_iteration"] else None}
    if before["source"] != "preferences":
        return {"source": "file", "path": data, "target_column": "response", **sizes}
    margin = "margin" if before["margin_column"] else None
    return {"source": "preferences", "path": data, "chosen_column": "response", "margin_column": margin, **sizes}


def _replace_data(raw: Raw, data: str) -> None:
    """The other places where a campaign names data or a model."""
    pairs, train = raw["pairs"], raw["train"]
    for key, column in (("gold_column", "response"), ("negative_column", "rejected")):
        pairs[key] = pairs[key] and column
    if offline := pairs["offline"]:
        pairs["offline"] = {"path": data, "chosen_column": "response", "share": offline["share"]}
    if train["mix"]:
        train["mix"] |= {"path": data}
    if raw["reference"] == "path":
        raw["reference_path"] = raw["model"]["base"]


def _fit_together(raw: Raw) -> None:
    """Remove what has no effect with fewer iterations, preference data or online rounds."""
    pairs, train = raw["pairs"], raw["train"]
    pairs["replay"] = {back: share for back, share in pairs["replay"].items() if int(back) < raw["iterations"]}
    if raw["prompts"]["source"] == "preferences":
        raw["pairs"] = {key: pairs[key] for key in OF_GIVEN}
    if train.get("sync_every", "round") != "round":
        train["max_steps"] = None  # an online round ends with its prompts
