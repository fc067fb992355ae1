"""Config section `engine`: what generates the responses; docs/scaling.md explains several engines and GPUs."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from loop.config.section import Section


class EngineConfig(Section):
    """What generates the responses."""

    kind: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto` is vllm if it is installed, otherwise transformers."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the sampling weights; `auto` is bfloat16 for vllm, float32 for transformers."""
    max_model_len: PositiveInt = 1024
    """Longest prompt plus response in tokens; higher needs more memory."""
    batch: PositiveInt = 128
    """Responses generated at the same time; higher is faster until memory or cores are exhausted. On a GPU vllm takes
    512 unless this is changed."""
    memory_gib: PositiveFloat = 2.0
    """KV-cache space of vllm on a CPU, in GiB."""
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of a GPU's memory that vllm takes while it samples."""
    idle: Literal["auto", "keep", "sleep"] = "auto"
    """While the trainer works: `sleep` frees the GPU's memory, `keep` does not; `auto` sleeps on a GPU and keeps on a
    CPU."""
    replicas: PositiveInt | Literal["auto"] = "auto"
    """Engines that sample at the same time, each with the model and a KV cache of its own; `auto` is as many as the
    GPUs allow, and 1 on a CPU. Results do not depend on it if `threads` is set."""
    threads: PositiveInt | None = None
    """CPU threads of one engine; null divides the machine's cores among the replicas. Other threads can give other
    responses for the same seeds."""
    tensor_parallel: PositiveInt = 1
    """GPUs among which vllm divides each layer, for a model too large for one."""
    pipeline_parallel: PositiveInt = 1
    """Parts into which vllm cuts the layers, each on GPUs of its own."""
    args: dict[str, Any] = {}
    """Further arguments of vLLM's engine by name, e.g. `{kv_cache_dtype: fp8}`."""
    stall_seconds: PositiveFloat = 900.0
    """A worker that reports nothing for this many seconds is stopped and replaced, and its shard is tried again."""
    retries: NonNegativeInt = 2
    """How often a shard is tried again after its worker crashed or stalled."""

    @property
    def gpus(self) -> int:
        """GPUs of one engine, where there are any."""
        return self.tensor_parallel * self.pipeline_parallel
