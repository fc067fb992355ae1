"""Whole rounds on a tiny model: what they check, what they write, what they refuse."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.logs import log_of
from trainer import reference as reference_module
from trainer.data import Pair, PreferenceData
from trainer.errors import TrainerError
from trainer.model import choose_arithmetic, load_model
from trainer.reference import ReferencePass
from trainer.round import train_round
from trainer.settings import LoraSettings, TrainSettings
from trainer.spec import RoundSpec
from trainer.steps import thinned
from trainer.summary import SUMMARY, read_summary

Spec = Callable[..., RoundSpec]
Maker = Callable[..., Path]


def silent(_: dict[str, Any]) -> None:
    """A report that nobody reads."""


def steps(spec: RoundSpec) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (spec.work / "steps.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def logits(folder: Path) -> torch.Tensor:
    model = load_model(folder, choose_arithmetic(TrainSettings(precision="fp32")))
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 40)[None]).logits


@pytest.mark.parametrize("precision", ["fp32", "bf16-autocast", "bf16"])
@pytest.mark.parametrize("layout", ["tree", "plain"])
def test_margins_are_exactly_zero_before_the_first_update(
    make_spec: Spec, toy_data: PreferenceData, precision: str, layout: str
) -> None:
    spec = make_spec(precision=precision, layout=layout, max_steps=2)
    summary = train_round(spec, toy_data, report=silent)
    assert summary.first["margin"] == 0.0
    assert summary.first["reward_accuracy"] == 0.5
    assert summary.first["dpo"] == pytest.approx(0.693147, abs=1e-6)
    assert summary.last["margin"] != 0.0


def test_training_moves_margins_up_and_dpo_falls(make_spec: Spec, toy_data: PreferenceData) -> None:
    summary = train_round(make_spec(epochs=6, nll_weight=0.0), toy_data, report=silent)
    assert summary.last["margin"] > 0.2
    assert summary.last["reward_accuracy"] > 0.9
    assert summary.last["dpo"] < summary.first["dpo"] - 0.1


def test_nll_raises_the_chosen_responses(make_spec: Spec, toy_data: PreferenceData) -> None:
    """The same pairs are scored again by a further round: with NLL the chosen ones are likelier than before."""
    gains = {}
    for alpha in (0.0, 1.0):
        spec = make_spec(f"alpha-{alpha}", nll_weight=alpha, epochs=6)
        before = train_round(spec, toy_data, report=silent).first["chosen_logp"]
        again = make_spec(f"again-{alpha}", policy=spec.out, reference=spec.out, max_steps=1)
        gains[alpha] = train_round(again, toy_data, report=silent).first["chosen_logp"] - before
    assert gains[1.0] > 1.0
    assert gains[1.0] > gains[0.0]


def test_the_candidate_folder_is_complete(make_spec: Spec, policy: Path, toy_data: PreferenceData) -> None:
    spec = make_spec(max_steps=1)
    summary = train_round(spec, toy_data, report=silent)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (spec.out / name).read_bytes() == (policy / name).read_bytes()
    assert all(tensor.dtype == torch.float32 for tensor in weights(spec.out).values())
    assert json.loads((spec.out / "config.json").read_text(encoding="utf-8"))["model_type"] == "llama"
    assert json.loads(json.dumps(summary.model_dump()))["steps"] == 1
    assert sorted(path.name for path in spec.out.parent.iterdir()) == ["out", "work"]


def test_a_finished_round_is_returned_not_repeated(make_spec: Spec, toy_data: PreferenceData) -> None:
    spec = make_spec(max_steps=1)
    first = train_round(spec, toy_data, report=silent)
    written = (spec.out / "model.safetensors").stat().st_mtime_ns
    assert train_round(spec, toy_data, report=silent) == first
    assert (spec.out / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(TrainerError, match=r"already holds the result of another training, .* learning_rate"):
        train_round(make_spec(max_steps=1, learning_rate=1e-4), toy_data, report=silent)


def test_counts_add_up(make_spec: Spec, toy_data: PreferenceData) -> None:
    twins = Pair("p0", "r0", "r0")
    data = PreferenceData(toy_data.groups, (*toy_data.relations, twins))
    spec = make_spec(epochs=2)
    summary = train_round(spec, data, report=silent)
    lines = steps(spec)
    assert summary.pairs + sum(summary.dropped.values()) == len(data.relations)
    assert sum(line["pairs"] for line in lines) == 2 * summary.pairs
    assert summary.encoded_tokens == sum(line["tokens"] for line in lines)
    assert summary.encoded_tokens < 0.5 * summary.plain_tokens
    assert summary.first == lines[0]
    assert summary.last == lines[-1]
    assert set(summary.seconds) == {"load", "plan", "reference", "compute", "save"}


@pytest.mark.parametrize("loss", ["dpo", "aot"])  # row by row, and over the whole step
def test_the_log_has_the_log_ratios_of_every_pair(make_spec: Spec, toy_data: PreferenceData, loss: str) -> None:
    spec = make_spec(loss=loss, epochs=2)
    train_round(spec, toy_data, report=silent)
    lines = log_of(spec.work)
    assert any(a for line in lines for a, _ in line["log_ratios"])
    for line in lines:
        assert len(line["log_ratios"]) == line["pairs"]
        for place, name in enumerate(("chosen_log_ratio", "rejected_log_ratio")):
            mean = sum(pair[place] for pair in line["log_ratios"]) / line["pairs"]
            assert mean == pytest.approx(line[name], abs=1e-3)


def test_of_a_large_step_the_log_has_pairs_from_end_to_end() -> None:
    pairs = [(float(-i), 0.0) for i in range(1000)]
    found = thinned(pairs)
    assert 32 < len(found) <= 64
    assert found == sorted(found)
    assert found[0] == (-999.0, 0.0)
    assert thinned(pairs[:64]) == sorted(pairs[:64])


def test_every_phase_is_reported(make_spec: Spec, toy_data: PreferenceData) -> None:
    seen: list[dict[str, Any]] = []
    train_round(make_spec(max_steps=2), toy_data, report=seen.append)
    assert list(dict.fromkeys(event["phase"] for event in seen)) == ["load", "reference", "train", "save"]
    assert all(0 <= event["done"] <= event["total"] for event in seen)
    assert [event["done"] for event in seen if "loss" in event] == [1, 2]


def test_the_same_round_gives_the_same_bits(make_spec: Spec, toy_data: PreferenceData) -> None:
    one, other = make_spec("one", max_steps=3), make_spec("other", max_steps=3)
    for spec in (one, other):
        train_round(spec, toy_data, report=silent)
    for name, tensor in weights(one.out).items():
        assert torch.equal(tensor, weights(other.out)[name])


def test_small_updates_survive_in_fp32_where_bf16_loses_them(
    make_spec: Spec, policy: Path, toy_data: PreferenceData
) -> None:
    before = weights(policy)
    moved = {}
    for precision in ("bf16-autocast", "bf16"):
        spec = make_spec(precision, precision=precision, learning_rate=1e-7, warmup_share=0, max_steps=1)
        train_round(spec, toy_data, report=silent)
        rounded = {
            name: tensor.bfloat16().float() if precision == "bf16" else tensor for name, tensor in before.items()
        }
        after = weights(spec.out)
        moved[precision] = sum(int((after[name].float() != rounded[name]).sum()) for name in before)
    total = sum(tensor.numel() for tensor in before.values())
    assert moved["bf16-autocast"] > 0.8 * total
    assert moved["bf16"] < 0.01 * total


def test_another_reference_is_scored_and_the_policy_trained(
    make_spec: Spec, make_policy: Maker, policy: Path, toy_data: PreferenceData
) -> None:
    anchor = make_policy(7)
    spec = make_spec(reference=anchor, reference_hash="anchor", max_steps=1, learning_rate=1e-9)
    summary = train_round(spec, toy_data, report=silent)
    same = train_round(make_spec("same", max_steps=1), toy_data, report=silent)
    assert summary.first["chosen_logp"] == same.first["chosen_logp"]  # the policy was trained, not the reference
    assert summary.first["margin"] != 0.0
    swapped = make_spec("swapped", policy=anchor, policy_hash="anchor", reference_hash="policy", max_steps=1)
    assert train_round(swapped, toy_data, report=silent).first["margin"] == pytest.approx(
        -summary.first["margin"], abs=1e-5
    )
    for name, tensor in weights(policy).items():
        torch.testing.assert_close(weights(spec.out)[name], tensor, atol=1e-6, rtol=0)


def test_a_wrong_claim_that_reference_is_policy_is_caught(
    make_spec: Spec, make_policy: Maker, toy_data: PreferenceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ReferencePass.load

    def shifted(scoring: ReferencePass) -> Any:
        scored = real(scoring)
        return scored and [[row._replace(sum_R=row.sum_R + 1e-6) for row in step] for step in scored]

    monkeypatch.setattr(ReferencePass, "load", shifted)
    with pytest.raises(TrainerError, match="Step-0 check failed"):
        train_round(make_spec(), toy_data, report=silent)


def references_scored(spec: RoundSpec, data: PreferenceData) -> int:
    """How many rows the reference pass scores when the round runs (it is stopped before training)."""
    scored = []

    class Stop(Exception):
        pass

    def report(event: dict[str, Any]) -> None:
        if event["phase"] == "reference":
            scored.append(event)
        if event["phase"] == "train":
            raise Stop

    with pytest.raises(Stop):
        train_round(spec, data, report=report)
    return len(scored)


def test_reference_logprobs_are_reused_only_for_the_same_rows_weights_and_precision(
    make_spec: Spec, toy_data: PreferenceData
) -> None:
    spec = make_spec()
    assert references_scored(spec, toy_data) > 0
    assert references_scored(spec, toy_data) == 0
    assert references_scored(make_spec(learning_rate=1e-4), toy_data) == 0
    changed = (
        make_spec(row_tokens=64),
        make_spec(precision="bf16-autocast"),
        make_spec(policy_hash="other", reference_hash="other"),
        replace(make_spec(), seed=1),
    )
    for other in changed:
        assert references_scored(other, toy_data) > 0
        assert references_scored(other, toy_data) == 0


def test_a_reference_pass_goes_on_where_it_stopped(
    make_spec: Spec, toy_data: PreferenceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_module, "SAVE_SECONDS", 0.0)
    scored = []
    real = ReferencePass._score
    monkeypatch.setattr(ReferencePass, "_score", lambda *args: scored.append(args[2]) or real(*args))
    spec, whole = make_spec(max_steps=2), make_spec("whole", max_steps=2)

    def stop_at_three(event: dict[str, Any]) -> None:
        if event["phase"] == "reference" and event["done"] == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_round(spec, toy_data, report=stop_at_three)
    summary = train_round(spec, toy_data, report=silent)
    assert len(scored) == len(set(scored))  # no row twice
    assert summary.last["loss"] == train_round(whole, toy_data, report=silent).last["loss"]


def test_lora_trains_adapters_and_the_candidate_holds_them_merged(
    make_spec: Spec, policy: Path, toy_data: PreferenceData
) -> None:
    from peft import PeftModel

    spec = make_spec(lora=LoraSettings(rank=4, alpha=8), learning_rate=2e-2, epochs=2)
    summary = train_round(spec, toy_data, report=silent)
    assert summary.first["margin"] == 0.0
    assert summary.last["margin"] > 0.05
    before, after = weights(policy), weights(spec.out)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name}
    base = load_model(policy, choose_arithmetic(spec.settings))
    adapted = PeftModel.from_pretrained(base, spec.out / "adapter").eval()
    with torch.no_grad():
        expected = adapted(input_ids=torch.arange(1, 40)[None]).logits
    torch.testing.assert_close(logits(spec.out), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(policy), expected, atol=1e-3)


def test_each_round_starts_a_new_adapter_on_the_merged_weights(make_spec: Spec, toy_data: PreferenceData) -> None:
    lora = LoraSettings(rank=4, alpha=8)
    first = make_spec("first", lora=lora, learning_rate=1e-2, max_steps=3)
    train_round(first, toy_data, report=silent)
    second = make_spec("second", lora=lora, policy=first.out, reference=first.out, max_steps=1)
    assert train_round(second, toy_data, report=silent).first["margin"] == 0.0


def test_weights_with_nan_are_named_before_training(
    make_spec: Spec, make_policy: Maker, toy_data: PreferenceData
) -> None:
    broken = make_policy(5)
    tensors = weights(broken)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainerError, match=r"hold NaN or infinity \(first in model\.norm\.weight\)"):
        train_round(make_spec(policy=broken, reference=broken, layout="plain"), toy_data, report=silent)


def test_exploding_training_stops_with_step_and_prompts(make_spec: Spec, toy_data: PreferenceData) -> None:
    with pytest.raises(TrainerError, match=r"Training stopped at step [1-9]\d*: .* with the prompts p\d"):
        train_round(make_spec(learning_rate=1e30, epochs=3), toy_data, report=silent)


def test_a_folder_without_weights_is_refused(
    make_spec: Spec, policy: Path, tmp_path: Path, toy_data: PreferenceData
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_bytes((policy / "config.json").read_bytes())
    with pytest.raises(TrainerError, match="no safetensors weights"):
        train_round(make_spec(policy=empty, reference=empty), toy_data, report=silent)


def test_a_reference_with_another_vocabulary_is_refused(
    make_spec: Spec, make_policy: Maker, toy_data: PreferenceData
) -> None:
    other = make_policy(1, vocab_size=101)
    with pytest.raises(TrainerError, match=r"97 ids, .* 101"):
        train_round(make_spec(reference=other, reference_hash="other"), toy_data, report=silent)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "JSONDecodeError"),
        ('{"identity": {}, "steps": "many"}', "steps: Input should be a valid integer"),
        ('{"steps": 1}', "KeyError"),
    ],
)
def test_a_damaged_record_names_its_file(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / SUMMARY
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TrainerError, match=f"{path} of a finished training is damaged .*{why}"):
        read_summary(tmp_path, {})
