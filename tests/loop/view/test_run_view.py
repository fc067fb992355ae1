"""A campaign in a notebook: tables with the numbers and texts of the run folder, which is left as it is."""

import json
import re
from pathlib import Path

import pytest

from loop.errors import UserError
from loop.store.files import read_json
from loop.store.run_folder import RunFolder
from loop.view.rows import Rows, look_up, of_dicts
from loop.view.run_view import RunView
from tests.helpers.campaigns import rows, times


@pytest.fixture
def campaign(reference: Path) -> RunView:
    return RunView.open(reference)


def test_metrics_have_a_row_per_iteration(campaign: RunView, reference: Path) -> None:
    frame = campaign.metrics().to_pandas()
    assert frame["iteration"].tolist() == list(campaign.iterations) == [0, 1, 2]
    state = [json.loads(line) for line in (reference / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert frame["eval/test/sampled"].tolist() == [it["test"]["sampled_accuracy"]["value"] for it in state]
    assert frame["promote/gain"].isna().tolist() == [True, False, False]
    assert frame["reason"].tolist()[1:] == [it["reason"] for it in state[1:]]
    assert campaign.metrics()[2].to_pandas()["eval/gate/greedy"].tolist() == frame["eval/gate/greedy"].tolist()[2:]


def test_steps_have_a_row_per_optimizer_step(campaign: RunView) -> None:
    frame = campaign.steps().to_pandas()
    logs = {k: (campaign.model(k).parent / "steps.jsonl").read_text(encoding="utf-8").splitlines() for k in (1, 2)}
    assert frame["iteration"].tolist() == [k for k, log in logs.items() for _ in log]
    assert frame["step"].tolist() == [i for log in logs.values() for i in range(len(log))]
    assert frame["train/loss"].tolist() == [json.loads(line)["loss"] for log in logs.values() for line in log]


@pytest.mark.parametrize(("which", "begun"), [("train", [1, 2]), ("gate", [0, 1, 2]), ("test", [0, 1, 2])])
def test_samples_are_the_responses_with_prompt_and_verdict(campaign: RunView, which: str, begun: list[int]) -> None:
    run = RunFolder(campaign.path)
    found = campaign.responses(which)  # type: ignore[arg-type]
    assert found.iterations == begun
    asked = {
        row["id"]: json.loads(row["messages"])[-1]["content"] for row in rows(run.prompts().path / f"{which}.parquet")
    }
    for k in begun:
        shards = run.judged_shards(k, which)
        stored, judged = (rows(*paths) for paths in zip(*shards, strict=True))
        verdicts = {row["response_id"]: row for row in judged}
        table = found[k].to_arrow().to_pylist()
        assert [row["response"] for row in table] == [row["text"] for row in stored]
        assert [row["tokens"] for row in table] == [len(row["token_ids"]) for row in stored]
        assert [row["score"] for row in table] == [verdicts[row["response_id"]]["score"] for row in stored]
        assert [row["prompt"] for row in table] == [asked[row["prompt_id"]] for row in stored]


def test_pairs_carry_the_texts_that_their_ids_name(campaign: RunView) -> None:
    texts = {row["response_id"]: row for row in campaign.responses().to_arrow().to_pylist()}
    table = campaign.pairs().to_arrow().to_pylist()
    assert len(table) == sum(len(rows(RunFolder(campaign.path).stage(k, "pair").pairs)) for k in (1, 2)) > 0
    for row in table:
        for side in ("chosen", "rejected"):
            sampled = texts[row[f"{side}_id"]]
            assert (row[side], row[f"{side}_score"], row["prompt"]) == (
                sampled["response"],
                sampled["score"],
                sampled["prompt"],
            )


def test_what_is_not_judged_yet_has_no_verdict(reference: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(reference, tmp_path / "run")
    (tmp_path / "run" / "iter-002" / "judge" / "shard-001.parquet").unlink()
    half = RunView.open(tmp_path / "run")
    kinds = half.responses()[2].to_pandas()["kind"]
    assert kinds.isna().sum() == 16
    assert len(half.verdicts()[2].to_arrow()) == len(kinds) - 16


def test_a_dataset_holds_the_same_rows(campaign: RunView) -> None:
    dataset = campaign.verdicts("gate")[1].to_dataset()
    assert dataset.to_list() == campaign.verdicts("gate")[1].to_arrow().to_pylist()


def test_nothing_is_read_before_it_is_asked_for() -> None:
    read: list[int] = []

    def part(k: int):  # type: ignore[no-untyped-def]
        read.append(k)
        yield of_dicts([{"k": k}])

    lazily = Rows("numbers", {k: (lambda k=k: part(k)) for k in (3, 1, 2)})  # type: ignore[misc]
    assert "numbers of iterations 1, 2, 3 (not read yet" in repr(lazily)
    assert read == []
    assert lazily[[3, 2]].to_arrow().to_pydict() == {"k": [2, 3]}
    assert read == [2, 3]
    next(lazily.batches())
    assert read == [2, 3, 1]
    with pytest.raises(UserError, match=r"There are no numbers of iteration 7; there are some of \[1, 2, 3\]"):
        lazily[7]
    assert Rows("numbers", {}).to_arrow().num_rows == 0


def test_rows_with_other_keys_and_unknown_ids_give_nulls() -> None:
    table = of_dicts([{"id": "a", "x": 1}, {"id": "b", "y": 2.0}])
    assert table.to_pylist() == [{"id": "a", "x": 1, "y": None}, {"id": "b", "x": None, "y": 2.0}]
    wanted = of_dicts([{"id": "b"}, {"id": "?"}, {"id": "a"}])["id"]
    assert look_up(table, "id", wanted)["x"].to_pylist() == [None, None, 1]


def test_a_campaign_is_shown_in_a_few_lines_and_nothing_is_written(campaign: RunView, reference: Path) -> None:
    before = times(reference)
    shown = repr(campaign)
    assert shown.splitlines()[0] == f"Campaign reference in {reference}: complete"
    assert len(shown.splitlines()) == 4
    for table in (
        campaign.metrics(),
        campaign.steps(),
        campaign.responses(),
        campaign.verdicts("test"),
        campaign.pairs(),
    ):
        assert table.to_arrow().num_rows > 0
    assert campaign.settings(2).sampling.n == 4
    assert json.loads(json.dumps(campaign.decision(1))) == read_json(RunFolder(reference).promotion(1))
    assert campaign.decision(7) is None
    assert (campaign.model(0) / "config.json").exists()
    assert times(reference) == before


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no run 'nowhere'"):
        RunView.open("nowhere", runs=tmp_path)


def test_the_guide_does_what_it_says(campaign: RunView) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
    lines = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[2]
    for line in lines.splitlines():
        assert len(eval(line, {"campaign": campaign})) > 0
    for name in re.findall(r"`campaign\.(\w+)", page):
        assert hasattr(RunView, name)
