"""The pair stage's tables: shards to judged responses, relations to the trainer, answers from the prompts' columns."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from loop.config.pairs_section import PairsConfig
from loop.errors import UserError
from loop.pairing.data_answers import read_answers, render_answers, texts_of, wanted
from loop.pairing.io import read_judged, table_of
from loop.pairing.records import Made
from loop.prompts.chat_template import Renderer
from loop.prompts.row import PromptRow
from loop.store import tables
from loop.store.files import write_file
from loop.workers.train_service import read_preferences
from tests.helpers import tiny
from tests.helpers.campaigns import Cli, read, rows
from trainer.data import Pair, Ranked, Single

TOKENS = {"p-0": [1, 2], "p-1": [3], "q-0": [1, 2], "p-2": []}


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, Path]:
    """Responses to two prompts, not in the prompts' order, and their verdicts in another one."""
    responses = [
        {
            "prompt_id": id[0],
            "response_id": id,
            "prompt_token_ids": [7, 8],
            "token_ids": ids,
            "finish_reason": "stop",
            "logprobs": [-0.5] * len(ids),
        }
        for id, ids in TOKENS.items()
    ]
    beats = {"p-0": {"games": 1.0, "beats 1": 0.75}, "p-1": {"games": 1.0, "beats 0": 0.25}}
    verdicts = [
        {"response_id": id, "kind": "abstain" if id == "p-2" else "score", "parts": json.dumps(beats.get(id, {}))}
        | {"score": None if id == "p-2" else 0.5}
        for id in reversed(TOKENS)
    ]
    paths = tmp_path / "responses.parquet", tmp_path / "verdicts.parquet"
    write_file(paths[0], tables.to_bytes(responses, tables.RESPONSES, {}))
    write_file(paths[1], tables.to_bytes(verdicts, tables.VERDICTS, {}))
    return paths


def test_a_shard_is_read_as_groups_with_tokens_and_games(shard: tuple[Path, Path]) -> None:
    groups = dict(read_judged(*shard))
    assert [r.response_id for r in groups["p"]] == ["p-0", "p-1", "p-2"]
    assert [r.length for r in groups["p"]] == [2, 1, 0]
    assert groups["p"][0].token_ids_key == groups["q"][0].token_ids_key != groups["p"][1].token_ids_key
    assert [r.beats for r in groups["p"]] == [{"p-1": 0.75}, {"p-0": 0.25}, None]
    assert [(r.kind, r.score) for r in groups["p"]] == [("score", 0.5), ("score", 0.5), ("abstain", None)]


def saved(tmp_path: Path, *made: Made) -> Path:
    path = tmp_path / f"{made[0].kind}.parquet"
    write_file(path, tables.table_bytes(table_of(made, made[0].kind, 2, "sppo")))
    return path


def test_what_losses_need_reaches_the_trainer(shard: tuple[Path, Path], tmp_path: Path) -> None:
    pair = Pair("p", "p-0", "p-1", 1.0, 0.75, 0.25, 0.6, 0.4, 0.9, 0.5, True)
    bare = Pair("p", "p-1", "p-0")
    path = saved(tmp_path, pair, bare)
    assert pq.read_table(path)["rule"].to_pylist() == ["sppo", "sppo"]
    data = read_preferences([shard[0]], path)
    assert data.relations == (pair, bare)
    (group,) = data.groups
    assert [(r.id, list(r.token_ids), r.sampled_logp) for r in group.responses] == [
        ("p-0", [1, 2], -1.0),
        ("p-1", [3], -0.5),
    ]


def test_singles_and_groups_reach_the_trainer(shard: tuple[Path, Path], tmp_path: Path) -> None:
    singles = Single("p", "p-0", good=True), Single("q", "q-0", score=-0.5)
    assert read_preferences([shard[0]], saved(tmp_path, *singles)).relations == singles
    groups = Ranked("p", ("p-1", "p-0"), (0.9, 0.1)), Ranked("p", ("p-0", "p-1"))
    assert read_preferences([shard[0]], saved(tmp_path, *groups)).relations == groups


def test_pairs_of_an_earlier_version_are_read(shard: tuple[Path, Path], tmp_path: Path) -> None:
    names = ["prompt_id", "chosen_id", "rejected_id", "rule", "weight", "source_iteration"]
    old = pq.read_table(saved(tmp_path, Pair("p", "p-0", "p-1", 0.5))).select(names)
    pq.write_table(old, tmp_path / "old.parquet")
    assert read_preferences([shard[0]], tmp_path / "old.parquet").relations == (Pair("p", "p-0", "p-1", 0.5),)


# Answers from the data


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    from transformers import AutoTokenizer

    tiny.save_tokenizer(tmp_path / "policy")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "policy")
    tokenizer.chat_template = ASKING
    return tokenizer


ASKING = tiny.TEMPLATE.replace("a:", "{% if add_generation_prompt %}a:{% endif %}")
"""A template that begins an answer only where one is asked for."""


def prompt(id: str, target: str | None, **columns: Any) -> PromptRow:
    return PromptRow(id, [{"role": "user", "content": "2 + 2 ="}], target, columns)


def test_answers_become_the_policys_tokens_and_train_beside_samples(
    shard: tuple[Path, Path], tmp_path: Path, tokenizer: Any
) -> None:
    settings = PairsConfig(gold_fallback=True, gold_score=1.5)
    texts = texts_of([prompt("p", "4"), prompt("q", None), prompt("s", " ")], settings)
    path = tmp_path / "answers.parquet"
    write_file(path, tables.table_bytes(render_answers(texts, Renderer(tokenizer))))
    answers = read_answers(path, settings)
    assert answers.keys() == {"p"}
    gold = answers["p"].gold
    assert gold is not None
    assert (gold.response_id, gold.score, gold.length, answers["p"].negative) == ("p/gold", 1.5, 2, None)
    data = read_preferences([shard[0]], saved(tmp_path, Pair("p", "p/gold", "p-1")), [path])
    (group,) = data.groups
    added = group.responses[-1]
    assert (added.id, tokenizer.decode(added.token_ids), added.sampled_logp) == ("p/gold", "4<eos>", None)


def test_columns_name_gold_and_bad_answers(tmp_path: Path, tokenizer: Any) -> None:
    settings = PairsConfig(rule="d2o", negative_column="bad")
    (bad,) = texts_of([prompt("p", "4", bad="five")], settings)
    assert (bad.response_id, bad.text) == ("p/negative", "five")
    (gold,) = texts_of([prompt("p", "4", worked="2 + 2 = 4")], PairsConfig(rule="spin", gold_column="worked"))
    assert (gold.response_id, gold.text) == ("p/gold", "2 + 2 = 4")
    write_file(tmp_path / "a.parquet", tables.table_bytes(render_answers([gold], Renderer(tokenizer))))
    spun = read_answers(tmp_path / "a.parquet", PairsConfig(rule="spin"))["p"].gold
    assert spun is not None
    assert spun.score is None
    with pytest.raises(UserError, match=r"pairs\.gold_column: the prompts have no column 'wurked'; they have worked"):
        texts_of([prompt("p", "4", worked="")], PairsConfig(rule="spin", gold_column="wurked"))
    assert not wanted(PairsConfig())


def test_of_a_conversation_the_answer_to_the_prompt_is_taken() -> None:
    settings = PairsConfig(rule="spin", gold_column="talk")
    said = (("user", "2 + 2 ="), ("assistant", "4"), ("user", "Why?"), ("assistant", "So."))
    talk = [{"role": role, "content": content} for role, content in said]
    (gold,) = texts_of([prompt("p", None, talk=talk)], settings)
    assert gold.text == "4"
    assert texts_of([prompt("p", None, talk=[])], settings) == []
    for without in (talk[2:], talk[:1]):
        with pytest.raises(UserError, match=r"pairs\.gold_column: .* has no answer to its prompt \('2 \+ 2 ='\)"):
            texts_of([prompt("p", None, talk=without)], settings)


@pytest.fixture
def asking_model(tmp_path: Path) -> Path:
    folder = tiny.save_model(tmp_path / "asking")
    template = folder / "chat_template.jinja"
    assert template.read_text(encoding="utf-8") == tiny.TEMPLATE
    template.write_text(ASKING, encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_campaign_learns_from_gold_answers_and_then_from_labels(
    cli: Cli, settings: dict[str, Any], asking_model: Path
) -> None:
    settings["model"] = {"base": str(asking_model)}
    settings["pairs"] = {"rule": "spin", "per_prompt": 2}
    settings["per_iteration"] = {2: {"pairs.rule": "labels", "train.loss": "kto"}}  # a later one falls back to both
    run = cli.run(cli.write(settings))
    pairs, manifest = rows(run / "iter-001/pair/pairs.parquet"), read(run / "iter-001/pair/manifest.json")
    assert {pair["chosen_id"] for pair in pairs} == {f"{pair['prompt_id']}/gold" for pair in pairs}
    assert manifest["outputs"].keys() == {"pairs.parquet", "answers.parquet"}
    assert read(run / "iter-001/train/manifest.json")["counts"]["pairs"] == len(pairs)
    singles = rows(run / "iter-002/pair/singles.parquet")
    assert {single["good"] for single in singles} == {True, False}
    assert read(run / "iter-002/pair/manifest.json")["counts"]["responses"]["used"] == len(singles)
    ended = cli("show", "campaign@1")
    assert (ended.code, "pairs (chosen>rejected): gold>" in ended.out) == (0, True), ended.out + ended.err
