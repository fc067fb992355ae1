"""Models that answer tree rows wrongly without any error are noticed before the round, which then uses plain rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.architectures import VOCABULARY, build
from trainer import layout_probe as probe
from trainer.data import PreferenceData
from trainer.errors import TrainerError
from trainer.layout_probe import MOST_GAP, Gaps, choose_layout, how_wrong, probe_rows
from trainer.model import choose_arithmetic, load_model
from trainer.round import train_round
from trainer.scorer import RowBatch, RowScorer, to_batch
from trainer.settings import TrainSettings
from trainer.spec import RoundSpec

Spec = Callable[..., RoundSpec]
FOLDER = Path("models/policy")
LONGEST = 15
"""Tokens that a model reads of the longest sequence of the toy data: 7 of the prompt and 8 of the response."""


def gaps(folder: Path, data: PreferenceData, *, row_tokens: int = 60) -> Gaps:
    return gaps_of(load_model(folder, choose_arithmetic(TrainSettings(precision="fp32"))), data, row_tokens=row_tokens)


def gaps_of(model: Any, data: PreferenceData, *, row_tokens: int = 60) -> Gaps:
    return probe_rows(RowScorer(model), data, device=torch.device("cpu"), seed=0, row_tokens=row_tokens)


@pytest.mark.parametrize("family", ["llama-tied", "gemma2", "gpt2", "cohere"])
def test_sound_models_are_far_below_the_limit(family: str, tmp_path: Path, toy_data: PreferenceData) -> None:
    found = gaps(build(family, tmp_path), toy_data)
    assert found.tree < MOST_GAP / 10
    assert found.plain < MOST_GAP / 10


# rwkv, qwen3_next: linear attention; mamba refuses trees, mamba2 misreads them; gpt_neo has a window of 20 places,
# more than any sequence and less than the row
@pytest.mark.parametrize("family", ["rwkv", "qwen3_next", "mamba", "mamba2", "gpt_neo", "window"])
def test_the_round_falls_back_to_plain_rows_and_says_so(
    family: str, make_spec: Spec, tmp_path: Path, toy_data: PreferenceData, silent: Callable[[Any], None]
) -> None:
    window = {"sliding_window": LONGEST - 1} if family == "window" else {}
    model = build("mistral" if window else family, tmp_path / "model", **window)
    spec = make_spec(policy=model, reference=model, max_steps=1)
    summary = train_round(spec, toy_data, report=silent)
    assert summary.layout == "plain"
    assert summary.notes[0].startswith("plain rows, because tree rows are wrong on this model: ")
    assert summary.probe_gap is None or summary.probe_gap > 10 * MOST_GAP
    assert summary.first["margin"] == 0.0
    with pytest.raises(TrainerError, match=r"layout: tree cannot be used, for the model in .*/model .*layout: plain"):
        train_round(make_spec("forced", policy=model, reference=model, layout="tree"), toy_data, report=silent)


def test_a_window_as_long_as_the_longest_sequence_does_no_harm(
    make_spec: Spec, tmp_path: Path, toy_data: PreferenceData, silent: Callable[[Any], None]
) -> None:
    """Rows are longer than the window, which counts positions and not places in the row."""
    assert max(reads(toy_data)) == LONGEST
    model = build("mistral", tmp_path / "model", sliding_window=LONGEST)
    summary = train_round(make_spec(policy=model, reference=model, max_steps=1), toy_data, report=silent)
    assert summary.layout == "tree"
    assert summary.probe_gap is not None
    assert summary.probe_gap < MOST_GAP / 10


def reads(data: PreferenceData) -> list[int]:
    return [len(group.token_ids) + len(r.token_ids) - 1 for group in data.groups for r in group.responses]


def test_a_window_over_places_shows_in_long_rows_only(tmp_path: Path, toy_data: PreferenceData) -> None:
    """Why the probe's row is as long as the round's: two prompts fit into the window of 48 places."""
    folder = build("gpt_neo", tmp_path, window_size=48)
    assert gaps(folder, toy_data, row_tokens=32).tree < MOST_GAP / 10
    assert gaps(folder, toy_data, row_tokens=64).tree > 10 * MOST_GAP


def test_eager_attention_with_a_bool_mask_is_noticed(
    tmp_path: Path, toy_data: PreferenceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask is added to the scores, so that a bool one hides nothing; with a float mask the same model is right."""
    model = load_model(build("llama-tied", tmp_path), choose_arithmetic(TrainSettings(precision="fp32")))
    model.set_attn_implementation("eager")
    assert gaps_of(model, toy_data).tree < MOST_GAP / 10

    def bool_mask(row: Any, **options: Any) -> RowBatch:
        batch = to_batch(row, **options)
        return batch if row.sees_TT is None else batch._replace(attention=batch.attention == 0)

    monkeypatch.setattr(probe, "to_batch", bool_mask)
    found = gaps_of(model, toy_data)
    assert found.plain < MOST_GAP / 10
    assert found.tree > 10 * MOST_GAP


def test_a_model_that_lets_sequences_see_each_other_is_refused(tmp_path: Path, toy_data: PreferenceData) -> None:
    model = load_model(build("llama-tied", tmp_path), choose_arithmetic(TrainSettings(precision="fp32")))
    model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits + logits.mean(dim=0, keepdim=True))
    found = gaps_of(model, toy_data)
    assert found.plain > 10 * MOST_GAP
    with pytest.raises(TrainerError, match=r"model in models/policy scores a response differently .* another version"):
        choose_layout(found, "auto", folder=FOLDER)


def test_a_model_with_other_inputs_is_refused(toy_data: PreferenceData) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    with pytest.raises(TrainerError, match=r"A T5ForConditionalGeneration cannot be trained: .* Choose another model"):
        gaps_of(model, toy_data)


def test_a_reference_that_misreads_trees_is_refused_too(
    make_spec: Spec, tmp_path: Path, toy_data: PreferenceData, silent: Callable[[Any], None]
) -> None:
    anchor = build("rwkv", tmp_path / "anchor")
    with pytest.raises(TrainerError, match=r"for the model in .*/anchor scores tree rows wrongly"):
        train_round(make_spec(reference=anchor, reference_hash="anchor"), toy_data, report=silent)
    plain = make_spec("plain", reference=anchor, reference_hash="anchor", layout="plain", max_steps=1)
    assert train_round(plain, toy_data, report=silent).first["margin"] != 0.0


@pytest.mark.parametrize(
    ("tree", "wanted", "layout"),
    [(9e-5, "auto", "tree"), (9e-5, "tree", "tree"), (9e-5, "plain", "plain"), (2e-4, "auto", "plain")],
)
def test_the_layout_by_gap_and_wish(tree: float, wanted: Any, layout: str) -> None:
    assert choose_layout(Gaps(tree, 0.0), wanted, folder=FOLDER) == layout


def test_what_is_wrong_is_described() -> None:
    assert how_wrong(Gaps(0.25, 0.0)) == "up to 0.25 nat per token away from sequences run alone"
    assert "rejects" in how_wrong(Gaps(float("inf"), 0.0))
