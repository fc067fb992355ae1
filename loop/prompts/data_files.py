"""Read rows from local files as they are: JSON values keep their types, CSV cells are texts, a path is that one file.

`datasets` would make 18 and 0.5 of one column 18.0 and 0.5, read dates into texts, expand * and [ in names, and
serve a changed file from its cache.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, overload

from loop.errors import UserError, explain_obstacle, is_obstacle

Row = dict[str, Any]
ROWS_UNDER = ("data", "rows", "train", "test", "validation", "examples", "records", "items", "instances")
"""Keys of one object under which files of other tools hold all rows."""


class Rows(Sequence[Row]):
    """The rows of a file; every row has all columns. Rows are decoded each time they are read, to save memory."""

    def __init__(self, column_names: Sequence[str], stored: Sequence[Any], decode: Callable[[Any], Row]) -> None:
        self.column_names = list(column_names)
        self._stored, self._decode = stored, decode

    def __len__(self) -> int:
        return len(self._stored)

    def __iter__(self) -> Iterator[Row]:
        return map(self._row, self._stored)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        return [*map(self._row, self._stored[at])] if isinstance(at, slice) else self._row(self._stored[at])

    def _row(self, stored: Any) -> Row:
        row = self._decode(stored)
        return {name: row.get(name) for name in self.column_names}


def read_rows(path: str, key: str) -> tuple[str, Rows]:
    """Name and rows of a local file; `key` is the setting that messages name. UserError."""
    file = Path(path).expanduser()
    read = READERS.get(file.suffix.lower())
    if not file.is_file():
        what = "is a folder, not a file" if file.is_dir() else "does not exist"
        raise UserError(f"{key}: {file} {what}. Relative paths start at the current directory, {Path.cwd()}.")
    if read is None:
        raise UserError(f"{key}: {file} is not in a known format; expected a file named {', '.join(READERS)}.")
    if file.stat().st_size == 0:
        raise UserError(f"{key}: {file} is empty (0 bytes).")
    try:
        return str(file), read(file)
    except (OSError, ValueError, csv.Error, RecursionError) as error:  # pyarrow's errors are among them
        if isinstance(error, OSError) and is_obstacle(error):
            raise UserError(f"{key}: {explain_obstacle(error)}") from error
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise UserError(f"{key}: {file} cannot be read as {file.suffix[1:].lower()}: {reason}.") from error


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark. ValueError names the line of a byte that is no UTF-8."""
    raw = file.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw[:2]:
        raise ValueError("it is in UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} is not UTF-8 (byte 0x{raw[error.start]:02x}); convert it, e.g. iconv -f ISO-8859-1 -t UTF-8"
        ) from error


def _json(file: Path) -> Rows:
    """One object on each line, or one list of objects."""
    text = read_text(file)
    if text.lstrip().startswith("["):
        rows = _parsed(text, "")
        return _objects([(f"entry {at}", row) for at, row in enumerate(rows, 1)], rows, dict)
    lines = [(f"line {at}", line) for at, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and lines[0][1].strip() == "{":
        _refuse_one_object(_parsed(text, ""))  # an object over several lines
    parsed = [(where, _parsed(line, where)) for where, line in lines]
    if len(parsed) == 1 and isinstance(parsed[0][1], dict):
        _refuse_columns(parsed[0][1])
    return _objects(parsed, [line for _, line in lines], json.loads)


def _parsed(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        if r"\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"{where or f'line {error.lineno}'}: {error.msg}") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode()
        raise ValueError(
            f"{where and f'{where} '}holds {half}, half of a character (a surrogate); remove it"
        ) from error
    return value


def _objects(parsed: Sequence[tuple[str, Any]], stored: Sequence[Any], decode: Callable[[Any], Row]) -> Rows:
    for where, row in parsed:
        if not isinstance(row, dict):
            raise ValueError(f"{where} holds {json.dumps(row)[:60]}, expected an object with a value for each column")
    return Rows([*dict.fromkeys(name for _, row in parsed for name in row)], stored, decode)


def _refuse_columns(value: dict[str, Any]) -> None:
    """ValueError for a whole data set in one object: rows under a key, or a list or an object for each column."""
    for key, held in value.items():
        if key in ROWS_UNDER and isinstance(held, list) and all(isinstance(row, dict) for row in held):
            raise ValueError(
                f"it is one object that holds the rows under {key!r}; write that list alone, e.g. with jq .{key}"
            )
    if value and all(_is_column(held) for held in value.values()):
        raise ValueError(
            "it is one object with a list or an object for each column, expected one object for each row; convert it, "
            "e.g. pandas.read_json(path).to_json(out, orient='records', lines=True)"
        )


def _is_column(held: Any) -> bool:
    """Whether a value is a whole column: a list of plain values, or an object with the numbers of rows as keys."""
    if isinstance(held, list):
        return bool(held) and not any(isinstance(one, dict) for one in held)
    return isinstance(held, dict) and bool(held) and all(key.isdecimal() for key in held)


def _refuse_one_object(value: Any) -> None:
    if isinstance(value, dict):
        _refuse_columns(value)
    raise ValueError("it is one object over several lines, expected a list of objects, or one object on each line")


def _csv(file: Path) -> Rows:
    """Every cell as text: "007" is not 7 and "NA" is not missing. A column without a name (an index) is left out."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    header = next(reader, [])
    named = [name for name in header if name.strip()]
    if len(set(named)) < len(named):
        raise ValueError(f"its header names a column twice: {', '.join(header)}")
    rows = []
    for row in reader:
        if row and len(row) != len(header):
            cells = f"line {reader.line_num} has {len(row)} cells, but the header has {len(header)}"
            raise ValueError(f"{cells}; put a cell that holds a comma in double quotes")
        if row:
            rows.append(row)
    return Rows(named, rows, lambda cells: dict(zip(header, cells, strict=True)))


def _parquet(file: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with file.open("rb") as opened:  # not by its name, which pyarrow reads as an address or a folder of parts
        table = pq.ParquetFile(opened).read()
    names = [name for name in table.column_names if name.strip() and not name.startswith("__index_level_")]
    table = _as_shown(table.select(names))
    decimals = [field.name for field in table.schema if pa.types.is_decimal(field.type)]
    size = 1024
    blocks = [table.slice(start, size) for start in range(0, table.num_rows, size)]
    kept: dict[int, list[Row]] = {}

    def decode(at: int) -> Row:
        block = at // size
        if block not in kept:
            kept.clear()
            kept[block] = blocks[block].to_pylist()
            for row in kept[block] if decimals else ():
                row.update({name: _number(row[name]) for name in decimals})
        return kept[block][at % size]

    return Rows(names, range(table.num_rows), decode)


def _as_shown(table: Any) -> Any:
    """The table with columns of 32 bits as the numbers that they show: 0.1, not 0.10000000149."""
    import pyarrow as pa

    for at, field in enumerate(table.schema):
        if pa.types.is_float32(field.type):
            wide = table.column(at).cast(pa.string()).cast(pa.float64())
            table = table.set_column(at, field.with_type(pa.float64()), wide)
    return table


def _number(value: Decimal | None) -> int | float | None:
    if value is None or not value.is_finite():
        return None
    return int(value) if value == value.to_integral_value() else float(value)


READERS: dict[str, Callable[[Path], Rows]] = {".json": _json, ".jsonl": _json, ".csv": _csv, ".parquet": _parquet}
