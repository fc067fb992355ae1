"""Log-probs for judges: score responses under one or more models with the trainer's scorer.

Where a model's tokenizer has the policy's vocabulary, the sampled token ids themselves are scored, read from the shard;
text is retokenised only for models with another one, and where nothing was sampled (`prefloop judge test`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judges.context import Measured, ModelRef, Precision
from judges.types import Group, JudgeError
from judges.types import Response as Sampled
from loop.prompts.chat_template import ChatFormat, render
from loop.prompts.row import PromptRow
from loop.store import tables
from loop.store.model_folder import find_model
from loop.workers.entry import Report
from trainer.data import PromptGroup, Response
from trainer.model_folder import load_tokenizer

if TYPE_CHECKING:
    from trainer.score import ResponseScorer

Ids = dict[str, tuple[list[int], list[int]]]
"""Sampled prompt and response token ids, by response id."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The models of a campaign that a judge may name by their role."""

    policy: ModelRef
    initial: ModelRef


@dataclass(slots=True)
class LogProbScorer:
    """Implements `judges.context.LogProbs`. Models stay loaded as long as the campaign uses them."""

    report: Report = lambda **_: None
    roles: Roles | None = None
    shard: Path | None = None
    _sampled: Ids | None = None
    _scorers: "dict[tuple[str, str], ResponseScorer]" = field(default_factory=dict)
    _found: dict[str, ModelRef] = field(default_factory=dict)

    def begin(self, shard: Path, roles: Roles | None, report: Report) -> None:
        """Switch to this shard; a previous policy is dropped."""
        if self.roles is not None and roles is not None and self.roles != roles:
            kept = {roles.policy.digest, roles.initial.digest, *(found.digest for found in self._found.values())}
            self._scorers = {key: scorer for key, scorer in self._scorers.items() if key[0] in kept}
        self.shard, self.roles, self.report, self._sampled = shard, roles, report, None

    def rest(self) -> None:
        """Free a GPU's memory; the next shard loads the models again."""
        import torch

        if torch.cuda.is_available():
            self._scorers.clear()
            torch.cuda.empty_cache()

    def weights(self, model: str) -> str:
        """Hash of the model."""
        return self._find(model).digest

    def measure(self, groups: Sequence[Group], model: str, *, precision: Precision) -> list[list[Measured | str]]:
        """Each response's log-prob, or why it has none."""
        found = self._find(model)
        scorer = self._scorer(found, precision)
        pairs = [self._encoded(group, found) for group in groups]
        whys = [[unfit(prompt, ids, scorer) for prompt, ids in row] for row in pairs]
        kept = [as_group(number, row, why) for number, (row, why) in enumerate(zip(pairs, whys, strict=True))]
        sums = scorer.score(kept, lambda done: self.report(scored=done))
        results = [iter(zip(g.responses, row, strict=True)) for g, row in zip(kept, sums, strict=True)]
        return [[why or measured(*next(row)) for why in each] for each, row in zip(whys, results, strict=True)]

    def _find(self, model: str) -> ModelRef:
        if model not in ("policy", "initial"):
            if model not in self._found:
                self._found[model] = find_model(model)
            return self._found[model]
        if self.roles is None:
            raise JudgeError(
                f"The judge measures with the {model} model, which exists only in a campaign. Name a folder instead, "
                f"e.g. --arg model=path/to/model."
            )
        return self.roles.policy if model == "policy" else self.roles.initial

    def _scorer(self, found: ModelRef, precision: Precision) -> "ResponseScorer":
        from trainer.score import ResponseScorer

        key = (found.digest, precision)
        if key not in self._scorers:
            self.report(note=f"loading {found.folder}")
            self._scorers[key] = ResponseScorer(found.folder, precision=precision)
        return self._scorers[key]

    def _encoded(self, group: Group, found: ModelRef) -> list[tuple[list[int], list[int]]]:
        """Prompt and response ids for this model."""
        policy = None if self.roles is None else self.roles.policy.folder
        if policy is None or self.shard is None or vocabulary(found.folder) != vocabulary(policy):
            return [tokenised(group, response, found.folder) for response in group.responses]
        if self._sampled is None:
            self._sampled = sampled_ids(self.shard)
        return [self._sampled[response.id] for response in group.responses]


def unfit(prompt: list[int], ids: list[int], scorer: "ResponseScorer") -> str:
    """Why the model cannot score the response; empty if it can."""
    if not prompt or not ids:
        return "the response has no tokens" if prompt else "the prompt has no tokens"
    if scorer.context is not None and len(prompt) + len(ids) > scorer.context:
        return f"{len(prompt)} + {len(ids)} tokens are more than the {scorer.context} that the model can read"
    if max(*prompt, *ids) >= scorer.vocabulary:
        return f"the token id {max(*prompt, *ids)} is not in the model's vocabulary of {scorer.vocabulary}"
    return ""


def as_group(number: int, row: list[tuple[list[int], list[int]]], whys: list[str]) -> PromptGroup:
    """The responses that can be scored, for the trainer."""
    kept = [(i, ids) for i, (_, ids) in enumerate(row) if not whys[i]]
    return PromptGroup(str(number), row[0][0] if row else [], tuple(Response(str(i), ids) for i, ids in kept))


def measured(response: Response, logp: float) -> Measured | str:
    """The sum with its number of tokens, or why it is not finite."""
    if not math.isfinite(logp):
        return f"the model gives the log-prob {logp}: its weights are broken, or overflow in this precision"
    return Measured(logp, len(response.token_ids))


def sampled_ids(shard: Path) -> Ids:
    """The token ids of a shard."""
    table = tables.read(shard, ["response_id", "prompt_token_ids", "token_ids"])
    names, prompts, ids = (table.column(name).to_pylist() for name in table.column_names)
    return {name: (prompt, found) for name, prompt, found in zip(names, prompts, ids, strict=True)}


@lru_cache(maxsize=8)
def tokenizer_of(folder: Path) -> Any:
    """The folder's tokenizer."""
    return load_tokenizer(folder)


@lru_cache(maxsize=8)
def vocabulary(folder: Path) -> frozenset[tuple[str, int]]:
    """Tokens with their ids; models with equal vocabularies can read each other's ids."""
    return frozenset(tokenizer_of(folder).get_vocab().items())


def tokenised(group: Group, response: Sampled, folder: Path) -> tuple[list[int], list[int]]:
    """The prompt by the folder's own chat template; the response's text, closed by the end token if it was closed."""
    tokenizer = tokenizer_of(folder)
    prompt = render(tokenizer, PromptRow(group.prompt.id, list(group.prompt.messages), None, {}), ChatFormat())
    ids = [int(i) for i in tokenizer(response.text, add_special_tokens=False, verbose=False)["input_ids"]]
    closed = response.finish_reason == "stop" and tokenizer.eos_token_id is not None
    return prompt, [*ids, tokenizer.eos_token_id] if closed else ids
