"""Room judges, asking an endpoint many questions: requests come in, replies go to the store as they arrive.

As many requests as `concurrency` are under way at any time, paced if the endpoint allows only so many per minute.
Transient failures are tried again after an exponentially growing wait with jitter, or after what the endpoint asks for;
whoever is told to wait makes all the others wait. Each request has a deadline over all its tries. What fails for good
is an error of that request alone; what would fail for every request stops, and so does an endpoint that has gone.
"""

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from judges.api import Endpoint, Transient, Unaccepted, Unanswerable
from judges.budget import Budget
from judges.contract import JudgeError
from judges.handed import Handed, Reply, Usage

LONGEST_WAIT = 60.0
"""Seconds; waits do not grow beyond this."""


class Ask(NamedTuple):
    """A request: the key of its reply in the store, and its body in every form, the preferred one first."""

    key: str
    bodies: tuple[dict[str, Any], ...]


class Failed(NamedTuple):
    """A request that got no reply, and why."""

    why: str


class Answered(NamedTuple):
    """A reply, and in which of the forms it was asked for."""

    reply: Reply
    form: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How an endpoint is treated; seconds."""

    concurrency: int
    requests_per_minute: float | None
    timeout: float
    retries: int
    retry_wait: float
    deadline: float
    budget: Budget


@dataclass(slots=True)
class Asker:
    """One judge's questions to one endpoint, for as long as an asyncio loop runs."""

    endpoint: Endpoint
    limits: Limits
    handed: Handed
    judge: str
    """What messages call the judge."""
    who: str
    """The judge's identity, under which its spending is kept."""
    form: int = 0
    """The form that the endpoint is known to accept, or still believed to."""
    _stop: JudgeError | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _failures_in_a_row: int = 0
    _next_turn: float = 0.0
    _answers: dict[str, Answered | Failed] = field(default_factory=dict)

    async def run(self, asks: Sequence[Ask]) -> dict[str, Answered | Failed]:
        """Every request's outcome by its key. Raises JudgeError when going on makes no sense; replies are stored."""
        waiting = iter({ask.key: ask for ask in asks}.values())
        try:
            await asyncio.gather(*(self._work(waiting) for _ in range(self.limits.concurrency)))
        finally:
            await self.endpoint.close()
        if self._stop is not None:
            raise self._stop
        return self._answers

    async def _work(self, waiting: Iterator[Ask]) -> None:
        """Take requests until none is left, or until some worker has found a reason to stop."""
        for ask in waiting:
            if self._stop is not None:
                return
            try:
                self._answers[ask.key] = await self._settle(ask)
            except JudgeError as error:
                self._stop = self._stop or error
                self._stopping.set()

    async def _settle(self, ask: Ask) -> Answered | Failed:
        """One request with all its tries."""
        give_up = time.monotonic() + self.limits.deadline
        tries, form = 1, self.form
        while True:
            if not await self._turn(give_up):
                return self._gone(f"its turn would come after the deadline of {self.limits.deadline:g} s")
            try:
                return self._keep(ask, Answered(await self._call(ask.bodies[form], give_up), form))
            except Unanswerable as error:
                return self._failed(str(error))
            except Unaccepted:
                if form + 1 >= len(ask.bodies):
                    raise
                form = self.form = max(self.form, form + 1)
            except Transient as error:
                wait = self._wait(tries, error.retry_after)
                if tries > self.limits.retries or time.monotonic() + wait >= give_up:
                    return self._gone(f"{error} (tries: {tries})")
                tries += 1
                await self._sleep(wait)

    async def _call(self, body: dict[str, Any], give_up: float) -> Reply:
        """One try. It is charged before it is made, so that a kill cannot hide it."""
        if self._stop is not None:
            raise self._stop
        self.limits.budget.check(self.handed.store.spent(self.who), self.judge)
        self.handed.store.charge(self.who, Usage(calls=1))
        return await self.endpoint.complete(body, max(0.001, min(self.limits.timeout, give_up - time.monotonic())))

    def _keep(self, ask: Ask, answered: Answered) -> Answered:
        reply = answered.reply
        if self.limits.budget.counts_tokens and not reply.usage.tokens:
            raise JudgeError(
                f"Judge {self.judge}: {self.endpoint.base_url} does not say how many tokens its replies take, so "
                f"max_tokens and max_cost cannot be kept. Limit judge.args.budget.max_calls instead."
            )
        self._failures_in_a_row = 0
        self.handed.store.put(ask.key, stored(answered), self.who, reply.usage)
        self.handed.told(reply.usage + Usage(calls=1), False)
        return answered

    def _gone(self, why: str) -> Failed:
        """A request that ran out of tries; JudgeError once so many have in a row that the endpoint must be down."""
        self._failures_in_a_row += 1
        patience = max(8, 2 * self.limits.concurrency)
        if self._failures_in_a_row >= patience:
            raise JudgeError(
                f"Judge {self.judge}: {self.endpoint.base_url} did not answer {patience} requests in a row; the last: "
                f"{why}. Every verdict that was paid for is kept: look at judge.args.base_url and at the endpoint, and "
                f"run the same command."
            )
        return self._failed(why)

    def _failed(self, why: str) -> Failed:
        self.handed.told(Usage(), False)
        return Failed(why)

    def _wait(self, tries: int, asked_for: float | None) -> float:
        """Seconds before the next try. What the endpoint asks for holds for everyone."""
        if asked_for is not None:
            self._next_turn = max(self._next_turn, time.monotonic() + asked_for)
            return asked_for
        return float(min(LONGEST_WAIT, self.limits.retry_wait * 2 ** (tries - 1)) * random.uniform(0.5, 1.5))

    async def _turn(self, give_up: float) -> bool:
        """Wait until the endpoint may be asked again; False if that is too late."""
        now = time.monotonic()
        mine = max(now, self._next_turn)
        if mine >= give_up:
            return False
        if self.limits.requests_per_minute:
            self._next_turn = mine + 60.0 / self.limits.requests_per_minute
        await self._sleep(mine - now)
        return True

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not once there is a reason to stop."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


def stored(answered: Answered) -> str:
    """A reply as the store keeps it."""
    reply = answered.reply
    content = {"text": reply.text, "finish_reason": reply.finish_reason, "form": answered.form}
    tokens = {"prompt_tokens": reply.usage.prompt_tokens, "completion_tokens": reply.usage.completion_tokens}
    return json.dumps(content | tokens, sort_keys=True)


def from_store(text: str) -> Answered:
    """The reply that `stored` wrote."""
    found = json.loads(text)
    usage = Usage(1, found["prompt_tokens"], found["completion_tokens"])
    return Answered(Reply(found["text"], found["finish_reason"], usage), found["form"])
