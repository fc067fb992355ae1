"""Checks options of sampling and of the engine before anything is sampled: names that vLLM does not have, options that
prefloop sets itself, tokens that the model does not have."""

import ast
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loop.config.sampling_section import DecodingOptions
from loop.config.settings import Config
from loop.config.types import did_you_mean
from loop.engines.base import chosen_engine
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


def option_problems(configs: Sequence[Config]) -> list[str]:
    """One paragraph for each option of sampling that the engine lacks or prefloop refuses."""
    found: dict[str, None] = {}
    for config in configs:
        for section, options in (("sampling", config.sampling), ("eval", config.eval)):
            if options.extra:
                found |= dict.fromkeys(_extra_problems(f"{section}.extra", options.extra, chosen_engine(config.engine)))
    return [*found]


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
