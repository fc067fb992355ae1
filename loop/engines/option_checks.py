"""Checks options of sampling and of the engine before anything is sampled: names that vLLM does not have, options that
prefloop sets itself, tokens that the model does not have."""

import ast
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loop.config.engine_section import EngineConfig
from loop.config.sampling_section import DecodingOptions
from loop.config.settings import Config
from loop.config.types import did_you_mean
from loop.engines.base import chosen_engine, cores, environments, replicas_of, visible_gpus
from loop.errors import UserError

SAMPLING_PARAMETERS = ("sampling_params.py", "SamplingParams")
"""Where vLLM defines what a request may ask for."""
OWN_KEYS = ("temperature", "top_p", "max_tokens", *(key for key in DecodingOptions.model_fields if key != "extra"))
"""Parameters of a request that have a key of their own."""
REFUSED_PARAMETERS = {
    **dict.fromkeys(("n", "seed"), "every response has a request and a seed of its own"),
    **dict.fromkeys(
        ("stop", "include_stop_str_in_output", "repetition_detection"),
        "it ends a response at another token than an end token, which training would not learn; name tokens in "
        "stop_token_ids",
    ),
    "ignore_eos": "a response ends at its end token; min_tokens makes it longer",
    **dict.fromkeys(
        ("detokenize", "skip_special_tokens", "spaces_between_special_tokens", "output_kind", "stream_interval"),
        "prefloop decides which text judges see",
    ),
    **dict.fromkeys(
        ("logprobs", "flat_logprobs", "logprob_token_ids", "prompt_logprobs", "prompt_logprob_token_ids"),
        "prefloop records the log-probs of the sampled tokens, and no others",
    ),
    **dict.fromkeys(("prompt_logprob_start", "trace_decode_token_ids"), "prefloop samples every token, and no others"),
    "structured_outputs": "only judges ask for replies of a fixed form",
    **dict.fromkeys(("skip_clone", "output_text_buffer_length"), "it is internal to vLLM"),
}
"""Parameters of a request that prefloop sets or rules out, and why."""
ENGINE_ARGUMENTS = ("engine/arg_utils.py", "EngineArgs")
"""Where vLLM defines what its engine may be started with."""
KEYS_OF_ARGUMENTS = {
    "dtype": "dtype",
    "max_model_len": "max_model_len",
    "max_num_seqs": "batch",
    "gpu_memory_utilization": "gpu_memory_share",
    "enable_sleep_mode": "idle",
    "tensor_parallel_size": "tensor_parallel",
    "pipeline_parallel_size": "pipeline_parallel",
}
"""Arguments of the engine that have a key of their own in the section engine."""
REFUSED_ARGUMENTS = {
    **dict.fromkeys(
        ("model", "model_weights", "tokenizer", "tokenizer_mode", "skip_tokenizer_init", "runner", "convert"),
        "prefloop gives the engine its model and tokenizer",
    ),
    **dict.fromkeys(
        ("generation_config", "override_generation_config", "seed"),
        "prefloop sets how each response is sampled (section sampling)",
    ),
    **dict.fromkeys(("logprobs_mode", "max_logprobs"), "prefloop records the model's own log-probs"),
    **dict.fromkeys(
        ("data_parallel_size", "nnodes", "node_rank", "master_addr", "master_port", "device_ids"),
        "prefloop starts the engines and gives them their devices",
    ),
    "disable_log_stats": "nobody reads vLLM's statistics here",
    "trust_remote_code": "prefloop runs no code that comes with a model",
    "hf_token": "a config may be shown to others; set HF_TOKEN in the environment",
}
"""Arguments of the engine that prefloop sets or rules out, and why."""


def option_problems(configs: Sequence[Config]) -> list[str]:
    """One paragraph for each option of sampling or of the engine that cannot be used here."""
    found = dict.fromkeys(engine_problems(configs[0].engine))
    for config in configs:
        for section, options in (("sampling", config.sampling), ("eval", config.eval)):
            if options.extra:
                found |= dict.fromkeys(_extra_problems(f"{section}.extra", options.extra, chosen_engine(config.engine)))
    return [*found]


def engine_problems(settings: EngineConfig, key: str = "engine") -> Iterator[str]:
    """One paragraph for each of the engine's settings that this machine or its vLLM cannot take; UserError if the
    engine is not installed. `key` is where they are written."""
    yield from _too_many(settings, key)
    kind, gpus = chosen_engine(settings), len(visible_gpus())
    named = [name for name in ("tensor_parallel", "pipeline_parallel", "args") if settings.changes(name)]
    if kind != "vllm":
        for name in named:
            yield f"{key}.{name} is for vllm, and the {kind} engine cannot use it; remove it."
        return
    if settings.gpus > max(gpus, 1):
        what = " and ".join(f"{key}.{name}={getattr(settings, name)}" for name in named if name != "args")
        there = f"this machine has {gpus}" if gpus else "there is none here: on a CPU both are 1"
        yield f"{what} need {settings.gpus} GPUs for one engine, and {there}. Lower them."
    known = names_in_vllm(*ENGINE_ARGUMENTS)
    for name, value in settings.args.items():
        if name in KEYS_OF_ARGUMENTS:
            yield f"{key}.args: {name} has its own key; set {key}.{KEYS_OF_ARGUMENTS[name]} instead."
        elif name in REFUSED_ARGUMENTS:
            yield f"{key}.args: {name} cannot be set: {REFUSED_ARGUMENTS[name]}."
        elif known is not None and name not in known:
            yield f"{key}.args: vLLM's engine has no argument {name!r}{did_you_mean(name, sorted(known)) or '.'}"
        elif name == "enable_chunked_prefill" and value and not gpus:
            yield f"{key}.args: enable_chunked_prefill breaks the seeds of responses on a CPU; remove it."


def _too_many(settings: EngineConfig, key: str) -> Iterator[str]:
    """What the replicas need and this machine does not have."""
    replicas, threads, gpus = replicas_of(settings), settings.threads or 1, len(visible_gpus())
    named = f"{key}.replicas={replicas}" if replicas > 1 else ""
    if gpus:
        if replicas * settings.gpus > gpus and replicas > 1:
            each = f" on {settings.gpus} GPUs each" if settings.gpus > 1 else ""
            yield f"{named}{each} need {replicas * settings.gpus} GPUs, and this machine has {gpus}; lower it."
    elif replicas * threads > cores():
        each = f"{key}.threads={threads}" if settings.threads else "1 thread each"
        what = " with ".join(filter(None, [named, each]))
        yield f"{what} needs {replicas * threads} cores, and this machine has {cores()}; lower it."


def describe_replicas(settings: EngineConfig) -> str:
    """ "2 replicas, each with 1 thread and 2 GiB of KV cache": what each engine takes; empty for a single one that
    finds its threads itself."""
    places, vllm = environments(settings, None), chosen_engine(settings) == "vllm"
    if places == [{}]:
        return ""
    gpus, threads = places[0].get("CUDA_VISIBLE_DEVICES"), places[0].get("OMP_NUM_THREADS")
    if gpus is None:
        what = f"{threads} thread{'s' * (threads != '1')}"
        cache = f" and {settings.memory_gib:g} GiB of KV cache" if vllm else ""
    else:
        what = f"{settings.gpus} GPU{'s' * (settings.gpus > 1)}"
        cache = f", of whose memory it takes {settings.gpu_memory_share:.0%}" if vllm else ""
    return f"{len(places)} replica{'s' * (len(places) > 1)}, each with {what}{cache}"


def _extra_problems(key: str, extra: dict[str, Any], engine: str) -> Iterator[str]:
    if engine != "vllm":
        yield f"{key} holds parameters of vLLM, and the {engine} engine has none of them; set it to {{}}."
        return
    known = names_in_vllm(*SAMPLING_PARAMETERS)
    for name in extra:
        if name in OWN_KEYS:
            yield f"{key}: {name} has its own key; set {key.removesuffix('extra')}{name} instead."
        elif name in REFUSED_PARAMETERS:
            yield f"{key}: {name} cannot be set: {REFUSED_PARAMETERS[name]}."
        elif known is not None and name not in known:
            yield f"{key}: vLLM has no sampling parameter {name!r}{did_you_mean(name, sorted(known)) or '.'}"


@cache
def names_in_vllm(module: str, of: str) -> frozenset[str] | None:
    """The public fields of a class of the installed vLLM, read from its source, because an import takes seconds; None
    if they cannot be found."""
    spec = find_spec("vllm")
    path = Path(spec.origin or "").parent / module if spec is not None else None
    if path is None or not path.is_file():
        return None
    classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    fields = [line for node in classes if node.name == of for line in node.body if isinstance(line, ast.AnnAssign)]
    names = [line.target.id for line in fields if isinstance(line.target, ast.Name)]
    return frozenset(name for name in names if not name.startswith("_")) or None


def check_tokens(options: DecodingOptions, tokenizer: Any) -> None:
    """UserError if the options name a token that the tokenizer does not have."""
    for key, ids in (("stop_token_ids", options.stop_token_ids), ("logit_bias", options.logit_bias)):
        if beyond := sorted(id for id in ids if id >= len(tokenizer)):
            raise UserError(
                f"{key} names the token {beyond[0]}, but the model has the tokens 0 to {len(tokenizer) - 1} only; "
                "correct the id."
            )
