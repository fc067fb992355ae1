"""The report in a real browser, as a person uses it: filters, search, tokens, side by side; wide and narrow.

Its texts are hostile. Skipped where no Chromium is installed.
"""

import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from loop.report import page
from loop.report.page import write_report
from loop.report.serve import server
from tests.helpers.browsing import DESKTOP, PHONE, Browser, browser, find_browser
from tests.helpers.made_runs import Made, make_run
from tests.loop.report.test_report_page import HOSTILE

CHROMIUM = find_browser()
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed on this machine")
DONE = "document.getElementById('found').textContent.includes('fit')"
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose samples are hostile texts, and one kind word to search for."""

    def say(prompt: str, iteration: int, index: int) -> str:
        return f"needle {iteration}" if index == 1 and "prompt 2" in prompt else f"{iteration} {HOSTILE[index % 5]}"

    ask = "{0} prompt {1} </script><img src=x onerror=alert(1)>".format
    made = Made(iterations=2, test=24, train=24, gate=2, shard=24, say=say, ask=ask, why=HOSTILE[1], n=5)
    return write_report(make_run(tmp_path_factory.mktemp("browsed") / "run", made))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of this file."""
    assert CHROMIUM is not None
    with browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def opened(chromium: Browser, report: Path) -> Iterator[Browser]:
    """The report, opened at desktop width; no test may end with a complaint or a request beyond the file."""
    chromium.complaints.clear()
    chromium.requests.clear()
    chromium.resize(DESKTOP)
    chromium.open(report)
    chromium.wait(DONE)
    yield chromium
    assert chromium.complaints == []
    assert {url for url in chromium.requests if not url.startswith("data:")} == {report.as_uri()}


def shown(page: Browser) -> list[str]:
    found: list[str] = page.run("[...document.querySelectorAll('#results .response .text')].map((e) => e.textContent)")
    return found


@needs_browser
@SIZES
def test_filters_and_search_show_what_fits(opened: Browser, size: tuple[int, int]) -> None:
    opened.resize(size)
    assert opened.run("document.querySelectorAll('#results .card').length") == 20
    opened.click("#more")
    opened.wait("document.querySelectorAll('#results .card').length === 24")
    opened.choose("#f-outcome", "right")
    opened.wait(DONE)
    chips = "[...document.querySelectorAll('#results .response .chip')].map((e) => e.textContent)"
    assert set(opened.run(chips)) == {"right"}
    opened.choose("#f-outcome", "")
    opened.run("document.getElementById('f-text').value = 'NEEDLE'")
    opened.click("#filters button[type=submit]")
    opened.wait("document.querySelectorAll('#results .card').length > 0 && " + DONE)
    assert set(shown(opened)) == {"needle 2"}
    opened.run("document.getElementById('f-text').value = ''")
    opened.choose("#f-set", "train")
    opened.choose("#f-iteration", "1")
    opened.choose("#f-reason", "chosen")
    opened.wait(DONE)
    assert set(opened.run(chips)) >= {"right", "chosen"}
    assert "wrong" not in opened.run(chips)
    assert opened.run("document.documentElement.scrollWidth <= window.innerWidth")


@needs_browser
@SIZES
def test_the_same_prompt_is_seen_side_by_side_with_its_differences_marked(
    opened: Browser, size: tuple[int, int]
) -> None:
    opened.resize(size)
    opened.click(".compare-button")
    opened.wait("document.querySelectorAll('#side .columns > div').length === 3")
    heads = "[...document.querySelectorAll('#side h3')].map((e) => e.textContent)"
    assert opened.run(heads)[1:] == ["base model", "iteration 1", "iteration 2"]
    marked = "[...document.querySelectorAll('#side .columns > div:nth-child(3) ins')].map((e) => e.textContent)"
    assert set(opened.run(marked)) == {"2"}
    assert opened.run("document.documentElement.scrollWidth <= window.innerWidth")
    opened.click("#side form button")
    opened.wait("!document.getElementById('side').open")


@needs_browser
def test_tokens_are_shown_with_their_log_probs(opened: Browser) -> None:
    opened.click(".tokens-button")
    opened.wait("document.querySelectorAll('.tokens span').length > 0")
    title = opened.run("document.querySelector('.tokens span').title")
    assert re.fullmatch(r"token \d+: log-prob -0\.\d\d, p [01]\.\d{3}", title)
    assert opened.run("getComputedStyle(document.querySelector('.tokens span')).backgroundColor") != "rgba(0, 0, 0, 0)"
    opened.click(".tokens-button")
    opened.wait("document.querySelectorAll('.tokens span').length === 0")


@needs_browser
def test_colours_follow_the_system_and_the_switch(opened: Browser) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = opened.run(paper)
    opened.resize(DESKTOP, dark=True)
    opened.wait(f"{paper} !== {light!r}")
    opened.choose("#theme", "light")
    assert opened.run(paper) == light
    opened.choose("#theme", "auto")


@needs_browser
def test_the_keyboard_reaches_everything(opened: Browser) -> None:
    """Tab from the top: first the way to the report, then its parts; figures' data open with Enter."""
    for _ in range(2):
        for kind in ("rawKeyDown", "keyUp"):
            opened.ask("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert opened.run("document.activeElement.id") == "theme"
    opened.run("document.querySelector('#accuracy summary').focus()")
    enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
    for kind in ("keyDown", "keyUp"):
        opened.ask("Input.dispatchKeyEvent", type=kind, **enter)
    opened.wait("document.querySelector('#accuracy details').open")


@needs_browser
def test_pages_beside_the_report_load_from_disk(
    chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "INLINE_BYTES", 10)
    path = write_report(make_run(tmp_path / "run", Made(iterations=1)))
    chromium.complaints.clear()
    chromium.open(path)
    chromium.wait(DONE)
    assert len(shown(chromium)) == 5 * 3
    assert chromium.complaints == []


def test_the_server_gives_away_the_page_and_its_data_only(tmp_path: Path) -> None:
    for name in ("report.html", "secret.txt", "report-data/data-001.js", "report-data/index.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    with server(tmp_path / "report.html") as running:
        Thread(target=running.serve_forever, daemon=True).start()
        port = running.server_address[1]
        assert running.server_address[0] == "127.0.0.1"
        assert fetch(port, "report.html") == "report.html"
        assert fetch(port, "report-data/data-001.js") == "report-data/data-001.js"
        for other in ("secret.txt", "", "report-data/", "report-data/index.json", "report-data/../secret.txt"):
            assert fetch(port, other) == "404"
        assert fetch(port, "report.html", host="evil.example:80") == "404"
        running.shutdown()


def fetch(port: int, path: str, host: str | None = None) -> str:
    """What the server answers, or the number of its refusal."""
    address = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.code)


def test_the_command_line_does_not_load_the_report(tmp_path: Path) -> None:
    code = "import sys, loop.cli.main; print([m for m in sys.modules if m.startswith(('loop.report.', 'jinja2'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
