"""Command `export`: an iteration's model as evaluated, with a model card, or its pairs; nothing is overwritten."""

import glob
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from loop.errors import UserError, explain_obstacle
from loop.prompts.row import read_table
from loop.report.model_card import model_files
from loop.store import tables
from loop.store.files import PARTIAL, new_folder, write_file
from loop.store.locate import check_path
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json
from loop.store.run_state import PairCounts
from loop.store.stage import StageFolder

PairFormat = Literal["conversational", "standard"]
SUFFIXES = (".jsonl", ".parquet")


def export_model(run: RunFolder, k: int, target: Path) -> Path:
    """Copy the model of iteration `k` to a folder that does not exist yet, hashed again, with a card. UserError."""
    folder = run.latest(k, "train")
    manifest = folder.manifest() if k else None
    if not k:
        base = run.base().policy.path
        raise UserError(f"Iteration 0 of {run} is the base model itself, which lies in {base}; nothing was trained.")
    if manifest is None or None in (run.latest(k, stage).manifest() for stage in ("pair", "eval")):
        raise UserError(f"Iteration {k} of {run} has no evaluated model yet; continue it with `prefloop run {run}`.")
    _refuse_existing(target)
    files = [name for name in manifest.outputs if (folder.path / name).is_relative_to(folder.model)]
    if gone := sorted(set(files) - folder.present(manifest).keys()):
        raise UserError(f"{', '.join(gone)} of iteration {k} of {run} was pruned, so there is no model to export.")
    _refuse_damaged(run, [folder])
    try:
        with new_folder(target) as partial:
            for name in files:
                copy = partial / (folder.path / name).relative_to(folder.model)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder.path / name, copy)
            for name, content in model_files(run, k).items():
                write_file(partial / name, content)
    except OSError as error:
        raise UserError(f"{target} could not be written: {explain_obstacle(error)} Nothing is left of it.") from error
    return target


def export_pairs(run: RunFolder, k: int, target: Path, form: PairFormat) -> int:
    """Write the pairs of iteration `k` as TRL reads them, with scores; how many there were. UserError."""
    if target.suffix not in SUFFIXES:
        raise UserError(f"{target} must end in {' or '.join(SUFFIXES)}: the suffix decides the format.")
    _refuse_existing(target)
    manifest = run.stage(k, "pair").manifest()
    if manifest is None:
        raise UserError(f"Iteration {k} of {run} has no pairs{'' if k else ': it is the base model'}.")
    if (kind := manifest.counted(PairCounts).kind) != "pairs":
        raise UserError(f"Iteration {k} of {run} was trained on {kind}, so it has no pairs to export.")
    sources = [k, *map(int, manifest.counts.get("replayed", {}))]
    of_sources = [run.stage(i, stage) for i in sources for stage in ("sample", "judge", "pair")]
    _refuse_damaged(run, [run.prompts(), *of_sources])
    rows = list(pair_rows(run, k, form))
    for leftover in target.parent.glob(f".{glob.escape(target.name)}{PARTIAL}"):  # of a killed export
        leftover.unlink(missing_ok=True)
    write_file(target, _as_parquet(rows) if target.suffix == ".parquet" else _as_jsonl(rows))
    return len(rows)


def _refuse_damaged(run: RunFolder, folders: Sequence[StageFolder]) -> None:
    """UserError if an output of the stages, all of which are finished, is missing or has changed."""
    for folder in folders:
        manifest = folder.manifest()
        bad = [folder.manifest_path] if manifest is None else folder.damaged(manifest)
        if bad:
            raise UserError(
                f"{', '.join(map(str, bad))} is missing or has changed since it was written; `prefloop run {run} "
                "--repair` rebuilds it."
            )


def _refuse_existing(target: Path) -> None:
    check_path(target, "an export")
    if target.exists():
        raise UserError(f"{target} exists already; choose another path, or remove it.")


def pair_rows(run: RunFolder, k: int, form: PairFormat) -> Iterator[Json]:
    """The pairs in their order: prompt, chosen, rejected, their scores, and where they come from."""
    pairs = tables.read(run.stage(k, "pair").pairs).to_pylist()
    texts, scores = _responses(run, k)
    offline = run.stage(k, "pair").offline_prompts
    files = [run.prompts().path / "train.parquet", *([offline] if offline.exists() else [])]
    prompts = {row.id: row.messages for path in files for row in read_table(tables.read(path))}
    for pair in pairs:
        chosen, rejected = pair["chosen_id"], pair["rejected_id"]
        if missing := [one for one in (chosen, rejected) if one not in texts]:
            raise UserError(f"The response {missing[0]} of a pair is not among the samples of {run}; use --repair.")
        yield {
            **_shaped(prompts[pair["prompt_id"]], texts[chosen], texts[rejected], form),
            "score_chosen": scores.get(chosen),
            "score_rejected": scores.get(rejected),
            "prompt_id": pair["prompt_id"],
            "iteration": pair["source_iteration"],
        }


def _responses(run: RunFolder, k: int) -> tuple[dict[str, str], dict[str, float | None]]:
    """Texts of the responses behind the pairs by id, and the scores of those that a judge has seen."""
    own, others = run.response_files(k)
    texts, scores = dict[str, str](), dict[str, float | None]()
    for path in (*own, *others):
        texts.update(_columns(path, "response_id", "text"))
        verdicts = run.verdicts_of(path)
        if verdicts.exists():
            scores.update(_columns(verdicts, "response_id", "score"))
    return texts, scores


def _columns(path: Path, key: str, value: str) -> dict[str, Any]:
    table = tables.read(path, [key, value])
    return dict(zip(table[key].to_pylist(), table[value].to_pylist(), strict=True))


def _shaped(messages: list[dict[str, str]], chosen: str, rejected: str, form: PairFormat) -> Json:
    """As messages, to which a trainer applies its chat template, or as plain texts without a template."""
    if form == "standard":
        return {"prompt": "\n\n".join(m["content"] for m in messages), "chosen": chosen, "rejected": rejected}
    answers = {"chosen": chosen, "rejected": rejected}
    return {"prompt": messages} | {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}


def _as_jsonl(rows: list[Json]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def _as_parquet(rows: list[Json]) -> bytes:
    import pyarrow as pa

    return tables.table_bytes(pa.Table.from_pylist(rows))
