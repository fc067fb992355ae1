"""Client for OpenAI-compatible endpoints, and the only file that opens sockets. Failures are classified by what can be
done; the key is read from the environment, sent to the endpoint, and never stored or shown."""

import asyncio
import json
import os
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

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
    407: "The proxy wants a user name and a password: put them into its address in the environment",
}
OTHER_REMEDY = "The endpoint does not accept these settings: check judge.args (model, request, structured, max_tokens)"
STOPS = frozenset({"", "stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "completed"})
"""Finish reasons, in lower case, of a reply that ended by itself."""
FAILED = frozenset({"error", "abort", "aborted", "cancelled"})
"""Finish reasons of a reply that the endpoint gave up; another try may succeed."""
MOST_TOKENS = 10**8
"""More than any model reads or writes in one call; a larger count is a mistake of the endpoint."""


class Transient(Exception):
    """The call failed but a retry may succeed; `retry_after` is the wait in seconds that the endpoint asks for,
    `limited` whether a limit of requests or tokens is the reason."""

    def __init__(self, why: str, retry_after: float | None = None, *, limited: bool = False) -> None:
        super().__init__(why)
        self.retry_after, self.limited = retry_after, limited


class Unanswerable(Exception):
    """The endpoint will never answer this request (too long, filtered), but may answer others."""


class Unaccepted(JudgeError):
    """The endpoint rejects the form of the request (400, 422); a plainer form may be accepted."""


class Endpoint:
    """A model behind an OpenAI-compatible endpoint; use it inside one asyncio loop, then close its `client`."""

    def __init__(self, base_url: str, model: str, key_env: str | None) -> None:
        openai = import_openai()
        self.model, self.key_env = model, key_env
        self.where = base_url + _proxy_of(base_url)
        self.key = read_key(key_env)
        self.errors = openai
        try:
            http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._stay]})
            self.client = openai.AsyncOpenAI(
                base_url=base_url, api_key=self.key or "none", max_retries=0, http_client=http
            )
        except Exception as error:  # noqa: BLE001  the errors of httpx about proxies have no common class
            raise JudgeError(
                f"The judge's endpoint {self.where} cannot be used: {_cause(error).rstrip('.')}. Check "
                f"judge.args.base_url and the proxies in the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY), or "
                f"except its host with NO_PROXY."
            ) from None

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
            if isinstance(error.__cause__, JudgeError):
                raise error.__cause__ from None
            raise Transient(f"no connection to {self.where} ({_cause(error)})") from None
        return read_completion(answer)

    async def _stay(self, request: Any) -> None:
        """Called before every request; JudgeError for one that follows a redirect elsewhere."""
        home, target = self.client.base_url, request.url
        if (home.scheme, home.host, home.port) != (target.scheme, target.host, target.port) or request.method != "POST":
            shown = target.copy_with(username=None, password=None, query=None, fragment=None)
            raise JudgeError(
                f"The judge's endpoint {self.where} redirects to {shown}. Questions and the key are sent only to the "
                f"host and port in judge.args.base_url, so nothing was sent there: if you mean that address, set "
                f"judge.args.base_url to it."
            )

    def _refusal(self, status: int, body: str, headers: Mapping[str, str]) -> Exception:
        reason = " ".join((body.replace(self.key, "[key]") if self.key else body).split())[:300]
        text = f"HTTP {status}: {reason or 'no text'}"
        if status == 429 and "insufficient_quota" in reason:
            status = 402
        elif status in TRANSIENT or status >= 500:
            wait = _retry_after(headers)
            asked = "" if wait is None else f"; it asks for a wait of {wait:g} s"
            return Transient(text + asked, wait, limited=status == 429)
        elif status in (400, 413, 422) and any(sign in reason.lower() for sign in OF_ONE_ITEM):
            return Unanswerable(text)
        remedy = REMEDIES.get(status, OTHER_REMEDY).format(key_env=self.key_env, model=self.model)
        kind = Unaccepted if status in (400, 422) else JudgeError
        return kind(
            f"The judge's endpoint {self.where} rejects every call with {text}. {remedy}. Paid verdicts are kept; "
            f"run the same command again."
        )


def read_completion(content: bytes) -> Reply:
    """Parse the body of a chat completion. Transient unless it has a choice with text, or a reason for having none."""
    try:
        found = json.loads(content, parse_int=float)  # an int of thousands of digits would be an error
        choice, used = found["choices"][0], found.get("usage")
        text, reason = _text(choice["message"]), str(choice.get("finish_reason") or "")[:40].strip().lower()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        shown = " ".join(content[:120].decode("utf-8", "replace").split())
        raise Transient(f"not a chat completion ({type(error).__name__}): {shown or 'an empty answer'}") from None
    if reason in FAILED or (text is None and reason in STOPS):
        raise Transient(f"a chat completion without a usable text (finish_reason {reason or 'missing'})")
    return Reply(text or "", "stop" if reason in STOPS else reason, _usage(used))


def _text(message: Mapping[str, Any]) -> str | None:
    """The text of a message, whose content is text, a list of parts, or missing; else what it refuses with."""
    content = message.get("content")
    if isinstance(content, list):
        said = [part if isinstance(part, str) else part.get("text") for part in content if _is_said(part)]
        content = "".join(part or "" for part in said)
    text = content or message.get("refusal") or content
    if text is not None and not isinstance(text, str):
        raise TypeError(f"a content of type {type(text).__name__}")
    return text


def _is_said(part: Any) -> bool:
    """Whether a part of a content belongs to the answer, as thoughts and pictures do not."""
    return isinstance(part, str) or (isinstance(part, dict) and part.get("type", "text") in ("text", "output_text"))


def _usage(used: Any) -> Usage:
    """The tokens of a call. An impossible count makes both of them unknown, which is 0."""
    counts = [used.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(used, dict) else []
    try:
        tokens = [int(count or 0) for count in counts]
    except (ValueError, TypeError, OverflowError):
        return Usage()
    return Usage(0, *tokens) if all(0 <= count <= MOST_TOKENS for count in tokens) else Usage()


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
    if not (key.isascii() and key.isprintable()):
        raise JudgeError(
            f"The key in the environment variable {name} (judge.args.api_key_env) holds characters that no key has, "
            f"such as a line break or a letter with an accent. Set it again, to the key alone."
        )
    return key


def _proxy_of(address: str) -> str:
    """Which proxy the environment names for this address, for messages, without its password; "" for none."""
    parts, proxies = urlsplit(address), urllib.request.getproxies()
    kind = next((kind for kind in (parts.scheme, "all") if proxies.get(kind)), None)
    if kind is None or urllib.request.proxy_bypass(parts.netloc):
        return ""
    return f" (through the proxy {proxies[kind].rpartition('@')[2]} of {kind.upper()}_PROXY)"


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
