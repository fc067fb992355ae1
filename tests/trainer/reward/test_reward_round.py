"""Reward models from start to end on a tiny model: what they compute, what they write, what they refuse."""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainer.data import Pair, PreferenceData, PromptGroup, Response
from trainer.errors import TrainerError
from trainer.model import Arithmetic
from trainer.reward import round as reward_round
from trainer.reward.model import RewardScorer, load_reward_model, padded_rewards
from trainer.reward.round import RewardSpec, train_reward, with_end
from trainer.reward.settings import RewardSettings
from trainer.reward.steps import RewardContext, accumulate_rewards
from trainer.scorer import to_batch
from trainer.tree.encode import encode_plain_row, encode_tree_row
from trainer.tree.rows import plan_rows, row_trees

ROOT = Path(__file__).parents[3]
PAD = 2
CPU = Arithmetic(torch.device("cpu"), "fp32")
Make = Callable[..., RewardSpec]


def silent(_: dict[str, Any]) -> None:
    """A report that nobody reads."""


@pytest.fixture
def make(tmp_path: Path, policy: Path) -> Make:
    """A reward model's spec in a folder of its own; keyword arguments of the spec or its settings replace defaults."""

    def made(name: str = "reward", **changes: Any) -> RewardSpec:
        own = {key: value for key, value in changes.items() if key in RewardSettings.model_fields}
        quick = {"precision": "fp32", "learning_rate": 5e-3, "batch_pairs": 8, "row_tokens": 64, "checkpoint_every": 0}
        settings = RewardSettings.model_validate(quick | {"held_out": 0.25} | own)
        folder = tmp_path / name
        spec = RewardSpec(policy, "base", policy, PAD, folder / "work", folder / "out", settings, 0, 1, "A toy.")
        return replace(spec, **{key: value for key, value in changes.items() if key not in own})

    return made


@pytest.fixture
def model(policy: Path) -> Any:
    return load_reward_model(policy, CPU, pad_id=PAD, head_scale=1.0, seed=0)


def rewards_alone(model: Any, prompt: Sequence[int], response: Sequence[int]) -> float:
    """The head on the last hidden state of one unpadded sequence."""
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([[*prompt, *response]])).last_hidden_state
        return float(model.score.weight[0] @ hidden[0, -1])


def log(spec: RewardSpec) -> list[dict[str, Any]]:
    lines = (spec.work / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


# ---- rewards ----


@pytest.mark.parametrize("encode", [encode_tree_row, encode_plain_row])
def test_a_reward_is_read_at_the_last_token_of_the_response(
    model: Any, toy_data: PreferenceData, encode: Callable[..., Any]
) -> None:
    trees = [(group.token_ids, [r.token_ids for r in group.responses]) for group in with_end(toy_data).groups[:3]]
    row = to_batch(encode(trees), device=torch.device("cpu"), mask_dtype=torch.float32)
    with torch.no_grad():
        rewards = RewardScorer(model)(row)
    expected = [rewards_alone(model, g.token_ids, r.token_ids) for g in toy_data.groups[:3] for r in g.responses]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-5)
    early = [rewards_alone(model, g.token_ids, r.token_ids[:-1]) for g in toy_data.groups[:3] for r in g.responses]
    assert max(abs(a - b) for a, b in zip(expected, early, strict=True)) > 0.1  # one token earlier is another reward


def test_responses_that_share_their_beginning_keep_their_own_rewards(model: Any) -> None:
    """One response is a prefix of the other, so its last token lies inside the other's branch."""
    group = PromptGroup("p", [5, 6], (Response("short", [7, 8]), Response("long", [7, 8, 9])))
    ((prompt, responses),) = [
        (g.token_ids, [r.token_ids for r in g.responses]) for g in with_end(PreferenceData((group,), ())).groups
    ]
    encoded = encode_tree_row([(prompt, responses)])
    assert encoded.encoded == 5
    with torch.no_grad():
        rewards = RewardScorer(model)(to_batch(encoded, device=torch.device("cpu"), mask_dtype=torch.float32))
    expected = [rewards_alone(model, [5, 6], ids) for ids in ([7, 8], [7, 8, 9])]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-5)


def test_rewards_do_not_depend_on_batch_or_padding(model: Any) -> None:
    sequences = [[5, 6, 7], [5, 6, 8, 9, 10, 11, 12], [13, 14], [5, PAD, 7, 8]]
    with torch.no_grad():
        together = padded_rewards(model, sequences)
        alone = torch.cat([padded_rewards(model, [ids]) for ids in sequences])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert alone.tolist() == pytest.approx([rewards_alone(model, ids, []) for ids in sequences], abs=1e-5)


def test_the_new_head_is_as_wide_as_asked_and_a_head_of_zeros_knows_nothing(make: Make, policy: Path) -> None:
    heads = [load_reward_model(policy, CPU, pad_id=PAD, head_scale=s, seed=0).score.weight for s in (1.0, 0.5, 0.0)]
    torch.testing.assert_close(heads[1], heads[0] / 2)
    assert float(heads[0].detach().std()) == pytest.approx(32**-0.5, rel=0.3)
    assert not heads[2].any()


def test_a_head_of_zeros_starts_at_ln_2(make: Make, toy_data: PreferenceData) -> None:
    summary = train_reward(make(head_scale=0.0, max_steps=2), toy_data, report=silent)
    assert summary.first["loss"] == pytest.approx(0.6931472, abs=1e-7)
    assert (summary.first["accuracy"], summary.first["margin"]) == (0.5, 0.0)
    assert summary.last["margin"] != 0.0


# ---- the loss of a step ----


def gradients(model: Any, data: PreferenceData, row_tokens: int, layout: Any) -> tuple[dict[str, float], torch.Tensor]:
    settings = RewardSettings(batch_pairs=64, row_tokens=row_tokens).as_round
    plan = plan_rows(with_end(data), settings, seed=0, layout=layout)
    assert len(plan.steps) == 1
    model.zero_grad()
    context = RewardContext(RewardScorer(model), with_end(data), CPU, layout, 0.01)
    metrics = accumulate_rewards(context, plan.steps[0], number=0, tick=lambda: None)
    return metrics, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_rows_and_layout_change_neither_loss_nor_gradient(model: Any, toy_data: PreferenceData) -> None:
    weighted = tuple(replace(pair, weight=1 + i % 3, margin=0.1 * i) for i, pair in enumerate(toy_data.relations))
    data = replace(toy_data, relations=weighted)
    whole, expected = gradients(model, data, 4096, "plain")
    for row_tokens, layout in ((48, "plain"), (4096, "tree"), (48, "tree")):
        metrics, found = gradients(model, data, row_tokens, layout)
        assert metrics["loss"] == pytest.approx(whole["loss"], abs=1e-5)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_loss_of_a_step_by_hand(model: Any) -> None:
    group = PromptGroup("p", [5, 6], tuple(Response(str(i), [7 + i, 20 + i]) for i in range(4)))
    data = PreferenceData((group,), (Pair("p", "0", "1", margin=0.5), Pair("p", "2", "3", weight=2.0)))
    r = [rewards_alone(model, [5, 6], response.token_ids) for response in group.responses]
    softplus = torch.nn.functional.softplus
    first = float(softplus(torch.tensor(-(r[0] - r[1] - 0.5)))) + 0.01 * (r[0] + r[1]) ** 2
    second = float(softplus(torch.tensor(-(r[2] - r[3])))) + 0.01 * (r[2] + r[3]) ** 2
    metrics, _ = gradients(model, data, 4096, "tree")
    assert metrics["loss"] == pytest.approx((first + 2 * second) / 2, abs=1e-5)
    assert metrics["margin"] == pytest.approx((r[0] - r[1] + r[2] - r[3]) / 2, abs=1e-5)


# ---- whole trainings ----


def test_training_orders_pairs_and_writes_a_folder_that_transformers_score_alike(
    make: Make, toy_data: PreferenceData, policy: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    spec = make(epochs=12)
    summary = train_reward(spec, toy_data, report=silent)
    assert summary.last["accuracy"] > 0.9 > 0.8 > summary.first["accuracy"]
    assert (summary.pairs, summary.held_out) == (24, 8)
    assert summary.after is not None
    assert summary.before is not None
    assert summary.after.pairs == summary.before.pairs == 8
    assert summary.after.margin != summary.before.margin
    assert summary.layout == "tree"
    assert summary.padding_gap < 1e-4

    loaded = AutoModelForSequenceClassification.from_pretrained(spec.out).eval()
    assert (loaded.config.num_labels, loaded.config.pad_token_id) == (1, PAD)
    assert (spec.out / "tokenizer.json").read_bytes() == (policy / "tokenizer.json").read_bytes()
    assert "8 held-out pairs" in (spec.out / "README.md").read_text(encoding="utf-8")
    ids = {(g.id, r.id): [*g.token_ids, *r.token_ids] for g in toy_data.groups for r in g.responses}
    sides = [[ids[p.prompt_id, p.responses[side]] for p in toy_data.relations] for side in (0, 1)]
    with torch.no_grad():
        chosen, rejected = (padded_rewards(loaded, sequences) for sequences in sides)
    assert float((chosen > rejected).float().mean()) > 0.7  # 24 pairs were trained on, 8 were not


def test_centring_draws_the_mean_reward_to_zero(make: Make, toy_data: PreferenceData) -> None:
    lasts = {}
    for centre in (0.0, 1.0):
        spec = make(f"centre-{centre}", centre=centre, epochs=6, held_out=0.0, head_scale=3.0, learning_rate=2e-2)
        summary = train_reward(spec, toy_data, report=silent)
        assert abs(summary.first["reward_mean"]) > 0.3
        lasts[centre] = abs(summary.last["reward_mean"])
    assert lasts[1.0] < 0.4 * lasts[0.0], lasts


def test_counts_add_up_and_a_finished_model_is_not_trained_again(make: Make, toy_data: PreferenceData) -> None:
    data = replace(toy_data, relations=(*toy_data.relations, Pair("p0", "r0", "r0")))
    spec = make(epochs=2)
    seen: list[dict[str, Any]] = []
    summary = train_reward(spec, data, report=seen.append)
    assert summary.pairs + summary.held_out + sum(summary.dropped.values()) == len(data.relations)
    assert sum(line["pairs"] for line in log(spec)) == 2 * summary.pairs
    assert list(dict.fromkeys(event["phase"] for event in seen)) == ["load", "measure", "train", "save"]
    written = (spec.out / "model.safetensors").stat().st_mtime_ns
    again = train_reward(spec, data, report=silent)
    assert json.dumps(again.model_dump()) == json.dumps(summary.model_dump())
    assert (spec.out / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(TrainerError, match=r"already holds the result of another training, .* differs in data"):
        train_reward(spec, toy_data, report=silent)


def test_a_pad_token_beyond_the_vocabulary_gets_a_row_of_its_own(
    make: Make, toy_data: PreferenceData, policy: Path
) -> None:
    spec = make(pad_id=97, max_steps=1)
    assert train_reward(spec, toy_data, report=silent).padding_gap < 1e-4
    assert load_file(spec.out / "model.safetensors")["model.embed_tokens.weight"].shape[0] == 98


def test_bf16_arithmetic_keeps_the_head_in_fp32(make: Make, toy_data: PreferenceData) -> None:
    spec = make(precision="bf16-autocast", max_steps=2)
    summary = train_reward(spec, toy_data, report=silent)
    assert summary.padding_gap < 1e-4
    assert {tensor.dtype for tensor in load_file(spec.out / "model.safetensors").values()} == {torch.float32}
    dtypes = []
    loaded = load_reward_model(spec.base, CPU, pad_id=PAD, head_scale=1.0, seed=0)
    loaded.score.register_forward_hook(lambda _, inputs, output: dtypes.append((inputs[0].dtype, output.dtype)))
    row = plan_rows(with_end(toy_data), spec.settings.as_round, seed=0, layout="plain").steps[0].rows[0]
    batch = to_batch(encode_plain_row(row_trees(with_end(toy_data), row)), device=CPU.device, mask_dtype=torch.float32)
    with torch.no_grad(), Arithmetic(CPU.device, "bf16-autocast").autocast():
        RewardScorer(loaded)(batch)
    assert dtypes == [(torch.float32, torch.float32)]


# ---- kills ----

VICTIM = """
import os, pickle, signal, sys
from pathlib import Path
import trainer.reward.round
spec, data = pickle.loads(Path(sys.argv[1]).read_bytes())
def report(event):
    if event["phase"] == "train" and "loss" not in event and event["done"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
trainer.reward.round.train_reward(spec, data, report=report)
"""


def test_killed_and_resumed_equals_uninterrupted(make: Make, toy_data: PreferenceData, tmp_path: Path) -> None:
    whole, broken = (make(name, epochs=3, checkpoint_every=2, max_steps=8) for name in ("whole", "broken"))
    expected = train_reward(whole, toy_data, report=silent)
    job = tmp_path / "job.pickle"
    job.write_bytes(pickle.dumps((broken, toy_data)))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", VICTIM, str(job)], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not broken.out.exists()
    summary = train_reward(broken, toy_data, report=silent)
    assert summary.notes == ("resumed at step 4",)
    assert (summary.before, summary.after) == (expected.before, expected.after)
    ours, theirs = load_file(broken.out / "model.safetensors"), load_file(whole.out / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert log(broken) == log(whole)
    assert not list(broken.work.glob("checkpoint-*"))


def test_a_half_written_folder_is_never_taken_for_the_result(
    make: Make, toy_data: PreferenceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make(max_steps=3, checkpoint_every=2)

    def stop(*_: Any) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(reward_round, "write_card", stop)
        with pytest.raises(InterruptedError):
            train_reward(spec, toy_data, report=silent)
    assert not spec.out.exists()
    assert train_reward(spec, toy_data, report=silent).notes == ("resumed at step 2",)
    assert sorted(path.name for path in spec.out.parent.iterdir()) == ["out", "work"]


@pytest.mark.parametrize(("changes", "named"), [({"centre": 0.5}, "centre"), ({"base_hash": "other"}, "base")])
def test_a_checkpoint_of_another_training_is_refused(
    make: Make, toy_data: PreferenceData, changes: dict[str, Any], named: str
) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["done"] == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_reward(make(checkpoint_every=1), toy_data, report=stop)
    with pytest.raises(TrainerError, match=f"belongs to another round: it differs in {named}\\."):
        train_reward(make(checkpoint_every=1, **changes), toy_data, report=silent)


# ---- what is refused ----


def test_a_response_that_ends_with_the_pad_token_is_refused(make: Make, toy_data: PreferenceData) -> None:
    ending = toy_data.groups[0].responses[0].token_ids[-1]
    with pytest.raises(TrainerError, match=f"ends with the token {ending}, which is also the pad token"):
        train_reward(make(pad_id=ending), toy_data, report=silent)


def test_an_architecture_without_a_head_on_the_last_token_is_refused(
    make: Make, toy_data: PreferenceData, tmp_path: Path
) -> None:
    from transformers import BertConfig, BertLMHeadModel

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertLMHeadModel(BertConfig(vocab_size=97, is_decoder=True, **small)).save_pretrained(tmp_path / "bert")
    with pytest.raises(TrainerError, match=r"bert.* cannot become a reward model: its classifier is not one linear"):
        train_reward(make(base=tmp_path / "bert"), toy_data, report=silent)


def test_a_margin_that_is_not_a_number_names_the_prompt(make: Make, toy_data: PreferenceData) -> None:
    first, *others = toy_data.relations
    assert isinstance(first, Pair)
    data = replace(toy_data, relations=(replace(first, margin=float("nan")), *others))
    with pytest.raises(TrainerError, match=r"the loss is nan, with the prompts .*p0"):
        train_reward(make(held_out=0.0), data, report=silent)
