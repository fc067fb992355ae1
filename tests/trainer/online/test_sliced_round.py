"""A round whose data come slice by slice: one optimizer, one schedule and one reference over all of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.architectures import build
from tests.helpers.logs import log_of
from trainer.data import Pair, PreferenceData, PromptGroup, Response
from trainer.errors import TrainerError
from trainer.files import PARTIAL
from trainer.online.publish import Publisher
from trainer.online.sliced_round import SlicedRound
from trainer.optimizer import learning_rate
from trainer.round import train_round
from trainer.score import ResponseScorer
from trainer.settings import LoraSettings, TrainSettings
from trainer.spec import RoundSpec

Spec = Callable[..., RoundSpec]
NOTHING = PreferenceData((), ())


def silent(_: dict[str, Any]) -> None:
    """A report that nobody reads."""


def part(data: PreferenceData, prompts: Sequence[int]) -> PreferenceData:
    """Some prompts of the data with their relations."""
    groups = tuple(data.groups[p] for p in prompts)
    ids = {group.id for group in groups}
    return PreferenceData(groups, tuple(pair for pair in data.relations if pair.prompt_id in ids))


@pytest.fixture
def slices(toy_data: PreferenceData) -> list[PreferenceData]:
    """16 pairs, nothing, 8 pairs, 8 pairs: with 8 pairs a step 2, 0, 1 and 1 steps."""
    return [part(toy_data, [0, 1, 2, 3]), NOTHING, part(toy_data, [4, 5]), part(toy_data, [6, 7])]


def feed(spec: RoundSpec, slices: Sequence[PreferenceData], report: Callable[[dict[str, Any]], None] = silent) -> Any:
    """Open the round and give it all that it still wants; its summary."""
    here = SlicedRound(spec, len(slices), report=report)
    while here.next < len(slices):
        here.train(slices[here.next])
    return here.close()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_round_of_one_slice_is_an_ordinary_round(make_spec: Spec, toy_data: PreferenceData) -> None:
    ordinary, online = make_spec("ordinary", epochs=2), make_spec("online", epochs=2, sync_every=8)
    expected = train_round(ordinary, toy_data, report=silent)
    found = feed(online, [toy_data])
    assert_equal(online.out, ordinary.out)
    log = log_of(online.work)
    assert [(line.pop("slice"), line.pop("staleness")) for line in log] == [(0, at) for at in range(8)]
    assert log == log_of(ordinary.work)
    assert (found.steps, found.pairs, found.layout) == (8, 32, "tree")
    assert (expected.steps, expected.pairs, expected.layout) == (8, 32, "tree")


def test_steps_staleness_and_learning_rate_go_by_slices(make_spec: Spec, slices: list[PreferenceData]) -> None:
    spec = make_spec(sync_every=2)
    summary = feed(spec, slices)
    log = log_of(spec.work)
    assert [(line["step"], line["slice"], line["staleness"], line["pairs"]) for line in log] == [
        (0, 0, 0, 8),
        (1, 0, 1, 8),
        (2, 2, 0, 8),
        (3, 3, 0, 8),
    ]
    # done before the step: 0/8, 1/8, 2/4 and 3/4 of the prompts, in steps of that slice's kind
    expected = [learning_rate(at, of, spec.settings) for at, of in ((0, 8), (1, 8), (2, 4), (3, 4))]
    assert [line["learning_rate"] for line in log] == expected
    assert (summary.steps, summary.pairs, summary.notes) == (4, 32, ())
    assert summary.sampler_gap is None


def test_the_reference_stays_what_it_was_before_the_first_slice(
    make_spec: Spec, toy_data: PreferenceData, tmp_path: Path
) -> None:
    spec, last = make_spec(loss="dpo", sync_every=1), part(toy_data, [5])
    here = SlicedRound(spec, 2, report=silent)
    here.train(part(toy_data, [0, 1]))
    here.publish(tmp_path / "handed" / "slice-1", number_format="float32")
    here.train(last)
    now, before = (
        ResponseScorer(folder, precision="fp32").score(last.groups, lambda _: None)[0]
        for folder in (tmp_path / "handed" / "slice-1", spec.policy)
    )
    moved = [a - b for a, b in zip(now, before, strict=True)]
    margins = [moved[int(pair.chosen_id[1:])] - moved[int(pair.rejected_id[1:])] for pair in last.relations]
    line = log_of(spec.work)[-1]
    assert line["margin"] == pytest.approx(0.1 * sum(margins) / len(margins), abs=1e-6)
    assert abs(line["margin"]) > 1e-3, "a reference that followed the policy would give 0"


def test_the_log_says_how_far_the_policy_is_from_the_sampler(make_spec: Spec, toy_data: PreferenceData) -> None:
    """The sampler of both slices is the policy before the first step: exact at step 0, off after an update."""
    said = ResponseScorer(make_spec().policy, precision="fp32").score(toy_data.groups, lambda _: None)
    groups = tuple(
        replace(g, responses=tuple(replace(r, sampled_logp=v) for r, v in zip(g.responses, values, strict=True)))
        for g, values in zip(toy_data.groups, said, strict=True)
    )
    data, spec = PreferenceData(groups, toy_data.relations), make_spec(sync_every=1)
    summary = feed(spec, [part(data, [0, 1]), part(data, [2, 3])])
    first, second = (line["sampler_gap"] for line in log_of(spec.work))
    assert first < 1e-5 < 1e-3 < second
    assert summary.sampler_gap == pytest.approx((first + second) / 2), "both steps are the first of their slice"


CASES: dict[str, dict[str, Any]] = {
    "dpo": {},
    "bf16": {"precision": "bf16-autocast"},
    "lora": {"lora": LoraSettings(rank=4, alpha=8)},
    "moving reference": {"loss": {"name": "tr_dpo", "tau": 2}},
    "whole distribution": {"loss": "tdpo2"},
}


def stopped(spec: RoundSpec, slices: Sequence[PreferenceData], step: int) -> None:
    """Feed the round until it has made so many steps, and drop it there."""

    def report(said: dict[str, Any]) -> None:
        if said["phase"] == "train" and said["done"] == step and "loss" in said:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        feed(spec, slices, report)


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_round_ends_with_the_same_bits(make_spec: Spec, slices: list[PreferenceData], case: str) -> None:
    options = {"sync_every": 2, "checkpoint_every": 1} | CASES[case]
    whole, broken = make_spec("whole", **options), make_spec("broken", **options)
    feed(whole, slices)
    for step in (2, 3):  # in the first slice, then in the one after the empty one
        stopped(broken, slices, step)
    assert feed(broken, slices).notes == ("resumed at step 2",)
    assert_equal(whole.out, broken.out)
    assert log_of(whole.work) == log_of(broken.work)


def test_a_round_goes_on_in_the_slice_of_its_checkpoint(make_spec: Spec, slices: list[PreferenceData]) -> None:
    spec = make_spec(sync_every=2, checkpoint_every=1)
    stopped(spec, slices, 2)
    again = SlicedRound(spec, len(slices), report=silent)
    assert (again.next, again.steps, again.trained) == (0, 1, 1), "one of its two steps is in the checkpoint"
    with pytest.raises(TrainerError, match="Slice 0 of the round was begun with different data"):
        again.train(slices[2])
    again.train(slices[0])
    assert (again.next, again.steps, again.trained) == (1, 2, 1)
    with pytest.raises(TrainerError, match="belongs to another round: it differs in slices"):
        SlicedRound(spec, len(slices) + 1, report=silent)


def test_a_finished_round_wants_nothing_more(make_spec: Spec, slices: list[PreferenceData]) -> None:
    spec = make_spec(sync_every=2)
    summary = feed(spec, slices)
    again = SlicedRound(spec, len(slices), report=silent)
    assert (again.next, again.trained, again.steps) == (4, 4, 4)
    assert again.close() == summary


def test_another_model_can_be_the_reference(
    make_spec: Spec, make_policy: Callable[..., Path], slices: list[PreferenceData]
) -> None:
    other = {"reference": make_policy(seed=1), "reference_hash": "other"}
    ordinary, online = make_spec("ordinary", **other), make_spec("online", sync_every=4, **other)
    train_round(ordinary, slices[0], report=silent)
    feed(online, slices[:1])
    assert_equal(online.out, ordinary.out)


def test_slices_without_a_trainable_pair_are_passed_over(make_spec: Spec, toy_data: PreferenceData) -> None:
    group = PromptGroup("twin", [1, 2], (Response("a", [5]), Response("b", [5])))
    twins = PreferenceData((group,), (Pair("twin", "a", "b"),))
    spec = make_spec(sync_every=1)
    summary = feed(spec, [twins, part(toy_data, [0]), twins])
    assert (summary.steps, summary.pairs, summary.dropped) == (1, 4, {"identical responses": 2})
    with pytest.raises(TrainerError, match="None of the round's pairs can be trained on: 1 identical responses"):
        feed(make_spec("other", sync_every=1), [twins, NOTHING])


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, alpha=8)], ids=["all weights", "lora"])
def test_the_weights_handed_over_last_are_the_candidates(
    make_spec: Spec, slices: list[PreferenceData], tmp_path: Path, lora: LoraSettings | None
) -> None:
    spec, handed = make_spec(sync_every=2, lora=lora), tmp_path / "handed"
    here = SlicedRound(spec, len(slices), report=silent)
    for at, data in enumerate(slices):
        here.train(data)
        here.publish(handed / f"{at}", number_format="bfloat16" if at == 2 else "float32")
        names = {path.name for path in handed.iterdir()}
        assert names == {f"{at}", f"{at - 1}{PARTIAL}"} if at else {"0"}, "older ones are gone"
        if at == 2:
            kinds = {tensor.dtype for tensor in weights(handed / "2").values()}
            assert kinds == {torch.bfloat16}
    here.close()
    assert_equal(handed / "3", spec.out)
    assert (
        not torch.equal(weights(handed / "3")["model.norm.weight"], weights(spec.policy)["model.norm.weight"]) or lora
    )
    assert (handed / "3" / "tokenizer.json").read_bytes() == (spec.policy / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, alpha=8)], ids=["all weights", "lora"])
def test_hand_overs_take_turns_in_two_files_and_each_holds_the_weights_of_its_time(
    make_spec: Spec, slices: list[PreferenceData], tmp_path: Path, lora: LoraSettings | None
) -> None:
    here = SlicedRound(make_spec(sync_every=2, lora=lora), len(slices), report=silent)
    again, anew = Publisher(), tmp_path / "anew"
    files: list[Path] = []
    written: list[int] = []
    for at, data in enumerate(slices):
        here.train(data)
        assert here.learner is not None
        before = {name: tensor.clone() for name, tensor in weights(files[-1]).items()} if files else {}
        model, policy = here.learner.model, here.running.spec.policy
        again.publish(model, tmp_path / "again" / f"{at}", policy=policy, number_format="bfloat16")
        Publisher().publish(model, anew / f"{at}", policy=policy, number_format="bfloat16")
        assert_equal(tmp_path / "again" / f"{at}", anew / f"{at}")
        if files:
            aside = files[-1].with_name(files[-1].name + PARTIAL)
            for name, tensor in weights(aside).items():
                assert torch.equal(tensor, before[name]), "the one handed over before is not written to"
        files.append(tmp_path / "again" / f"{at}")
        written.append((files[-1] / "model.safetensors").stat().st_ino)
    assert len(written) == 4
    assert written[0] != written[1]
    assert written[:2] == written[2:]


def test_a_window_that_a_later_slice_outgrows_calls_for_plain_rows(make_spec: Spec, tmp_path: Path) -> None:
    """The probe sees the first slice, whose sequences fit into the window of 16 tokens."""
    policy = build("mistral", tmp_path / "mistral")
    responses = (Response("a", [5, 6]), Response("b", [5, 7]))
    short = PreferenceData((PromptGroup("s", [1, 2], responses),), (Pair("s", "a", "b"),))
    long = PreferenceData((PromptGroup("l", list(range(3, 23)), responses),), (Pair("l", "a", "b"),))
    spec = make_spec(policy=policy, reference=policy, sync_every=1, row_tokens=16)
    feed(spec, [short, long])
    one, two = log_of(spec.work)
    assert one["tokens"] == 3, "as a tree: the prompt and the token that both responses begin with"
    assert two["tokens"] == 2 * 21, "by themselves: all but the last token of each sequence"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_steps": 5}, "max_steps cannot be used with sync_every 4: the number of steps"),
        ({"warm_start": {}}, "warm_start cannot be used"),
        ({"mix": {"path": "a.jsonl"}}, "mix cannot be used"),
        ({"probe_pairs": 2}, "probe_pairs cannot be used"),
        ({"select": "best"}, "select cannot be used"),
        ({"processes": 2}, "processes cannot be used with sync_every 4: the slices are trained in one process"),
        ({"sync_every": 0}, "greater than or equal to 1"),
    ],
)
def test_what_needs_the_whole_round_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainSettings.model_validate({"sync_every": 4} | changes)


def test_how_often_weights_are_synced_decides_the_candidate() -> None:
    assert TrainSettings().deciding["sync_every"] == "round"
    assert TrainSettings(sync_every=4).deciding["sync_every"] == 4
