"""Adaptive and wider sampling in a run: what is drawn, what a resume repeats, what is refused, what a plan says."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from judges.resolve import build_judge
from loop.campaign.stages.sample import widened
from loop.commands.plan import make_plan
from loop.config.load import LoadedConfig, load_config
from loop.config.sampling_section import AdaptiveSettings, DecodingOptions, SamplingConfig
from loop.errors import UserError
from loop.pairing.io import judged_groups
from loop.report.browser import books
from loop.report.data import read_run
from loop.seeds import seed_for
from loop.store import tables
from loop.store.files import write_file
from loop.store.run_folder import RunFolder
from loop.view.prompt_records import collect_prompts
from loop.view.status import collect
from tests.helpers.campaigns import Cli, events, read, rows

ADAPTIVE = {"n": 6, "adaptive": {"probe": 2, "keep": 0.8}}


@pytest.fixture(scope="module")
def run(_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to the pairs of iteration 1, whose alarms ring at once; tests only read it."""
    cli = Cli(tmp_path_factory.mktemp("adaptive"))
    settings = _settings | {"sampling": _settings["sampling"] | ADAPTIVE, "alarms": {"mixed": 1.0, "truncated": 0.0}}
    ended = cli("run", cli.write(settings), "--until", "1/pair")
    assert ended.code == 0, ended.out + ended.err
    (cli.runs / "campaign" / "said").write_text(ended.out, encoding="utf-8")
    return cli.runs / "campaign"


def sampled(run: Path, pattern: str = "shard-*") -> list[dict[str, Any]]:
    return rows(*sorted((run / "iter-001" / "sample").glob(f"{pattern}.parquet")))


def test_every_prompt_is_probed_and_then_gets_what_was_decided(run: Path) -> None:
    decision = read(run / "iter-001" / "sample" / "allocation.json")
    indices: dict[str, list[int]] = {}
    for row in sampled(run):
        indices.setdefault(row["prompt_id"], []).append(row["index"])
    assert len(indices) == 16
    assert {id: len(found) - 2 for id, found in indices.items() if len(found) > 2} == decision["more"]
    assert all(found == list(range(len(found))) for found in indices.values())
    assert 0 < sum(decision["more"].values()) < 4 * 16
    assert read(run / "iter-001" / "sample" / "manifest.json")["counts"]["responses"] == sum(map(len, indices.values()))


def test_seeds_go_on_by_index_and_every_response_is_judged_once(run: Path) -> None:
    found = sampled(run)
    assert all(row["seed"] == seed_for(0, 1, "train", row["prompt_id"], row["index"]) for row in found)
    verdicts = rows(*sorted((run / "iter-001" / "judge").glob("shard-*.parquet")))
    assert [row["response_id"] for row in verdicts] == [row["response_id"] for row in found]
    assert len({row["response_id"] for row in found}) == len(found)


def test_pairing_and_show_see_both_phases_of_a_prompt_together(run: Path) -> None:
    counts = read(run / "iter-001" / "pair" / "manifest.json")["counts"]
    assert sum(counts["responses"].values()) == len(sampled(run))
    assert sum(counts["prompts"].values()) == 16
    assert counts["signal"]["responses_per_prompt"] == len(sampled(run)) / 16
    members = {row["response_id"] for row in sampled(run, "shard-more-*")}
    pairs = rows(run / "iter-001" / "pair" / "pairs.parquet")
    across = [pair for pair in pairs if (pair["chosen_id"] in members) != (pair["rejected_id"] in members)]
    assert across, "no pair of a probed and a further response"
    shown = collect_prompts(RunFolder(run), 1, "train", None, 16)
    assert sum(len(prompt.responses) for prompt in shown) == len(sampled(run))
    assert len(shown) == 16


def test_the_report_shows_a_prompt_once_with_the_responses_of_both_phases(run: Path) -> None:
    (book,) = (one for one in books(read_run(RunFolder(run))) if one.name == "001-train")
    shown = [prompt for page in book.pages() for prompt in json.loads(page.text)["prompts"]]
    by_prompt: dict[str, list[str]] = {}
    for row in sampled(run):
        by_prompt.setdefault(row["prompt_id"], []).append(row["text"])
    assert [prompt["id"] for prompt in shown] == list(by_prompt)
    assert {prompt["id"]: [one["x"] for one in prompt["r"]] for prompt in shown} == by_prompt
    pairs = rows(run / "iter-001" / "pair" / "pairs.parquet")
    assert sum(len(prompt["pairs"]) for prompt in shown) == len(pairs)
    assert all(place >= 0 for prompt in shown for pair in prompt["pairs"] for place in pair)
    used = {id for pair in pairs for id in (pair["chosen_id"], pair["rejected_id"])}
    assert sum(one["u"] == "used" for prompt in shown for one in prompt["r"]) == len(used)


def test_the_signal_is_that_of_the_tables(run: Path) -> None:
    (_, it) = collect(RunFolder(run)).iterations
    found = sampled(run)
    tokens = sum(len(row["token_ids"]) for row in found)
    assert it.signal["entropy"] == pytest.approx(-sum(sum(row["logprobs"]) for row in found) / tokens)
    assert it.signal["length"] == pytest.approx(tokens / len(found))
    assert it.signal["truncated"] == sum(row["finish_reason"] == "length" for row in found) / len(found)


def test_alarms_are_printed_once_noted_and_shown(run: Path, tmp_path: Path) -> None:
    noted = events(run, "alarm")
    assert [event["name"] for event in noted] == ["mixed", "truncated"]
    said = (run / "said").read_text(encoding="utf-8")
    for event in noted:
        assert said.count(f"alarm: {event['text']}\n") == 1
    (_, it) = collect(RunFolder(run)).iterations
    assert [alarm.text for alarm in it.alarms] == [event["text"] for event in noted]
    assert "Iteration 1, alarm: only" in Cli(tmp_path)("status", run).out


def test_displacement_is_that_of_the_last_quarter_of_the_steps(reference: Path) -> None:
    steps = [json.loads(line) for line in (reference / "iter-001" / "train" / "steps.jsonl").read_text().splitlines()]
    late = [step["displacement_rate"] for step in steps[-(len(steps) // 4) :]]
    assert len(steps) >= 4
    signal = collect(RunFolder(reference)).iterations[1].signal
    assert signal["displacement"] == pytest.approx(sum(late) / len(late))
    assert signal["sampler_gap"] == read(reference / "iter-001" / "train" / "manifest.json")["counts"]["sampler_gap"]


@pytest.mark.slow
def test_a_second_phase_that_was_lost_comes_out_the_same(run: Path, cli: Cli) -> None:
    copy = cli.runs / "campaign"
    shutil.copytree(run, copy)
    for stage in ("sample", "judge", "pair"):
        (copy / "iter-001" / stage / "manifest.json").unlink()
    kept = {"shard-000.parquet", "shard-001.parquet", "shard-more-000.parquet"}
    for path in (copy / "iter-001").glob("*/*"):
        if path.name not in kept:
            path.unlink()
    shutil.copy(
        copy / "iter-001" / "sample" / "shard-000.parquet", copy / "iter-001" / "sample" / "shard-more-099.parquet"
    )
    before = {path: path.stat().st_mtime_ns for path in (copy / "iter-001").glob("*/shard-*00.parquet")}
    ended = cli("run", copy, "--until", "1/pair")
    assert ended.code == 0, ended.out + ended.err
    ours, theirs = (
        {path.relative_to(root): path.read_bytes() for path in sorted(root.glob("iter-001/*/*.parquet"))}
        for root in (copy, run)
    )
    assert ours == theirs
    assert read(copy / "iter-001" / "sample" / "allocation.json") == read(
        run / "iter-001" / "sample" / "allocation.json"
    )
    assert before == {path: path.stat().st_mtime_ns for path in before}


# ---- groups over two phases ----


def shard(folder: Path, name: str, groups: dict[str, list[str]]) -> tuple[Path, Path]:
    """A shard of responses with their verdicts."""
    ids = [(prompt, id) for prompt, members in groups.items() for id in members]
    made = [
        {"prompt_id": p, "response_id": id, "token_ids": [n], "finish_reason": "stop"} for n, (p, id) in enumerate(ids)
    ]
    verdicts = [{"prompt_id": p, "response_id": id, "kind": "score", "score": 1.0, "parts": "{}"} for p, id in ids]
    paths = folder / "sample" / name, folder / "judge" / name
    write_file(paths[0], tables.to_bytes(made, tables.RESPONSES, {}))
    write_file(paths[1], tables.to_bytes(verdicts, tables.VERDICTS, {}))
    return paths


def test_further_responses_join_their_prompts_in_order(tmp_path: Path) -> None:
    shards = [
        shard(tmp_path, "shard-000.parquet", {"p": ["p0"], "q": ["q0"]}),
        shard(tmp_path, "shard-001.parquet", {"r": ["r0"], "s": ["s0"]}),
        shard(tmp_path, "shard-more-000.parquet", {"q": ["q1", "q2"]}),
        shard(tmp_path, "shard-more-001.parquet", {"s": ["s1"]}),
    ]
    found = [(prompt, [one.response_id for one in members]) for prompt, members in judged_groups(shards)]
    assert found == [("p", ["p0"]), ("q", ["q0", "q1", "q2"]), ("r", ["r0"]), ("s", ["s0", "s1"])]
    with pytest.raises(AssertionError, match="x"):
        list(judged_groups([*shards[:2], shard(tmp_path, "shard-more-002.parquet", {"x": ["x1"]})]))


# ---- wider sampling ----


def load(tmp_path: Path, **sections: Any) -> LoadedConfig:
    """A campaign of four iterations with these sections."""
    (tmp_path / "p.jsonl").touch()
    settings: dict[str, Any] = {
        "iterations": 4,
        "prompts": {"source": "file", "path": str(tmp_path / "p.jsonl"), "train": 100, "gate": 3, "test": 2},
        "engine": {"kind": "transformers"},
        "judge": {"name": "exact"},
    }
    path = tmp_path / "campaign.yaml"
    path.write_text(yaml.safe_dump(settings | sections), encoding="utf-8")
    return load_config(path)


def with_mixed(folder: Path, *shares: float) -> RunFolder:
    """A run folder whose pair stages found these shares of mixed prompts."""
    run = RunFolder(folder / "run")
    for k, share in enumerate(shares, start=1):
        counts = {"pairs": 1, "signal": {"mixed": share}}
        run.stage(k, "pair").finish([], inputs={}, counts=counts, seconds={}, versions={})
    return run


def test_sampling_widens_once_for_each_iteration_with_too_few_mixed_prompts(tmp_path: Path) -> None:
    widen = {"below": 0.3, "temperature": 0.25, "n": 2, "temperature_at_most": 1.3, "n_at_most": 20}
    loaded = load(tmp_path, sampling={"n": 8, "temperature": 0.8, "widen": widen})
    run = with_mixed(tmp_path, 0.29, 0.5, 0.1)
    found = [widened(run, loaded, k) for k in (1, 2, 3, 4)]
    assert [(config.sampling.temperature, config.sampling.n) for config, _ in found] == [
        (0.8, 8),
        (1.05, 16),
        (1.05, 16),  # iteration 2 had enough: it stays as it is
        (1.3, 20),
    ]
    assert found[0][1] == ""
    assert "iteration 1 29%, iteration 3 10% (sampling.widen.below is 0.3)" in found[3][1]


def test_without_widen_or_without_a_number_nothing_changes(tmp_path: Path) -> None:
    run = with_mixed(tmp_path, 0.0)
    assert widened(run, load(tmp_path), 2) == (load(tmp_path).at(2), "")
    run.stage(1, "pair").finish([], inputs={}, counts={"pairs": 0}, seconds={}, versions={})
    loaded = load(tmp_path, sampling={"widen": {}})
    assert widened(run, loaded, 2) == (loaded.at(2), "")


def test_a_value_set_above_the_bound_stays() -> None:
    sampling = SamplingConfig.model_validate({"temperature": 1.6, "n": 100, "widen": {"n": 2.0}})
    assert (sampling.widened(3).temperature, sampling.widened(3).n) == (1.6, 100)


def test_a_sample_stage_records_all_settings_but_how_they_widen_and_what_they_accept() -> None:
    plain = SamplingConfig().recorded()
    without = {"widen", "exact", *DecodingOptions.model_fields}  # the options are recorded where they are given
    assert set(plain) == {f"sampling.{key}" for key in SamplingConfig.model_fields if key not in without}
    assert SamplingConfig.model_validate({"top_k": 5}).recorded() == plain | {"sampling.top_k": 5}
    assert SamplingConfig.model_validate({"widen": {}}).recorded() == plain
    adaptive = SamplingConfig.model_validate({"adaptive": {}}).recorded()
    assert adaptive["sampling.adaptive"] == {"probe": 4, "keep": 0.9, "different": None, "budget": 1.0}


# ---- refusals and the plan ----


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"sampling": {"n": 4, "adaptive": {}}}, "probe (4) leaves nothing of sampling.n (4)"),
        ({"sampling": {"n": 16, "adaptive": {"budget": 0.2}}}, "budget (0.2 of n=16) does not pay for the probe"),
        ({"sampling": {"widen": {"temperature": 0.0}}}, "widen changes nothing"),
        ({"sampling": {"adaptive": {}}, "pairs": {"gold_fallback": True}}, "pairs.gold_fallback"),
        (
            {"sampling": {"adaptive": {}}, "pairs": {"rule": "labels"}, "train": {"loss": "kto"}},
            "use one of correct_vs",
        ),
        ({"sampling": {"adaptive": {}}, "judge": {"name": "external"}, "eval": {"judge": {"name": "exact"}}}, "people"),
    ],
)
def test_what_cannot_be_adaptive_is_refused_with_the_way_out(tmp_path: Path, sections: Any, words: str) -> None:
    with pytest.raises(UserError, match="sampling") as caught:
        load(tmp_path, **sections)
    assert words in str(caught.value)


def test_a_judge_that_compares_a_prompts_responses_is_refused(tmp_path: Path) -> None:
    local = {"base_url": "http://localhost:1/v1", "model": "m"}
    loaded = load(tmp_path, sampling={"adaptive": {}}, judge={"name": "llm-compare", "args": local})
    with pytest.raises(UserError, match="judges them against each other"):
        make_plan(RunFolder(tmp_path / "run"), loaded, check=False)
    parts: list[dict[str, Any]] = [{"judge": "exact"}, {"judge": "length", "args": {"most": 9}}]
    assert not build_judge("combine", {"parts": parts}).compares
    scaled = [*parts[:1], parts[1] | {"normalise": "rank"}]
    assert build_judge("combine", {"parts": scaled}).compares
    paired = [*parts[:1], {"judge": "llm-compare", "args": local}]
    assert build_judge("combine", {"parts": paired}).compares


def test_a_plan_says_what_is_sampled_and_paid_at_most_and_as_expected(tmp_path: Path) -> None:
    judge = {"name": "llm-grade", "args": {"base_url": "http://localhost:1/v1", "model": "m"}}
    sampling = {"n": 16, "adaptive": {}, "widen": {"n": 2.0, "n_at_most": 32}}
    plan = make_plan(RunFolder(tmp_path / "run"), load(tmp_path, sampling=sampling, judge=judge), check=False).as_json()
    held_out = 5 * 5 * 5  # five evaluations of 3 + 2 prompts with 1 + 4 responses
    (calls,) = plan["judge_calls"]
    assert calls["calls"] == held_out + 100 * (16 + 3 * 32)
    first = plan["iterations"][0]
    assert first["responses"] == 1600
    share = first["responses_expected"] / 1600
    assert 0.4 < share < 0.7
    assert calls["calls_expected"] == pytest.approx(held_out + share * 100 * (16 + 3 * 32), rel=0.01)
    assert "4 to each first, then more where they pay until 90% of the expected pairs" in first["sample"]
    assert "up to temperature 1.3 and 32 responses" in plan["iterations"][3]["sample"]
    assert json.dumps(plan)


@pytest.mark.parametrize(("different", "at_most", "wanted"), [(None, 10, 10), (3, 10, 3), (3, 1, 1), (None, None, 1)])
def test_as_many_pairs_are_wanted_as_the_rule_can_use_and_the_setting_asks(
    different: int | None, at_most: int | None, wanted: int
) -> None:
    assert AdaptiveSettings(different=different).wanted(at_most) == wanted
