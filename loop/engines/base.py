"""The engine protocol: requests (token ids and sampling settings) to completions (token ids and text)."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

from loop.config.engine_section import EngineConfig
from loop.config.sampling_section import PLAIN, DecodingOptions
from loop.errors import UserError


@dataclass(frozen=True, slots=True)
class Request:
    """One response to sample. `temperature` 0 is greedy. The same list of requests gives the same completions on a
    CPU."""

    prompt_ids: Sequence[int]
    seed: int
    temperature: float
    top_p: float
    max_tokens: int
    schema: Mapping[str, Any] | None = None
    """JSON schema that the text must follow; only for engines that are `structured`."""
    options: DecodingOptions = PLAIN


@dataclass(frozen=True, slots=True)
class Completion:
    """What was sampled: ids end with a stop token iff finish_reason is "stop"; `logprobs` are the model's own in nats,
    at temperature 1 and without the request's options."""

    token_ids: list[int]
    text: str
    finish_reason: str
    stop_reason: str | None
    logprobs: list[float]


Progress = Callable[[int, int], None]
"""Called with (responses finished, tokens so far); also the worker's heartbeat."""


class Engine(Protocol):
    """Generates responses; its weights can be replaced in place."""

    tokenizer: Any
    stop_ids: frozenset[int]
    """Tokens that end a response; only a response that was cut off ends with another token."""
    structured: bool
    """Whether responses can be constrained to a JSON schema."""
    identity: dict[str, Any]
    """What decides the sampled tokens in addition to requests and weights: kind, versions, dtype, batch, threads."""

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """One completion per request, in their order."""

    def load_policy(self, folder: Path) -> None:
        """Replace the weights by those in `folder` (same architecture)."""

    def sleep(self) -> None:
        """Free the device's memory until `wake`; does nothing on a CPU."""

    def wake(self) -> None:
        """Undo `sleep`."""


def thought_tags(tokenizer: Any) -> frozenset[int]:
    """Special tokens that mark a thought. Decoding drops special tokens, but judges look for these."""
    added = tokenizer.added_tokens_decoder.items()
    named = re.compile("think|thought|reason", re.IGNORECASE)
    return frozenset(id for id, token in added if token.special and named.search(token.content))


def with_tags(text: str, ids: Sequence[int], tokenizer: Any, tags: frozenset[int]) -> str:
    """The decoded text of the ids, with the tags around its thoughts."""
    if tags.isdisjoint(ids):
        return text
    parts = groupby(ids, key=tags.__contains__)
    return "".join(str(tokenizer.decode(list(part), skip_special_tokens=not tag)) for tag, part in parts)


ENGINES = {
    "vllm": "loop.engines.vllm_engine:VllmEngine",
    "transformers": "loop.engines.transformers_engine:TransformersEngine",
}
"""The class of each `engine.kind`, imported only when it is used."""
DEVICES = Path("/dev")
"""Where NVIDIA's driver shows the GPUs of this machine, or of this container."""


def make_engine(policy: Path, settings: EngineConfig) -> Engine:
    """The engine that the settings name."""
    engine: Engine = resolve_name(ENGINES[chosen_engine(settings)])(policy, settings)
    return engine


def visible_gpus() -> list[str]:
    """The GPUs that a process started here may use, by the names that CUDA_VISIBLE_DEVICES takes; empty without any.
    They are found without torch, which a plan does not load and which has to be told the GPUs before."""
    there = [path for path in DEVICES.glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal()]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None or not there:
        return [str(number) for number in range(len(there))]
    found: list[str] = []
    for name in map(str.strip, named.split(",")):
        if name in ("", "-1") or name in found:  # CUDA ignores what follows
            break
        found.append(name)
    return found


def replicas_of(settings: EngineConfig) -> int:
    """How many engines sample at the same time."""
    if settings.replicas == "auto":
        return max(1, len(visible_gpus()) // settings.gpus)
    return settings.replicas


def environments(settings: EngineConfig, threads: int | None) -> list[dict[str, str]]:
    """The environment variables of each replica's process: its GPUs, and on a CPU its threads. A single engine keeps
    what it finds, unless `engine.threads` is set. `threads` are those that the run's first samples were made with."""
    replicas, gpus = replicas_of(settings), visible_gpus()
    if replicas > 1 and gpus:
        starts = range(0, replicas * settings.gpus, settings.gpus)
        return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[start : start + settings.gpus])} for start in starts]
    each = settings.threads
    if each is None and replicas > 1:
        each = threads if threads and threads * replicas <= cores() else cores() // replicas
    return [{} if each is None else {"OMP_NUM_THREADS": str(each)} for _ in range(replicas)]


def cores() -> int:
    """How many CPU threads a process of this machine may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(usable, int(asked) if asked.isdecimal() else 0)


def threads_here() -> int:
    """How many CPU threads torch uses in this process."""
    import torch

    return torch.get_num_threads()


def take_threads(count: int | None) -> None:
    """Have torch use this many CPU threads in this process, if there are as many cores; vLLM chooses its own. On the
    machine that has them by itself nothing is set, because setting them also changes how MKL divides its work."""
    import torch

    if count not in (None, torch.get_num_threads()) and count <= cores():
        torch.set_num_threads(count)


def number_format(settings: EngineConfig) -> str:
    """The precision of the engine's weights, by torch's name."""
    if settings.dtype != "auto":
        return settings.dtype
    return "bfloat16" if chosen_engine(settings) == "vllm" else "float32"


def chosen_engine(settings: EngineConfig) -> str:
    """The engine that `kind: auto` selects on this machine, without importing it."""
    installed = find_spec("vllm") is not None
    if settings.kind == "vllm" and not installed:
        raise UserError(
            "engine.kind is vllm, but vllm is not installed here. Install it (docs/install.md says how for a CPU and "
            "for a GPU), or set engine.kind=transformers, which is slower, but needs nothing else."
        )
    return settings.kind if settings.kind != "auto" else ("vllm" if installed else "transformers")


def package_version(package: str) -> str | None:
    """The package's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
