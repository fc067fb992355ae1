"""Render a run's numbers as one HTML page that opens from disk without a network. Few samples are stored inside; more
go into scripts that are loaded on demand, because a page opened from disk cannot read other files in any other way."""

import base64
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from loop.format import visible
from loop.redact import redacted
from loop.report.browser import Book, Page, books, to_script_json
from loop.report.changes import changes
from loop.report.data import IterationData, RunData, read_run
from loop.report.figure import Table, section
from loop.report.figures_cost import ledger_figures
from loop.report.figures_data import judge_figures, supply_figures
from loop.report.figures_quality import quality_figures
from loop.report.figures_training import training_figures
from loop.report.headline import headline
from loop.report.warnings import Alarm, alarms
from loop.store.files import read_json, to_json, write_file
from loop.store.lineage import Change
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json, ModelRecord

TEMPLATES = Path(__file__).with_name("templates")
INLINE_BYTES = 4_500_000
"""Samples that take more than this are stored in files next to the report."""
TOKEN_BYTES, RESPONSE_BYTES = 14, 150
"""Approximate size of a token and of a response in the data."""


@dataclass(frozen=True, slots=True)
class BookEntry:
    """One book in the index: a prompt set of one iteration, and the names of its pages."""

    name: str
    set: str
    iteration: int
    pages: list[str]
    prompts: int
    responses: int
    fingerprint: str | None
    """Identifies the pages' sources; None while they may change."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of a report: an index of the books, and the pages that are stored inside the report."""

    correct_at: float
    books: list[BookEntry]
    folder: str = ""
    """Folder of the pages that are not stored inside, next to the report."""
    inside: list[Page] = field(default_factory=list)

    @property
    def index(self) -> Json:
        """What the script reads."""
        return {"correct_at": self.correct_at, "folder": self.folder, "books": [asdict(one) for one in self.books]}


def write_report(run: RunFolder, out: Path | None = None) -> Path:
    """Write a run's report to `out` (default: report.html in the run folder); returns its path. UserError."""
    data, path = read_run(run), out or run.report
    page = render(data, samples_of(data, path))
    write_file(path, page.encode("utf-8"))
    return path


def render(data: RunData, samples: Samples) -> str:
    """The page."""
    sections = [
        section("quality", "Does it work?", quality_figures(data)),
        section("training", "What training did", training_figures(data)),
        section("supply", "Prompts and pairs", supply_figures(data)),
        section("judge", "The judge", judge_figures(data)),
        section("ledger", "Where time and tokens went", ledger_figures(data)),
    ]
    return fill(
        "run.html",
        title=data.name,
        headline=headline(data),
        alarms=alarms(data),
        changes=changes(data),
        sections=sections,
        about={"settings": settings(data), "starts": starts(data), "versions": versions(data), "models": models(data)},
        data=data,
        samples=samples,
        sources="" if samples.inside or not samples.books else "'self' file:",
    )


def fill(template: str, *, sources: str = "", **values: Any) -> str:
    """Render a template with its style, script and content security policy."""
    style, script = asset("style.css"), asset("page.js") + asset("browser.js")
    scripts = f"'{_sha(script)}' {sources}".rstrip()
    policy = f"default-src 'none'; style-src '{_sha(style)}'; script-src {scripts}; base-uri 'none'; form-action 'none'"
    embedded = {"style": Markup(style), "script": Markup(script), "policy": policy}
    return environment().get_template(template).render(**embedded, **values)


def asset(name: str) -> str:
    """Text of a template file that the page embeds."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _sha(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


@lru_cache
def environment() -> Environment:
    """The templates: values are escaped, control characters shown, an unknown name is an error."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["script_json"] = lambda value: Markup(to_script_json(value))
    found.globals["alarms_of"] = alarms_of
    return found


def alarms_of(figure: str, known: Sequence[Alarm]) -> list[Alarm]:
    """The warnings of this figure."""
    return [alarm for alarm in known if figure in alarm.figures]


def samples_of(data: RunData, path: Path) -> Samples:
    """Samples, inside the page or in separate files."""
    known = books(data)
    if size_of(data) <= INLINE_BYTES:
        pages = {book.name: list(book.pages()) for book in known}
        entries = [book_entry(book, pages[book.name]) for book in known]
        return Samples(data.correct_at, entries, inside=[page for of_book in pages.values() for page in of_book])
    folder = path.with_name(f"{path.stem}-data")
    return Samples(data.correct_at, write_pages(known, folder), folder.name)


def size_of(data: RunData) -> int:
    """Approximate size of the samples in bytes, from the stages' counts."""
    counts = [it.state.sampled for it in data.iterations if it.state.sampled is not None]
    counts += [one for it in data.iterations for one in it.state.evaluated.values()]
    return sum(TOKEN_BYTES * one.tokens + RESPONSE_BYTES * one.responses for one in counts)


def write_pages(known: Sequence[Book], folder: Path) -> list[BookEntry]:
    """Write the pages that are missing or may have changed. Returns the index of all."""
    path = folder / "index.json"
    written = {one["name"]: BookEntry(**one) for one in (read_json(path) if path.exists() else [])}
    found = []
    for book in known:
        old = written.get(book.name)
        if old is None or old.fingerprint is None or old.fingerprint != book.fingerprint:
            old = book_entry(book, [_write(page, folder) for page in book.pages()])
        found.append(old)
    write_file(path, to_json([asdict(one) for one in found]))
    return found


def _write(page: Page, folder: Path) -> Page:
    """Write the page as a script that calls `prefloopPage` with its data. Returns the page without its text."""
    script = f'prefloopPage("{page.name}",{page.text});\n'
    write_file(folder / f"data-{page.name}.js", script.encode("utf-8"))
    return Page(page.name, page.prompts, page.responses, "")


def book_entry(book: Book, pages: Sequence[Page]) -> BookEntry:
    """The entry of a book in the index."""
    return BookEntry(
        name=book.name,
        set=book.which,
        iteration=book.iteration,
        pages=[page.name for page in pages],
        prompts=sum(page.prompts for page in pages),
        responses=sum(page.responses for page in pages),
        fingerprint=book.fingerprint,
    )


def settings(data: RunData) -> Table:
    """Every key with its value, dotted."""
    rows = [[key, _shown(value)] for key, value in flat(redacted(data.loaded.raw))]
    return Table(["key", "value"], rows)


def flat(values: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings under dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def starts(data: RunData) -> Table:
    """Every start of the run: time, config and changed settings."""
    rows = [[moment(start.time), start.config, "; ".join(map(_change, start.changes))] for start in data.lineage.starts]
    return Table(["started (UTC)", "config", "changed settings"], rows)


def _change(change: Change) -> str:
    old, new = (_shown(redacted(value, change.key)) for value in (change.old, change.new))
    return f"{change.key}: {old} → {new}"


def moment(seconds: float) -> str:
    """Format seconds since the epoch as date and time, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def versions(data: RunData) -> Table:
    """Package versions that affect results, at each start."""
    known = [start.versions for start in data.lineage.starts]
    names = sorted({name for one in known for name in one})
    heads = ["package", *(f"start {i}" for i in range(1, len(known) + 1))] if len(known) > 1 else ["package", "version"]
    return Table(heads, [[name, *(one.get(name) for one in known)] for name in names])


def models(data: RunData) -> Table:
    """Short hashes of the models and stage digests of each iteration."""
    heads = ["iteration", "candidate", "incumbent before", "reference after", "incumbent after", "pairs", "round"]
    return Table(heads, [_models(it) for it in data.iterations])


def _models(it: IterationData) -> list[object]:
    decision = it.promotion
    before = [decision.candidate, decision.incumbent, decision.reference] if decision else [None] * 3
    named = [_named(record) for record in (*before, it.policy)]
    digests = [it.manifests[stage].digest[:12] if stage in it.manifests else None for stage in ("pair", "train")]
    return [it.number, *named, *digests]


def _named(record: ModelRecord | None) -> str | None:
    return f"{record.hash[:12]} (iteration {record.iteration})" if record else None
