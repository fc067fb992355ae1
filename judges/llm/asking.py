"""Sends many requests to an endpoint at once, stores each reply as it arrives, and retries transient failures. A
permanent failure is an error of that request alone, unless it would hit every request: then the run stops."""

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from judges.context import Reply, Usage
from judges.llm.api import Endpoint, Transient, Unaccepted, Unanswerable
from judges.llm.settings import LLMSettings
from judges.types import JudgeError
from judges.versions import identity_of

LONGEST_WAIT = 60.0
"""Seconds; waits do not grow beyond this, and a longer one that the endpoint asks for holds for that request alone."""
DOWN = "check judge.args.base_url and the endpoint"
LIMITED = "its limit is reached; wait, lower judge.args.concurrency or set judge.args.requests_per_minute"


class Ask(NamedTuple):
    """A request: the key of its reply in the store, and its body in every form, the preferred one first."""

    key: str
    bodies: tuple[dict[str, Any], ...]


class Failed(NamedTuple):
    """A request that got no reply, and why."""

    why: str


class Answered(NamedTuple):
    """A reply, and the form in which it was requested."""

    reply: Reply
    form: int


class Asker:
    """Sends one judge's requests to its endpoint within one asyncio loop; `form` is the first form of a request that
    the endpoint has not rejected."""

    def __init__(self, judge: LLMSettings, form: int) -> None:
        self.endpoint = Endpoint(str(judge.base_url), str(judge.model), judge.api_key_env)
        self.settings, self.form, self.context = judge, form, judge.context
        self.name, self.who = f"{type(judge).__name__} ({judge.model})", identity_of(judge)
        self._stop: JudgeError | None = None
        self._stopping = asyncio.Event()
        self._failures_in_a_row, self._next_turn = 0, 0.0
        self._answers: dict[str, Answered | Failed] = {}

    async def run(self, asks: Sequence[Ask]) -> dict[str, Answered | Failed]:
        """Return every request's outcome by key. Raises JudgeError if continuing is pointless; replies are kept."""
        waiting = iter({ask.key: ask for ask in asks}.values())
        try:
            await asyncio.gather(*(self._work(waiting) for _ in range(self.settings.concurrency)))
        finally:
            await self.endpoint.client.close()
        if self._stop is not None:
            raise self._stop
        return self._answers

    async def _work(self, waiting: Iterator[Ask]) -> None:
        """Process requests until none is left or some worker has a reason to stop."""
        for ask in waiting:
            if self._stop is not None:
                return
            try:
                self._answers[ask.key] = await self._settle(ask)
            except JudgeError as error:
                self._stop = self._stop or error
                self._stopping.set()

    async def _settle(self, ask: Ask) -> Answered | Failed:
        """Make one request, retries included."""
        give_up = time.monotonic() + self.settings.deadline
        tries, form = 1, self.form
        while True:
            if not await self._turn(give_up):
                why = f"its turn would come after the deadline of {self.settings.deadline:g} s"
                return self._out_of_tries(why, LIMITED)
            try:
                return self._keep(ask, Answered(await self._call(ask.bodies[form], give_up), form))
            except Unanswerable as error:
                return self._failed(str(error))
            except Unaccepted:
                if form + 1 >= len(ask.bodies):
                    raise
                form = self.form = max(self.form, form + 1)
            except Transient as error:
                wait = self._wait(tries, error.retry_after, give_up)
                if tries > self.settings.retries or time.monotonic() + wait >= give_up:
                    return self._out_of_tries(f"{error} (tries: {tries})", LIMITED if error.limited else DOWN)
                tries += 1
                await self._sleep(wait)

    async def _call(self, body: dict[str, Any], give_up: float) -> Reply:
        """Make one try. It is charged beforehand, so a kill cannot hide it."""
        if self._stop is not None:
            raise self._stop
        self.settings.budget.check(self.context.store.spent(self.who), self.name)
        self.context.store.charge(self.who, Usage(calls=1))
        return await self.endpoint.complete(body, max(0.001, min(self.settings.timeout, give_up - time.monotonic())))

    def _keep(self, ask: Ask, answered: Answered) -> Answered:
        reply = answered.reply
        self._failures_in_a_row = 0
        self.context.store.put(ask.key, stored(answered), self.who, reply.usage)
        self.context.on_usage(reply.usage + Usage(calls=1), False)
        if self.settings.budget.counts_tokens and not reply.usage.tokens:
            raise JudgeError(
                f"Judge {self.name}: {self.endpoint.where} does not report token counts, or impossible ones, so "
                f"max_tokens and max_cost cannot be enforced. Limit judge.args.budget.max_calls instead."
            )
        return answered

    def _out_of_tries(self, why: str, advice: str) -> Failed:
        """Fail a request that ran out of tries; JudgeError after enough in a row that all others would fail, too."""
        self._failures_in_a_row += 1
        patience = max(8, 2 * self.settings.concurrency)
        if self._failures_in_a_row >= patience:
            raise JudgeError(
                f"Judge {self.name}: {self.endpoint.where} did not answer {patience} requests in a row; the last: "
                f"{why}. Paid verdicts are kept: {advice}, then run the same command again."
            )
        return self._failed(why)

    def _failed(self, why: str) -> Failed:
        self.context.on_usage(Usage(), False)
        return Failed(why)

    def _wait(self, tries: int, asked_for: float | None, give_up: float) -> float:
        """Seconds before the next try. A wait that the endpoint asks for holds for all requests, unless it is longer
        than they would wait."""
        if asked_for is not None:
            until = time.monotonic() + asked_for
            if asked_for <= LONGEST_WAIT and until < give_up:
                self._next_turn = max(self._next_turn, until)
            return asked_for
        return float(min(LONGEST_WAIT, self.settings.retry_wait * 2 ** (tries - 1)) * random.uniform(0.5, 1.5))

    async def _turn(self, give_up: float) -> bool:
        """Wait until the next request may be sent; False if that is past the deadline."""
        now = time.monotonic()
        mine = max(now, self._next_turn)
        if mine >= give_up:
            return False
        if self.settings.requests_per_minute:
            self._next_turn = mine + 60.0 / self.settings.requests_per_minute
        await self._sleep(mine - now)
        return True

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but wake up at once if the run stops."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


def stored(answered: Answered) -> str:
    """Serialise a reply for the store."""
    reply = answered.reply
    content = {"text": reply.text, "finish_reason": reply.finish_reason, "form": answered.form}
    tokens = {"prompt_tokens": reply.usage.prompt_tokens, "completion_tokens": reply.usage.completion_tokens}
    return json.dumps(content | tokens, sort_keys=True)


def from_store(text: str) -> Answered:
    """Read back what `stored` wrote."""
    found = json.loads(text)
    usage = Usage(1, found["prompt_tokens"], found["completion_tokens"])
    return Answered(Reply(found["text"], found["finish_reason"], usage), found["form"])
