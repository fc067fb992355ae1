"""The transformers engine: runs wherever torch runs, and repeats exactly. Sampling is Gumbel-max with noise from each
response's own seed, so a response depends on its request, never on call order."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from loop.config.engine_section import EngineConfig
from loop.engines.base import Completion, Progress, Request, thought_tags, with_tags
from trainer.model_folder import load_tokenizer, load_whole, stop_ids


class Restriction:
    """Changes the logits (V tokens) of a response's next token as its request's options say, in vLLM's order."""

    def __init__(self, request: Request, stop_ids: frozenset[int], tokenizer: Any) -> None:
        self.options = options = request.options
        self.prompt = list(request.prompt_ids)
        self.ends = sorted(stop_ids.union(options.stop_token_ids))
        self.bad = [ids for word in options.bad_words for ids in spellings(word, tokenizer)]

    def __call__(self, logits_V: torch.Tensor, made: list[int]) -> torch.Tensor:
        options, logits_V = self.options, logits_V.clone()
        for *before, last in self.bad:
            if made[len(made) - len(before) :] == before:
                logits_V[last] = float("-inf")
        if len(made) < options.min_tokens:
            logits_V[self.ends] = float("-inf")
        for token, bias in options.logit_bias.items():
            logits_V[token] += bias
        if options.repetition_penalty != 1:
            seen_1T = torch.tensor([self.prompt + made], device=logits_V.device)
            logits_V = RepetitionPenaltyLogitsProcessor(options.repetition_penalty)(seen_1T, logits_V[None])[0]
        for token, times in Counter(made).items():
            logits_V[token] -= options.frequency_penalty * times + options.presence_penalty
        return logits_V


def spellings(word: str, tokenizer: Any) -> list[list[int]]:
    """The tokens of a bad word at the start of a response and, if that is as long, after a blank; as vLLM has them."""
    plain, blank = (tokenizer.encode(start + word.lstrip(), add_special_tokens=False) for start in ("", " "))
    return [plain, blank] if blank[:1] != plain[:1] and len(blank) == len(plain) else [plain]


def cuts(request: Request) -> list[LogitsProcessor]:
    """What the request cuts from the distribution, in vLLM's order."""
    options = request.options
    return [
        *([MinPLogitsWarper(options.min_p)] if options.min_p else []),
        *([TopKLogitsWarper(options.top_k)] if options.top_k else []),
        *([TopPLogitsWarper(request.top_p)] if request.top_p < 1 else []),
    ]


class StopTokens(StoppingCriteria):
    """Ends a row (B rows, T tokens) at the stop tokens of its own request."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.stops = [frozenset(request.options.stop_token_ids) for request in requests]

    def __call__(self, input_ids_BT: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        last = zip(input_ids_BT[:, -1].tolist(), self.stops, strict=True)
        return torch.tensor([token in stops for token, stops in last], device=input_ids_BT.device)


class SeededSampler(LogitsProcessor):
    """Chooses each row's next token itself and leaves `generate` only that one (B rows, V tokens); collects the chosen
    tokens' log-probs under the model, before temperature, cuts and options."""

    def __init__(self, requests: Sequence[Request], stop_ids: frozenset[int], tokenizer: Any) -> None:
        self.requests = requests
        self.restrictions = [Restriction(r, stop_ids, tokenizer) if r.options.given() else None for r in requests]
        self.cuts = [cuts(request) for request in requests]
        self.made: list[list[int]] = [[] for _ in requests]
        self.generators = [torch.Generator().manual_seed(r.seed) for r in requests]
        self.logprobs: list[list[float]] = [[] for _ in requests]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logprobs_BV = torch.log_softmax(scores.float(), dim=-1)
        chosen_B = torch.stack([self._choose(row, scores[row], logprobs_BV[row]) for row in range(len(self.requests))])
        for row, token in enumerate(chosen_B.tolist()):
            self.made[row].append(token)
            self.logprobs[row].append(float(logprobs_BV[row, token]))
        only_BV = torch.full_like(scores, float("-inf"))
        return only_BV.scatter(1, chosen_B[:, None], 0.0)

    def _choose(self, row: int, logits_V: torch.Tensor, logprobs_V: torch.Tensor) -> torch.Tensor:
        request, restrict = self.requests[row], self.restrictions[row]
        free_V = logprobs_V if restrict is None else restrict(logits_V.float(), self.made[row])
        if request.temperature == 0:
            return free_V.argmax()
        scores_V = free_V / request.temperature
        for cut in self.cuts[row]:
            scores_V = cut(None, scores_V[None])[0]
        uniform_V = torch.rand(scores_V.shape, generator=self.generators[row]).clamp_min(1e-20).to(scores_V.device)
        return (scores_V - torch.log(-torch.log(uniform_V))).argmax()


class TransformersEngine:
    """`transformers.generate` with a sampler per response."""

    structured = False

    def __init__(self, folder: Path, settings: EngineConfig) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.float32 if settings.dtype == "auto" else getattr(torch, settings.dtype)
        self.batch = settings.batch
        self.tokenizer = load_tokenizer(folder)
        self.tags = thought_tags(self.tokenizer)
        self.load_policy(folder)
        self.identity = {
            "engine": "transformers",
            "version": transformers.__version__,
            "torch": torch.__version__,
            "dtype": str(self.dtype).removeprefix("torch."),
            "batch": settings.batch,
            "device": self.device,
            "threads": torch.get_num_threads(),
        }

    def load_policy(self, folder: Path) -> None:
        """Read the weights of `folder`, and of its generation settings only the end tokens."""
        self.model = load_whole(AutoModelForCausalLM, folder, dtype=self.dtype).eval()
        self.model.generation_config = GenerationConfig()
        self.model.to(self.device)
        self.stop_ids = stop_ids(folder, self.tokenizer)

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """Batches of similar lengths, in a fixed order; results in the order of the requests."""
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt_ids), i))
        done: dict[int, Completion] = {}
        for start in range(0, len(order), self.batch):
            batch = order[start : start + self.batch]
            done.update(zip(batch, self._batch([requests[i] for i in batch]), strict=True))
            progress(len(done), sum(len(c.token_ids) for c in done.values()))
        return [done[i] for i in range(len(requests))]

    @torch.inference_mode()
    def _batch(self, requests: Sequence[Request]) -> list[Completion]:
        longest = max(len(r.prompt_ids) for r in requests)
        pad = min(self.stop_ids, default=0)
        ids_BT = torch.tensor([[pad] * (longest - len(r.prompt_ids)) + list(r.prompt_ids) for r in requests])
        mask_BT = torch.tensor([[0] * (longest - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in requests])
        sampler = SeededSampler(requests, self.stop_ids, self.tokenizer)
        output_BT = self.model.generate(
            ids_BT.to(self.device),
            attention_mask=mask_BT.to(self.device),
            max_new_tokens=max(r.max_tokens for r in requests),
            do_sample=False,
            logits_processor=[sampler],
            stopping_criteria=[StopTokens(requests)],
            eos_token_id=sorted(self.stop_ids) or None,
            pad_token_id=pad,
        )
        rows = output_BT[:, longest:].tolist()
        return [self._completion(*row) for row in zip(requests, rows, sampler.logprobs, strict=True)]

    def _completion(self, request: Request, tokens: list[int], logprobs: list[float]) -> Completion:
        tokens = tokens[: request.max_tokens]
        stops = self.stop_ids.union(request.options.stop_token_ids)
        end = next((i for i, token in enumerate(tokens) if token in stops), None)
        kept = tokens if end is None else tokens[: end + 1]
        asked = end is not None and kept[-1] not in self.stop_ids  # such a token is no part of the text
        shown = kept[:-1] if asked else kept
        text = str(self.tokenizer.decode(shown, skip_special_tokens=True))
        text = with_tags(text, shown, self.tokenizer, self.tags)
        reason = str(kept[-1]) if asked else None
        return Completion(kept, text, "length" if end is None else "stop", reason, logprobs[: len(kept)])

    def sleep(self) -> None:
        """Weights to host memory."""
        if self.device == "cuda":
            self.model.to("cpu")
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """Weights back to the device."""
        self.model.to(self.device)
