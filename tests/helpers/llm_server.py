"""A real HTTP server on loopback that speaks the OpenAI protocol and misbehaves as it is told.

It is a perfect judge: a response's worth is its number of `!`, or what `worth` says. It finds the texts by the marks
that the request's own code makes, as a model would. `fault` decides call by call what goes wrong instead.
"""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "test-key"
Fault = str | dict[str, Any] | None
"""What goes wrong, by name; or the fields of a reply's message, its `finish_reason` or `usage`, to replace."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that wait to be accepted


class LLMServer:
    """`calls` are the requests that came in; `fault(number, body)` names what is to go wrong with one, or None."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.fault: Callable[[int, dict[str, Any]], Fault] = lambda number, body: None
        self.worth: Callable[[str], int] = worth
        self.delay = 0.0
        self.wait = "0.3"
        """The Retry-After of a 429."""
        self.elsewhere, self.redirect = "", 307
        """Where a redirect leads to, and its status."""
        self.structured = True
        self.usage: dict[str, int] | None = {"prompt_tokens": 100, "completion_tokens": 10}
        self.in_flight = self.most_in_flight = 0
        self.times: list[float] = []
        self.lock = threading.Lock()
        self.base_url = ""

    @property
    def answered(self) -> Counter[str]:
        """How often each question was answered well: its number is what one pays for."""
        return Counter(call["question"] for call in self.calls if call["paid"])

    @contextmanager
    def running(self) -> Iterator["LLMServer"]:
        """Serve until the end of the block."""
        server = _Server(("127.0.0.1", 0), _handler(self))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        self.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def note(self, body: dict[str, Any], key: str) -> dict[str, Any]:
        """Write down that a call has come in."""
        question = json.dumps([body["messages"], "response_format" in body])
        call = {"question": question, "body": body, "key": key, "paid": False, "number": len(self.calls)}
        self.calls.append(call)
        self.times.append(time.monotonic())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return call


def worth(text: str) -> int:
    """How good a response is."""
    return text.count("!")


def verdict(body: dict[str, Any], worth: Callable[[str], int] = worth) -> tuple[str, str]:
    """The right verdict on the question of a request, and the request's code."""
    text = body["messages"][-1]["content"]
    code = re.findall(r"^<question ([0-9a-f]{8})>$", text, re.MULTILINE)[0]
    found = [re.search(rf"<{name} {code}>\n(.*?)\n</{name} {code}>", text, re.DOTALL) for name in NAMES]
    one, first, second = (worth(match[1]) if match else 0 for match in found)
    if found[0]:
        return ("yes" if one else "no") if "yes or no" in text else str(min(10, 1 + one)), code
    return ("tie" if first == second else "A" if first > second else "B"), code


NAMES = ("response", "response A", "response B")


def content_of(body: dict[str, Any], said: str, code: str) -> str:
    """The reply's text in the form that was asked for."""
    if "response_format" in body:
        number = said.lstrip("-").isdigit()
        return json.dumps({"reasoning": "I counted.", "verdict": int(said) if number else said})
    return f"I counted the marks.\nVerdict {code}: {said}"


def changed(reply: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """The reply with these fields; TEXT stands for the text that it had."""
    choice = reply["choices"][0]
    text = choice["message"]["content"]
    for name, value in fields.items():
        place = reply if name == "usage" else choice if name == "finish_reason" else choice["message"]
        place[name] = json.loads(json.dumps(value).replace('"TEXT"', json.dumps(text)))
    return reply


def _handler(server: LLMServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with server.lock:
                call = server.note(body, self.headers.get("authorization", "").removeprefix("Bearer "))
            try:
                time.sleep(server.delay)
                self.answer(call)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has given up
            finally:
                with server.lock:
                    server.in_flight -= 1

        def answer(self, call: dict[str, Any]) -> None:
            fault = server.fault(call["number"], call["body"])
            if isinstance(fault, dict):
                call["paid"] = True
                self.send(json.dumps(changed(self.completion(call), fault)))
                return
            if "response_format" in call["body"] and not server.structured:
                fault = "400 response_format is not supported"
            if fault is None or not getattr(self, f"fault_{fault.replace(' ', '_')}", None):
                status = int(fault[:3]) if fault else 200
                call["paid"] = status == 200
                self.send(json.dumps(self.completion(call) if status == 200 else {"error": {"message": fault}}), status)
            else:
                getattr(self, f"fault_{fault.replace(' ', '_')}")(call)

        def completion(self, call: dict[str, Any], said: str | None = None, **message: Any) -> dict[str, Any]:
            right, code = verdict(call["body"], server.worth)
            text = content_of(call["body"], right if said is None else said, code)
            choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
            return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": server.usage}

        def send(self, text: str, status: int = 200, **headers: str) -> None:
            content = text.encode("utf-8")
            self.send_response(status)
            for name, value in {"content-type": "application/json", "content-length": str(len(content))}.items():
                self.send_header(name, value)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(content)

        # ---- what may go wrong ----

        def fault_timeout(self, call: dict[str, Any]) -> None:
            time.sleep(5.0)

        def fault_429(self, call: dict[str, Any]) -> None:
            self.send(json.dumps({"error": {"message": "slow down"}}), 429, retry_after=server.wait)

        def fault_redirect(self, call: dict[str, Any]) -> None:
            self.send("", server.redirect, location=server.elsewhere)

        def fault_truncated(self, call: dict[str, Any]) -> None:
            self.send(json.dumps(self.completion(call))[:-20])

        def fault_no_choices(self, call: dict[str, Any]) -> None:
            self.send(json.dumps({**self.completion(call), "choices": []}))

        def fault_null(self, call: dict[str, Any]) -> None:
            self.send(json.dumps(self.completion(call, content=None)))

        def fault_garbage(self, call: dict[str, Any]) -> None:
            call["paid"] = True
            self.send(json.dumps(self.completion(call, content="Both have their merits. [[A]] Verdict: A")))

        def fault_wrong_letter(self, call: dict[str, Any]) -> None:
            call["paid"] = True
            self.send(json.dumps(self.completion(call, said="C")))

        def fault_cut_off(self, call: dict[str, Any]) -> None:
            call["paid"] = True
            reply = self.completion(call)
            reply["choices"][0]["finish_reason"] = "length"
            self.send(json.dumps(reply))

        def fault_drip(self, call: dict[str, Any]) -> None:
            """A byte now and then: no pause is long enough for a timeout between bytes."""
            content = json.dumps(self.completion(call)).encode("utf-8")
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            for byte in content[:60]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)

        def fault_closed(self, call: dict[str, Any]) -> None:
            self.close_connection = True
            self.connection.close()

        def fault_html(self, call: dict[str, Any]) -> None:
            self.send("<html>gateway</html>", 502)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler
