"""Client for OpenAI-compatible endpoints, and the only file that opens sockets. Failures are classified by what can be
done; the key is read from the environment, sent to the endpoint, and never stored or shown."""

import asyncio
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from judges.context import Reply, Usage
from judges.types import JudgeError

TRANSIENT = frozenset({408, 409, 425, 429})
"""Status codes worth a retry, besides 5xx."""
OF_ONE_ITEM = ("context_length", "context length", "maximum context", "content_filter", "content_policy", "too long")
"""Phrases in a 400 that blame this request alone."""
REMEDIES = {
    401: "The key is wrong or missing: put the right one in the environment variable {key_env}",
    402: "The account has no credit: add some",
    403: "The key may not use this model: choose another model or key",
    404: "There is no such model or path: check judge.args.model ({model!r}) and judge.args.base_url",
}
OTHER_REMEDY = "The endpoint does not accept these settings: check judge.args (model, request, structured, max_tokens)"


class Transient(Exception):
    """The call failed but a retry may succeed; `retry_after` is the wait in seconds that the endpoint asks for."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class Unanswerable(Exception):
    """The endpoint will never answer this request (too long, filtered), but may answer others."""


class Unaccepted(JudgeError):
    """The endpoint rejects the form of the request (400, 422); a plainer form may be accepted."""


class Endpoint:
    """A model behind an OpenAI-compatible endpoint; use it inside one asyncio loop, then close its `client`."""

    def __init__(self, base_url: str, model: str, key_env: str | None) -> None:
        openai = import_openai()
        self.base_url, self.model, self.key_env = base_url, model, key_env
        self.key = read_key(key_env)
        self.errors = openai
        self.client = openai.AsyncOpenAI(base_url=base_url, api_key=self.key or "none", max_retries=0)

    async def complete(self, body: Mapping[str, Any], timeout: float) -> Reply:
        """One call within `timeout` seconds in total. Raises Transient, Unanswerable, Unaccepted, or JudgeError if
        every other call would fail too."""
        content = {"model": self.model, **body}
        try:
            async with asyncio.timeout(timeout):
                answer = await self.client.post("/chat/completions", cast_to=bytes, body=content)
        except (TimeoutError, self.errors.APITimeoutError):
            raise Transient(f"no complete answer within {timeout:.3g} s") from None
        except self.errors.APIStatusError as error:
            raise self._refusal(error.status_code, error.response.text, error.response.headers) from None
        except self.errors.APIConnectionError as error:
            raise Transient(f"no connection to {self.base_url} ({_cause(error)})") from None
        return read_completion(answer)

    def _refusal(self, status: int, body: str, headers: Mapping[str, str]) -> Exception:
        reason = " ".join((body.replace(self.key, "[key]") if self.key else body).split())[:300]
        text = f"HTTP {status}: {reason or 'no text'}"
        if status == 429 and "insufficient_quota" in reason:
            status = 402
        elif status in TRANSIENT or status >= 500:
            return Transient(text, _retry_after(headers))
        elif status in (400, 413, 422) and any(sign in reason.lower() for sign in OF_ONE_ITEM):
            return Unanswerable(text)
        remedy = REMEDIES.get(status, OTHER_REMEDY).format(key_env=self.key_env, model=self.model)
        kind = Unaccepted if status in (400, 422) else JudgeError
        return kind(
            f"The judge's endpoint {self.base_url} rejects every call with {text}. {remedy}. Paid verdicts are kept; "
            f"run the same command again."
        )


def read_completion(content: bytes) -> Reply:
    """Parse the body of a chat completion; Transient unless it has a choice with text."""
    try:
        found = json.loads(content)
        choice = found["choices"][0]
        message, reason, used = choice["message"], choice.get("finish_reason"), found.get("usage") or {}
        text = message.get("content") or message.get("refusal")
        tokens = [int(used.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        shown = " ".join(content[:120].decode("utf-8", "replace").split())
        raise Transient(f"not a chat completion ({type(error).__name__}): {shown or 'an empty answer'}") from None
    if not isinstance(text, str):
        raise Transient("a chat completion without a text")
    ended = "stop" if reason in (None, "stop", "eos", "end_turn") else str(reason)
    return Reply(text, ended, Usage(0, *tokens))


def import_openai() -> Any:
    """Import the openai package; JudgeError names the extra if it is missing."""
    try:
        import openai
    except ImportError as error:
        raise JudgeError(
            f"LLM judges with an endpoint need the package openai ({error}). Install it with the extra: "
            f"pip install 'prefloop[llm]'."
        ) from None
    return openai


def read_key(name: str | None) -> str | None:
    """Read the key from the environment variable `name`; JudgeError if it is not set."""
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise JudgeError(
            f"The environment variable {name} (judge.args.api_key_env) is not set, so the judge has no key for its "
            f"endpoint. Set it in the shell that runs prefloop, name another variable, or set judge.args.api_key_env: "
            f"null for an endpoint that needs none. Never put a key in the config."
        )
    return key


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from a Retry-After header (RFC 9110, section 10.2.3: seconds or a date)."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
