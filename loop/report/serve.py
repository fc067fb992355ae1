"""Serve a report over HTTP, on this machine only.

Requests must address this machine by its own name, so another site's page in the same browser cannot read the report.
"""

from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"


class Handler(SimpleHTTPRequestHandler):
    """Answers for one page and its data folder."""

    def __init__(self, *args: Any, page: Path, **kwargs: Any) -> None:
        self.page = page
        super().__init__(*args, directory=str(page.parent), **kwargs)

    def send_head(self) -> Any:
        """The file, if it belongs to the page."""
        asked = Path(self.translate_path(self.path))
        data = self.page.with_name(f"{self.page.stem}-data")
        ours = asked == self.page or (asked.parent == data and asked.suffix == ".js")
        if not ours or self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def end_headers(self) -> None:
        """Disable caching."""
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def server(page: Path) -> ThreadingHTTPServer:
    """A server on a free port of the loopback interface, not yet serving."""
    return ThreadingHTTPServer((HOST, 0), partial(Handler, page=page.resolve()))


def serve_page(page: Path) -> None:
    """Serve until Ctrl-C."""
    with server(page) as running:
        print(f"http://{HOST}:{running.server_address[1]}/{page.name}  (Ctrl-C ends it)", flush=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            return
