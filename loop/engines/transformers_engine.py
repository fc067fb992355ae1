"""The transformers engine: runs wherever torch runs, and repeats exactly. Sampling is Gumbel-max with noise from each
response's own seed, so a response depends on its request, never on call order."""

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor, TopPLogitsWarper

from loop.config.settings import EngineConfig
from loop.engines.base import Completion, Progress, Request, thought_tags, with_tags
from trainer.model_folder import load_tokenizer, load_whole, stop_ids


class SeededSampler(LogitsProcessor):
    """Chooses each row's next token itself and leaves `generate` only that one (B rows, V tokens); collects the chosen
    tokens' log-probs under the model, before temperature and top-p."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.generators = [torch.Generator().manual_seed(r.seed) for r in requests]
        self.logprobs: list[list[float]] = [[] for _ in requests]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logprobs_BV = torch.log_softmax(scores.float(), dim=-1)
        chosen_B = torch.stack([self._choose(row, logprobs_BV[row]) for row in range(len(self.requests))])
        for row, token in enumerate(chosen_B.tolist()):
            self.logprobs[row].append(float(logprobs_BV[row, token]))
        only_BV = torch.full_like(scores, float("-inf"))
        return only_BV.scatter(1, chosen_B[:, None], 0.0)

    def _choose(self, row: int, logprobs_V: torch.Tensor) -> torch.Tensor:
        request = self.requests[row]
        if request.temperature == 0:
            return logprobs_V.argmax()
        scores_V = logprobs_V / request.temperature
        if request.top_p < 1:
            scores_V = TopPLogitsWarper(request.top_p)(None, scores_V[None])[0]
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
        sampler = SeededSampler(requests)
        output_BT = self.model.generate(
            ids_BT.to(self.device),
            attention_mask=mask_BT.to(self.device),
            max_new_tokens=max(r.max_tokens for r in requests),
            do_sample=False,
            logits_processor=[sampler],
            eos_token_id=sorted(self.stop_ids) or None,
            pad_token_id=pad,
        )
        rows = output_BT[:, longest:].tolist()
        return [self._completion(*row) for row in zip(requests, rows, sampler.logprobs, strict=True)]

    def _completion(self, request: Request, tokens: list[int], logprobs: list[float]) -> Completion:
        tokens = tokens[: request.max_tokens]
        end = next((i for i, token in enumerate(tokens) if token in self.stop_ids), None)
        kept = tokens if end is None else tokens[: end + 1]
        text = str(self.tokenizer.decode(kept, skip_special_tokens=True))
        text = with_tags(text, kept, self.tokenizer, self.tags)
        return Completion(kept, text, "length" if end is None else "stop", None, logprobs[: len(kept)])

    def sleep(self) -> None:
        """Weights to host memory."""
        if self.device == "cuda":
            self.model.to("cpu")
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """Weights back to the device."""
        self.model.to(self.device)
