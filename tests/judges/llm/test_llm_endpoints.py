"""Endpoints that answer in other ways than OpenAI's, or send elsewhere: what they say is read or refused, paid once."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from judges import JudgeError, Verdict, build_judge, judge_groups
from judges.context import InMemory, JudgeContext, Usage
from judges.llm.api import Endpoint
from judges.versions import identity_of
from loop.store.verdict_cache import VerdictCache
from tests.helpers.llm_server import KEY, LLMServer
from tests.judges.llm.test_llm import GROUPS, group, judged


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LLMServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with LLMServer().running() as running:
        yield running


def once(server: LLMServer, fields: dict[str, Any], **args: Any) -> Verdict:
    """The verdict on one response with two marks, if the endpoint's reply has these fields; asked for twice."""
    server.fault = lambda number, body: fields
    store, verdicts = InMemory(), []
    for _ in range(2):
        verdicts.append(judged(server, groups=[group(0, 2)], store=store, **args)[0][0])
    assert verdicts[0] == verdicts[1]
    assert len(server.calls) == 1  # neither tried again nor asked again
    return verdicts[0]


ENDED = [
    "stop",
    "STOP",
    "eos",
    "eos_token",
    "EOS_TOKEN",
    "end_turn",
    "stop_sequence",
    "COMPLETE",
    "completed",
    "",
    None,
]


@pytest.mark.parametrize("reason", ENDED)
def test_a_reply_that_ended_by_itself_is_read_whatever_the_endpoint_calls_it(server: LLMServer, reason: Any) -> None:
    assert once(server, {"finish_reason": reason}).score == 3.0


@pytest.mark.parametrize(
    "reason", ["length", "LENGTH", "max_tokens", "content_filter", "SAFETY", "tool_calls", "?" * 99]
)
@pytest.mark.parametrize("content", [None, "", "TEXT", []])
def test_a_reply_that_was_cut_off_or_filtered_is_an_abstain_paid_once(
    server: LLMServer, reason: Any, content: Any
) -> None:
    verdict = once(server, {"finish_reason": reason, "content": content})
    assert verdict == Verdict.abstain(f"the judge's reply ended early ({reason.lower()[:40]})")


PARTS: list[Any] = [
    [{"type": "text", "text": "TEXT"}],
    ["TEXT"],
    [{"text": "TEXT"}],
    [None, 7, {"type": "text", "text": "TEXT"}],
    [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "TEXT"}],
    [{"type": "reasoning", "text": '{"verdict": 9}'}, {"type": "output_text", "text": "TEXT"}],
    [{"type": "text", "text": ""}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "TEXT"}],
]


@pytest.mark.parametrize("parts", PARTS, ids=range(len(PARTS)))
def test_a_content_in_parts_is_its_text(server: LLMServer, parts: Any) -> None:
    assert once(server, {"content": parts}).score == 3.0


@pytest.mark.parametrize("content", ["", [], [{"type": "text", "text": ""}], "Sorry."])
def test_an_answer_without_a_verdict_is_an_abstain_paid_once(server: LLMServer, content: Any) -> None:
    assert once(server, {"content": content}).why.startswith("garbage verdict: no JSON object")


def test_a_refusal_is_an_abstain_paid_once(server: LLMServer) -> None:
    assert once(server, {"content": None, "refusal": "I will not."}).why.endswith("I will not.")


@pytest.mark.parametrize(
    "fields", [{"finish_reason": "error"}, {"finish_reason": "abort"}, {"content": None}, {"content": {"a": 1}}]
)
def test_a_reply_that_the_endpoint_gave_up_is_asked_for_again(server: LLMServer, fields: dict[str, Any]) -> None:
    server.fault = lambda number, body: fields if number == 0 else None
    assert judged(server, groups=[group(0, 2)])[0][0].score == 3.0
    assert len(server.calls) == 2


COUNTS: list[tuple[Any, Usage]] = [
    ({"prompt_tokens": 10**25, "completion_tokens": 5}, Usage(1)),
    ({"prompt_tokens": -800, "completion_tokens": 5}, Usage(1)),
    ({"prompt_tokens": 7, "completion_tokens": 10**400}, Usage(1)),
    ({"prompt_tokens": float("inf"), "completion_tokens": 5}, Usage(1)),
    ({"prompt_tokens": float("nan"), "completion_tokens": 5}, Usage(1)),
    ({"prompt_tokens": "many", "completion_tokens": 5}, Usage(1)),
    ({"prompt_tokens": [7], "completion_tokens": 5}, Usage(1)),
    ([7, 5], Usage(1)),
    ("7", Usage(1)),
    (None, Usage(1)),
    ({"prompt_tokens": 7.0, "completion_tokens": "5"}, Usage(1, 7, 5)),
    ({"prompt_tokens": 7, "completion_tokens": None}, Usage(1, 7, 0)),
]


@pytest.mark.parametrize(("usage", "counted"), COUNTS, ids=range(len(COUNTS)))
def test_counts_of_tokens_that_cannot_be_are_not_believed(
    server: LLMServer, usage: Any, counted: Usage, tmp_path: Path
) -> None:
    server.fault = lambda number, body: {"usage": usage}
    store = VerdictCache(tmp_path / "verdicts.sqlite")
    judge = build_judge("llm-grade", {"base_url": server.base_url, "model": "m"})
    judge.bind(JudgeContext(store))
    assert judge_groups(judge, [group(0, 2)])[0][0].score == 3.0
    assert store.spent(identity_of(judge)) == counted
    assert len(server.calls) == 1
    store.close()


@pytest.mark.parametrize("usage", [{"prompt_tokens": 10**25, "completion_tokens": 5}, {"prompt_tokens": -800}, {}])
def test_a_budget_in_tokens_stops_at_an_impossible_count_and_keeps_the_verdict(server: LLMServer, usage: Any) -> None:
    server.fault = lambda number, body: {"usage": usage}
    store = InMemory()
    with pytest.raises(JudgeError, match=r"does not report token counts, or impossible ones.*max_calls instead"):
        judged(server, groups=[group(0, 2)], store=store, budget={"max_tokens": 1000})
    assert judged(server, groups=[group(0, 2)], store=store)[0][0].score == 3.0
    assert len(server.calls) == 1


@pytest.mark.parametrize("wait", ["3600", "86400", "1e300", "inf", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_one_long_wait_fails_one_request_and_stops_no_other(server: LLMServer, wait: str) -> None:
    server.fault, server.wait = lambda number, body: "429" if number == 2 else None, wait
    started = time.monotonic()
    rows = judged(server, groups=[group(number, 1) for number in range(50)], concurrency=4)
    kinds = [row[0].kind for row in rows]
    assert (kinds.count("error"), kinds.count("score")) == (1, 49)
    why = rows[kinds.index("error")][0].why
    assert why.startswith("HTTP 429: ")
    assert "it asks for a wait of" in why
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("wait", ["-5", "nan", "soon", "", "0"])
def test_a_wait_that_is_no_time_is_none(server: LLMServer, wait: str) -> None:
    server.fault, server.wait = lambda number, body: "429" if number == 0 else None, wait
    assert judged(server, groups=[group(0, 2)])[0][0].score == 3.0


def test_a_limit_that_stays_is_told_as_a_limit(server: LLMServer) -> None:
    server.fault, server.wait = lambda number, body: "429", "3600"
    with pytest.raises(JudgeError, match=r"HTTP 429.*a wait of 3600 s.*its limit is reached; wait, lower"):
        judged(server, groups=[group(number, 1) for number in range(20)], concurrency=2)
    assert len(server.calls) <= 10


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_address_is_refused_and_nothing_is_sent_there(server: LLMServer, status: int) -> None:
    server.fault, server.redirect = lambda number, body: "redirect", status
    with LLMServer().running() as other:
        server.elsewhere = f"{other.base_url}/chat/completions?key=secret"
        with pytest.raises(JudgeError, match=rf"redirects to {other.base_url}/chat/completions\. .*base_url to it"):
            judged(server, groups=[group(0, 2)])
        assert other.calls == []
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    "target", ["https://127.0.0.1/v1", "http://localhost:1/v1", "//example.com/x", "ftp://127.0.0.1/x", "http://[::1]/"]
)
def test_another_scheme_host_or_port_is_another_address(server: LLMServer, target: str) -> None:
    server.fault, server.elsewhere = lambda number, body: "redirect", target
    with pytest.raises(JudgeError, match="redirects to"):
        judged(server, groups=[group(0, 2)])


def test_a_redirect_within_the_address_is_followed(server: LLMServer) -> None:
    server.fault, server.elsewhere = lambda number, body: "redirect" if number == 0 else None, "/v2/chat/completions"
    assert judged(server, groups=[group(0, 2)])[0][0].score == 3.0


PROXIES = {
    "HTTP_PROXY": "http://me:secret@127.0.0.1:9",
    "http_proxy": "127.0.0.1:9",
    "ALL_PROXY": "http://127.0.0.1:9",
    "all_proxy": "http://me@127.0.0.1:9",
}


@pytest.mark.parametrize("variable", PROXIES)
def test_a_proxy_is_named_where_the_connection_fails(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv(variable, PROXIES[variable])
    gone = LLMServer()
    gone.base_url = "http://judge.example/v1"
    with pytest.raises(JudgeError, match=r"127\.0\.0\.1:9 of (HTTP|ALL)_PROXY\) did not answer") as caught:
        judged(gone, groups=[group(number, 1) for number in range(20)], concurrency=4, retries=0)
    assert "secret" not in str(caught.value)


def test_what_a_proxy_answers_names_the_proxy(server: LLMServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.base_url.removesuffix("/v1"))
    server.fault = lambda number, body: "407"
    far = LLMServer()
    far.base_url = "http://judge.example/v1"
    with pytest.raises(JudgeError, match=r"of HTTP_PROXY\) rejects every call with HTTP 407.*a user name"):
        judged(far, groups=GROUPS)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "ftp://127.0.0.1", "http://127.0.0.1:x"])
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(JudgeError, match=r"HTTP_PROXY\) cannot be used: .*except its host with NO_PROXY"):
        Endpoint("http://judge.example/v1", "m", None)


def test_an_address_that_needs_no_proxy_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "judge.example")
    assert Endpoint("http://judge.example:8000/v1", "m", None).where == "http://judge.example:8000/v1"
    assert Endpoint("https://other.example/v1", "m", None).where == "https://other.example/v1"


@pytest.mark.parametrize("key", ["sk-1\nsk-2", "schlüssel", "a\x7fb"])
def test_a_key_that_no_header_takes_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(JudgeError, match="characters that no key has") as caught:
        build_judge("llm-grade", {"base_url": "http://judge.example/v1", "model": "m"}).ready()
    assert key[:4] not in str(caught.value)
