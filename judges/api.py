"""Room judges, the one file that opens sockets: the body of a chat completion goes to an OpenAI-compatible endpoint,
its reply comes back, or an exception of one of four classes that says what may be done about it.

The key is read from the environment, sent to the endpoint and kept nowhere; messages never show it.
"""

import asyncio
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from judges.contract import JudgeError
from judges.handed import Reply, Usage

EXTRA = "Install it with the extra: pip install 'prefloop[llm]'."
TRANSIENT = frozenset({408, 409, 425, 429})
"""Status codes that another try may mend, besides 5xx."""
OF_ONE_ITEM = ("context_length", "context length", "maximum context", "content_filter", "content_policy", "too long")
"""What a 400 says if only this request is at fault."""
REMEDIES = {
    401: "The key is wrong or missing: put the right one into the environment variable {key_env}",
    402: "The account has no credit: add some",
    403: "The key may not use this model: choose another model or key",
    404: "There is no such model or path: look at judge.args.model ({model!r}) and judge.args.base_url",
}
OTHER_REMEDY = (
    "The endpoint does not accept these settings: look at judge.args (model, request, structured, max_tokens)"
)


class Transient(Exception):
    """The call failed and another try may succeed; `retry_after` is how many seconds the endpoint asks to wait."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class Unanswerable(Exception):
    """The endpoint will never answer this request, but may well answer others (it is too long, or filtered)."""


class Unaccepted(JudgeError):
    """The endpoint does not accept the form of the request (400, 422): perhaps it accepts a plainer one."""


class Endpoint:
    """A model behind an OpenAI-compatible endpoint; use it inside one asyncio loop, then close it."""

    def __init__(self, base_url: str, model: str, key_env: str | None) -> None:
        openai = import_openai()
        self.base_url, self.model, self.key_env = base_url, model, key_env
        self.key = read_key(key_env)
        self.errors = openai
        self.client = openai.AsyncOpenAI(base_url=base_url, api_key=self.key or "none", max_retries=0)

    async def complete(self, body: Mapping[str, Any], timeout: float) -> Reply:
        """One call, at most `timeout` seconds in all, however slowly the answer drips.

        Raises Transient, Unanswerable, Unaccepted, or JudgeError if every other call would fail like this one.
        """
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
        """What an answer with an error status means."""
        said = " ".join((body.replace(self.key, "[key]") if self.key else body).split())[:300]
        text = f"HTTP {status}: {said or 'no text'}"
        if status == 429 and "insufficient_quota" in said:
            status = 402
        elif status in TRANSIENT or status >= 500:
            return Transient(text, _retry_after(headers))
        elif status in (400, 413, 422) and any(sign in said.lower() for sign in OF_ONE_ITEM):
            return Unanswerable(text)
        remedy = REMEDIES.get(status, OTHER_REMEDY).format(key_env=self.key_env, model=self.model)
        kind = Unaccepted if status in (400, 422) else JudgeError
        return kind(
            f"The judge's endpoint {self.base_url} refuses every call with {text}. {remedy}. Verdicts that were paid "
            f"for are kept; run the same command again."
        )

    async def close(self) -> None:
        """Give the connections back."""
        await self.client.close()


def read_completion(content: bytes) -> Reply:
    """The reply in the body of a chat completion; Transient unless it holds at least one choice with a text."""
    try:
        found = json.loads(content)
        choice = found["choices"][0]
        message, reason, used = choice["message"], choice.get("finish_reason"), found.get("usage") or {}
        text = message.get("content") or message.get("refusal")
        tokens = [int(used.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        shown = " ".join(content[:120].decode("utf-8", "replace").split())
        raise Transient(f"no chat completion ({type(error).__name__}): {shown or 'an empty answer'}") from None
    if not isinstance(text, str):
        raise Transient("a chat completion without a text")
    ended = "stop" if reason in (None, "stop", "eos", "end_turn") else str(reason)
    return Reply(text, ended, Usage(0, *tokens))


def import_openai() -> Any:
    """The openai package; JudgeError names the extra if it is missing."""
    try:
        import openai
    except ImportError as error:
        raise JudgeError(f"LLM judges ask their endpoint through the package openai ({error}). {EXTRA}") from None
    return openai


def read_key(name: str | None) -> str | None:
    """The key in the environment variable of that name; JudgeError if the variable is not set."""
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise JudgeError(
            f"The environment variable {name} (judge.args.api_key_env) is not set, so the judge has no key for its "
            f"endpoint. Set it in the shell that runs prefloop, name another variable, or set judge.args.api_key_env: "
            f"null for an endpoint that asks for none. A key never belongs into the config."
        )
    return key


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from a Retry-After header (RFC 9110, section 10.2.3: seconds or a date)."""
    said = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
