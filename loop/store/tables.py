"""Tables that stages pass to each other: Parquet schemas, and rows to files and back."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from judges.types import NOT_ASKED
from loop.errors import UserError, is_obstacle

RESPONSES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("response_id", pa.string()),
        ("index", pa.int32()),
        ("seed", pa.int64()),
        ("temperature", pa.float32()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("stop_reason", pa.string()),
        ("logprobs", pa.list_(pa.float32())),
        ("policy_hash", pa.string()),
    ]
)
VERDICTS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("response_id", pa.string()),
        ("judge", pa.string()),
        ("version", pa.string()),
        ("kind", pa.string()),
        ("score", pa.float64()),
        ("extracted", pa.string()),
        ("why", pa.string()),
        ("well_formed", pa.bool_()),
        ("parts", pa.string()),
    ]
)
PAIRS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
        ("rule", pa.string()),
        ("weight", pa.float64()),
        ("score_w", pa.float64()),
        ("score_l", pa.float64()),
        ("win_w", pa.float64()),
        ("win_l", pa.float64()),
        ("probability", pa.float64()),
        ("margin", pa.float64()),
        ("chosen_is_reference", pa.bool_()),
        ("source_iteration", pa.int32()),
    ]
)
SINGLES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("response_id", pa.string()),
        ("rule", pa.string()),
        ("weight", pa.float64()),
        ("good", pa.bool_()),
        ("score", pa.float64()),
        ("source_iteration", pa.int32()),
    ]
)
GROUPS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("response_ids", pa.list_(pa.string())),
        ("rule", pa.string()),
        ("weight", pa.float64()),
        ("scores", pa.list_(pa.float64())),
        ("source_iteration", pa.int32()),
    ]
)
ANSWERS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("response_id", pa.string()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
    ]
)
"""Gold and bad answers from the prompts' data columns, as tokens of the policy."""


def says_not_asked(parts: str | None) -> bool:
    """Whether the parts of an abstention say that nobody was asked about the response."""
    return parts is not None and f'"{NOT_ASKED}"' in parts


def to_bytes(rows: Sequence[dict[str, Any]], schema: pa.Schema, notes: dict[str, Any]) -> bytes:
    """The rows as a Parquet file (zstd, page checksums); `notes` travel in its metadata. Equal input gives equal
    bytes."""
    return table_bytes(noted(pa.Table.from_pylist(list(rows), schema=schema), notes))


def noted(table: pa.Table, notes: dict[str, Any]) -> pa.Table:
    """The table with `notes` in its metadata."""
    return table.replace_schema_metadata({"prefloop": json.dumps(notes, sort_keys=True)})


def table_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The table at `path`, page checksums verified. UserError if it is damaged."""
    try:
        table = pq.read_table(path, columns=list(columns) if columns else None, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if is_obstacle(error):
            raise
        raise damaged(path, str(error)) from error
    if missing := set(columns or ()) - set(table.column_names):
        raise damaged(path, f"it has no column {min(missing)}")
    return table


def notes_of(path: Path) -> dict[str, Any]:
    """The notes given to `to_bytes`. UserError if the file is damaged."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        notes: dict[str, Any] = json.loads(metadata.get(b"prefloop", b"{}"))
    except (pa.ArrowException, OSError, ValueError) as error:
        if is_obstacle(error):
            raise
        raise damaged(path, str(error)) from error
    return notes


def damaged(path: Path | str, why: str) -> UserError:
    """The error for a damaged file."""
    reason = " ".join(why.split())[:200]
    return UserError(
        f"{path} is damaged ({reason}). Nothing else is lost: run the same command with --repair, "
        "and only this file is made again and compared with its record."
    )


def digest(value: object) -> str:
    """sha256 of a JSON-able value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode("utf-8")).hexdigest()
