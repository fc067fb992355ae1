"""Exported models are the ones that were evaluated, with a card that says so; exported pairs are those trained on."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from loop.commands.export import export_model, export_pairs
from loop.commands.prune import Rules, plan_prune, remove
from loop.errors import UserError
from loop.report.model_card import model_card
from loop.store.files import read_json
from loop.store.model_folder import check_folder, weights_hash
from loop.store.run_folder import RunFolder
from tests.helpers.campaigns import Cli, copy_run, refusal, rows


@pytest.fixture
def run(reference: Path) -> RunFolder:
    return RunFolder(reference)


def test_an_exported_model_has_the_hash_that_was_evaluated_and_loads(run: RunFolder, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = export_model(run, 2, tmp_path / "out" / "model")
    check_folder(folder)
    assert weights_hash(folder) == read_json(run.promotion(2))["candidate"]["hash"]
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    assert all(path.stat().st_nlink == 1 for path in folder.rglob("*") if path.is_file())


def test_the_card_states_lineage_results_and_limits(run: RunFolder) -> None:
    card = model_card(run, 2)
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "transformers"
    test = read_json(run.stage(2, "eval").metrics)["test"]["sampled_accuracy"]
    assert f"{100 * test['value']:.1f} [{100 * test['low']:.0f}, {100 * test['high']:.0f}]" in body
    for k in (1, 2):
        decision = read_json(run.promotion(k))
        assert decision["reason"] in body
        assert decision["candidate"]["hash"][:16] in body
    for words in ("## Lineage", "## Judge", "Parity", "## Limits", "trained from the base model", "8 held-out"):
        assert words in body


def test_pairs_are_those_of_the_table_with_texts_and_scores(run: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    count = export_pairs(run, 1, path, "conversational")
    exported = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    table = rows(run.stage(1, "pair").pairs)
    sampled = {r["response_id"]: r for shard, _ in run.judged_shards(1, "train") for r in rows(shard)}
    asked = {row["id"]: json.loads(row["messages"]) for row in rows(run.prompts().path / "train.parquet")}
    assert count == len(exported) == len(table) > 0
    for row, pair in zip(exported, table, strict=True):
        assert row["prompt"] == asked[pair["prompt_id"]]
        assert row["chosen"] == [{"role": "assistant", "content": sampled[pair["chosen_id"]]["text"]}]
        assert row["rejected"] == [{"role": "assistant", "content": sampled[pair["rejected_id"]]["text"]}]
        assert (row["score_chosen"], row["score_rejected"]) == (1.0, 0.0)


def test_parquet_holds_the_same_rows_and_standard_ones_are_texts(run: RunFolder, tmp_path: Path) -> None:
    for form in ("conversational", "standard"):
        export_pairs(run, 1, tmp_path / f"{form}.jsonl", form)  # type: ignore[arg-type]
        export_pairs(run, 1, tmp_path / f"{form}.parquet", form)  # type: ignore[arg-type]
        lines = (tmp_path / f"{form}.jsonl").read_text(encoding="utf-8").splitlines()
        assert pq.read_table(tmp_path / f"{form}.parquet").to_pylist() == [json.loads(line) for line in lines]
    first = json.loads((tmp_path / "standard.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert all(isinstance(first[name], str) for name in ("prompt", "chosen", "rejected"))


def test_what_cannot_be_exported_is_refused(cli: Cli, run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="the base model itself"):
        export_model(run, 0, tmp_path / "new")
    with pytest.raises(UserError, match="exists already"):
        export_model(run, 1, tmp_path / "taken")
    with pytest.raises(UserError, match="has no pairs: it is the base model"):
        export_pairs(run, 0, tmp_path / "new.jsonl", "standard")
    with pytest.raises(UserError, match=r"\.jsonl or \.parquet"):
        export_pairs(run, 1, tmp_path / "new.csv", "standard")
    assert "--model DIR" in refusal(cli("export", f"{run}@1"))


def test_pruned_or_damaged_weights_are_not_exported(cli: Cli, reference: Path, tmp_path: Path) -> None:
    run = RunFolder(copy_run(reference, cli))
    remove(run, plan_prune(run, Rules(best=False, promoted=False, last=0)))
    with pytest.raises(UserError, match="was pruned"):
        export_model(run, 1, tmp_path / "new")
    config = run.stage(2, "train").model / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("2", "3", 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json is missing or has changed since it was written"):
        export_model(run, 2, tmp_path / "new")
    assert not (tmp_path / "new").exists()
