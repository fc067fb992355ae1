"""Sample stage inside its worker: generate responses to prompts and write them to one Parquet file. The shard is the
unit of reproducibility: one generate call over a fixed list of requests, whose seeds derive from names, not from
calls."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judges.context import Generate, Messages, Reply, Usage
from loop.config.engine_section import EngineConfig
from loop.config.sampling_section import PLAIN, DecodingOptions
from loop.engines.base import Completion, Engine, Request, make_engine, take_threads
from loop.engines.option_checks import check_tokens
from loop.prompts.chat_template import ChatFormat, render
from loop.prompts.row import PromptRow
from loop.seeds import seed_for
from loop.store.files import write_file
from loop.store.run_records import Json
from loop.store.tables import RESPONSES, to_bytes
from loop.workers.entry import Arguments, Report
from loop.workers.judge_service import JudgedShard, JudgeService, JudgeTask
from loop.workers.log_prob_service import Roles
from loop.workers.made_with import named_identity, refuse_mixing


@dataclass(frozen=True, slots=True)
class SampleTask:
    """One shard to sample. `temperatures` has one entry per response of a prompt; 0 is greedy."""

    name: str
    path: Path
    prompts: tuple[PromptRow, ...]
    temperatures: tuple[float, ...]
    top_p: float
    max_tokens: int
    seed_words: tuple[Any, ...]
    """Campaign seed, iteration and purpose; seeds derive from these, prompt id and index."""
    policy: Path
    policy_hash: str
    spans: tuple[tuple[int, int], ...] | None = None
    """By prompt, the half-open range of response indexes to sample; None: all."""
    reference: Path | None = None
    """The model that samples the second half of a prompt's responses; None: the policy samples all."""
    reference_hash: str = ""
    options: DecodingOptions = PLAIN

    @property
    def own(self) -> int:
        """Number of a prompt's responses, the first ones, that the policy samples."""
        return len(self.temperatures) // (1 if self.reference is None else 2)

    @property
    def responses(self) -> int:
        """Number of responses if no prompt is too long."""
        return sum(len(indices) for _, indices in self.wanted)

    @property
    def wanted(self) -> list[tuple[PromptRow, range]]:
        """The prompts with the indexes of the responses to sample."""
        spans = self.spans or ((0, len(self.temperatures)),) * len(self.prompts)
        return [(prompt, range(*span)) for prompt, span in zip(self.prompts, spans, strict=True)]

    @property
    def spec(self) -> Json:
        """Everything that determines the shard's content; stored in it to recognise a stale shard."""
        halves = {} if self.reference is None else {"reference_hash": self.reference_hash, "reference_from": self.own}
        return halves | {
            "prompts": [p.id for p in self.prompts],
            "temperatures": self.temperatures,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed_words": self.seed_words,
            "policy_hash": self.policy_hash,
            **self.options.given(),
            **({} if self.spans is None else {"spans": self.spans}),
        }


@dataclass(frozen=True, slots=True)
class SampledShard:
    """Counts and seconds of a sampled shard."""

    responses: int
    tokens: int
    too_long: int
    """Prompts that leave the engine no room for a response."""
    made_with: Json
    """The engine's kind, version, precision, batch, device and threads, by dotted key."""
    load: float
    generate: float


class EngineService:
    """Holds the engine for the whole campaign; loads another policy in place when a task names it.

    `before` is what the run's first samples were made with (None: there are none); with `exact`, samples made with
    something else are refused. `threads` are those of the run's first start."""

    def __init__(
        self,
        settings: EngineConfig,
        chat: ChatFormat,
        before: Json | None = None,
        exact: bool = True,
        threads: int | None = None,
    ) -> None:
        self.settings, self.chat = settings, chat
        self.before, self.exact, self.threads = before, exact, threads
        self.judges: dict[str, JudgeService] = {}
        self.engine: Engine | None = None
        self.policy_hash = ""
        self.asleep = False

    def sample(self, task: SampleTask, report: Report) -> SampledShard:
        """Sample one shard and write it."""
        started = time.perf_counter()
        engine = self._ready(task.policy, task.policy_hash, report)
        ready = time.perf_counter()
        made_with = named_identity(engine.identity)
        if self.exact and self.before is not None:
            refuse_mixing(self.before, made_with)
        check_tokens(task.options, engine.tokenizer)
        report(done=0)
        planned, too_long = self._plan(task, engine)
        generating = time.perf_counter()
        completions = self._completions(task, planned, report)
        generated = time.perf_counter()
        rows = [_row(task, p, i, r, c) for (p, i, r), c in zip(planned, completions, strict=True)]
        _check_stops(rows, task, engine.stop_ids.union(task.options.stop_token_ids))
        write_file(
            task.path, to_bytes(rows, RESPONSES, {"spec": task.spec | made_with, "too_long": too_long}), replace=False
        )
        return SampledShard(
            responses=len(rows),
            tokens=sum(len(c.token_ids) for c in completions),
            too_long=too_long,
            made_with=made_with,
            load=ready - started,
            generate=generated - generating,
        )

    def _completions(
        self, task: SampleTask, planned: Sequence[tuple[PromptRow, int, Request]], report: Report
    ) -> list[Completion]:
        """One completion per request. The reference samples last; the next task loads its policy again."""
        own = [request for _, index, request in planned if index < task.own]
        engine = self._ready(task.policy, task.policy_hash, report)
        made = iter(engine.generate(own, lambda done, _: report(done=done)))
        if task.reference is None:
            return list(made)
        others = [request for _, index, request in planned if index >= task.own]
        engine = self._ready(task.reference, task.reference_hash, report)
        theirs = iter(engine.generate(others, lambda done, _: report(done=len(own) + done)))
        return [next(made if index < task.own else theirs) for _, index, _ in planned]

    def sleep(self, report: Report) -> None:
        """Free the device's memory for the trainer until the next task."""
        if self.engine is not None and self.settings.idle != "keep":
            self.engine.sleep()
            self.asleep = True
        for judge in self.judges.values():
            judge.rest(report)

    def label(
        self,
        task: JudgeTask,
        policy: Path,
        policy_hash: str,
        judging: Arguments,
        report: Report,
        roles: Roles | None = None,
    ) -> JudgedShard:
        """Judge one shard here, with this engine's model answering the judge's questions. `judging`: arguments of
        `JudgeService`."""
        ask = self.answering(policy, policy_hash, report)
        return self._judge(judging).label(task, report, generate=ask, weights=policy_hash, roles=roles)

    def try_examples(self, correct_at: float, model: Path, model_hash: str, judging: Arguments, report: Report) -> int:
        """Test the judge, which asks this engine's model, on the user's labelled examples; their number."""
        ask = self.answering(model, model_hash, report)
        return self._judge(judging).try_examples(report, correct_at, ask, model_hash)

    def _judge(self, judging: Arguments) -> JudgeService:
        """The judge, built once in this process."""
        who = judging["settings"].model_dump_json()
        if who not in self.judges:
            self.judges[who] = JudgeService(**judging)
        return self.judges[who]

    def answering(self, model: Path, model_hash: str, report: Report) -> Generate:
        """Load the model; a function that asks it."""
        return EngineGenerate(self._ready(model, model_hash, report), self.settings, self.chat, report)

    def _ready(self, policy: Path, policy_hash: str, report: Report) -> Engine:
        """The engine, awake, with this policy."""
        if self.engine is None:
            report(note="starting the engine")
            take_threads(self.threads)
            self.engine = make_engine(policy, self.settings)
        elif self.asleep:
            self.engine.wake()
        self.asleep = False
        if self.policy_hash not in ("", policy_hash):
            self.engine.load_policy(policy)
        self.policy_hash = policy_hash
        return self.engine

    def _plan(self, task: SampleTask, engine: Engine) -> tuple[list[tuple[PromptRow, int, Request]], int]:
        """The shard's requests in their recorded order, and the number of prompts that are too long."""
        room = self.settings.max_model_len - task.max_tokens
        rendered = [(p, indices, render(engine.tokenizer, p, self.chat)) for p, indices in task.wanted]
        fitting = [(p, indices, ids) for p, indices, ids in rendered if len(ids) <= room]
        planned = [(p, i, self._request(task, p, i, ids)) for p, indices, ids in fitting for i in indices]
        return planned, len(rendered) - len(fitting)

    def _request(self, task: SampleTask, prompt: PromptRow, index: int, ids: Sequence[int]) -> Request:
        """The request for one response."""
        return Request(
            ids,
            seed_for(*task.seed_words, prompt.id, index),
            task.temperatures[index],
            task.top_p,
            task.max_tokens,
            options=task.options,
        )


@dataclass(frozen=True, slots=True)
class EngineGenerate:
    """Implements `judges.context.Generate` with the engine's model."""

    engine: Engine
    settings: EngineConfig
    chat: ChatFormat
    report: Report

    @property
    def structured(self) -> bool:
        """Whether replies can be held to a schema."""
        return self.engine.structured

    def __call__(
        self,
        conversations: Sequence[Messages],
        seeds: Sequence[int],
        *,
        temperature: float,
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply]:
        """One reply per conversation, empty if there is no room for one."""
        rows = [PromptRow("of the judge", messages, None, {}) for messages in conversations]
        rendered = [render(self.engine.tokenizer, row, self.chat) for row in rows]
        room = self.settings.max_model_len - max_tokens
        fitting = [i for i, ids in enumerate(rendered) if len(ids) <= room]
        requests = [Request(rendered[i], seeds[i], temperature, 1.0, max_tokens, schema) for i in fitting]
        completions = self.engine.generate(requests, lambda done, _: self.report(calls=done)) if requests else []
        replies = [Reply("", "the question is too long", Usage(0, len(ids), 0)) for ids in rendered]
        for i, made in zip(fitting, completions, strict=True):
            used = Usage(0, len(rendered[i]), len(made.token_ids))
            replies[i] = Reply(made.text, made.finish_reason, used)
        return replies


def response_id(seed_words: tuple[Any, ...], prompt_id: str, index: int) -> str:
    """Id of a response, unique in its campaign."""
    return "-".join(map(str, (*seed_words[1:], prompt_id, index)))


def _row(task: SampleTask, prompt: PromptRow, index: int, request: Request, completion: Completion) -> Json:
    return {
        "prompt_id": prompt.id,
        "response_id": response_id(task.seed_words, prompt.id, index),
        "index": index,
        "seed": request.seed,
        "temperature": request.temperature,
        "prompt_token_ids": request.prompt_ids,
        "token_ids": completion.token_ids,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "logprobs": completion.logprobs,
        "policy_hash": task.policy_hash if index < task.own else task.reference_hash,
    }


def _check_stops(rows: list[Json], task: SampleTask, stop_ids: frozenset[int]) -> None:
    """A response ends with a stop token if and only if it was not cut off, and every token has its log-prob."""
    for row in rows:
        tokens = len(row["token_ids"])
        assert 0 < tokens == len(row["logprobs"]), row["response_id"]
        stopped = row["token_ids"][-1] in stop_ids
        assert stopped == (row["finish_reason"] == "stop"), row["response_id"]
        assert stopped or tokens == task.max_tokens, row["response_id"]
