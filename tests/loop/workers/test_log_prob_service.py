"""Judges that measure with models: the sampled ids are what is scored, and the numbers are worked out apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from judges import Group, JudgeError, Prompt, Response, build_judge, judge_groups
from judges.context import JudgeContext, Measured, ModelRef, Precision
from loop.commands.judge_test import named_judge, run_test
from loop.config.settings import JudgeConfig
from loop.prompts.row import PromptRow
from loop.store import tables
from loop.store.model_folder import find_model, weights_hash
from loop.workers.judge_service import JudgeService, JudgeTask
from loop.workers.log_prob_service import Roles
from tests.helpers import tiny

TEXTS = ("18", "eighteen")


class Fixed:
    """Two models with known log-probs: `policy` gives −1 nat for each letter, `initial` −2; "?" cannot be read."""

    def weights(self, model: str) -> str:
        return {"again": "policy"}.get(model, model)

    def measure(self, groups: Sequence[Group], model: str, *, precision: Precision) -> list[list[Measured | str]]:
        each = {"policy": -1.0, "again": -1.0, "initial": -2.0}[model]
        return [[self._one(each, r.text) for r in group.responses] for group in groups]

    def _one(self, each: float, text: str) -> Measured | str:
        return "too long" if text == "?" else Measured(each * len(text), len(text))


def judged(name: str, *texts: str, **args: Any) -> list[Any]:
    judge = build_judge(name, args)
    judge.bind(JudgeContext(log_probs=Fixed(), find=lambda name: ModelRef(Path(name), name)))
    group = Group(Prompt("p", (), None, {}), tuple(Response(str(i), text, "stop") for i, text in enumerate(texts)))
    return judge_groups(judge, [group])[0]


def test_scores_by_hand() -> None:
    assert [v.score for v in judged("log-prob", "ab", "abcd")] == [-1.0, -1.0]
    assert [v.score for v in judged("log-prob", "ab", "abcd", normalise="sum", model="initial")] == [-4.0, -8.0]
    assert [v.score for v in judged("implicit-reward", "ab", "abcd")] == pytest.approx([0.2, 0.4])
    assert [v.score for v in judged("implicit-reward", "ab", "abcd", beta=0.5, normalise="mean")] == [0.5, 0.5]
    penalised = judged("implicit-reward", "ab", "abcd", beta=1.0, length_penalty=1.5)
    assert [v.score for v in penalised] == [2 - 3.0, 4 - 6.0]
    assert penalised[1].parts == {"log_ratio": 4.0, "tokens": 4.0}


def test_what_cannot_be_measured_is_an_error_and_equal_models_tell_nothing() -> None:
    for name in ("log-prob", "implicit-reward"):
        assert [(v.kind, v.why) for v in judged(name, "a", "?")][1] == ("error", "too long")
    assert [v.kind for v in judged("implicit-reward", "a", reference="again")] == ["abstain"]
    with pytest.raises(JudgeError, match="every score would be 0"):
        build_judge("implicit-reward", {"reference": "policy"})
    with pytest.raises(JudgeError, match="needs the trainer"):
        judge_groups(build_judge("log-prob", {}), [Group(Prompt("p", (), None, {}), (Response("r", "", "stop"),))])


def logp(folder: Path, prompt: list[int], ids: list[int]) -> float:
    """Sum of log-probs, by transformers alone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logp_TV = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
    return sum(float(logp_TV[len(prompt) - 1 + i, token]) for i, token in enumerate(ids))


PROMPT, SAMPLED = [44, 26, 30], {"p/0": [16, 23, tiny.EOS], "p/1": [68, 7, 7, 9]}
"""Ids that no tokenizer makes of the texts: only what was sampled explains the score."""


def test_the_sampled_ids_are_scored_in_a_shard(toys: Path, tmp_path: Path) -> None:
    other = tiny.save_model(tmp_path / "other", seed=1)
    names = zip(SAMPLED, TEXTS, strict=True)
    columns = {"prompt_id": "p", "finish_reason": "stop", "prompt_token_ids": PROMPT}
    shard = [{**columns, "response_id": name, "text": text, "token_ids": SAMPLED[name]} for name, text in names]
    (tmp_path / "shard.parquet").write_bytes(tables.to_bytes(shard, tables.RESPONSES, {}))
    prompts = (PromptRow("p", [{"role": "user", "content": "?"}], "18", {}),)
    task = JudgeTask("shard", tmp_path / "shard.parquet", tmp_path / "verdicts.parquet", prompts)
    roles = Roles(ModelRef(toys / "model", weights_hash(toys / "model")), ModelRef(other, weights_hash(other)))
    settings = JudgeConfig(name="implicit-reward", args={"beta": 0.5})
    service = JudgeService(settings, tmp_path / "cache.sqlite")
    service.label(task, lambda **_: None, roles=roles)
    found = {row["response_id"]: row["score"] for row in tables.read(task.path).to_pylist()}
    for name, ids in SAMPLED.items():
        ratio = logp(toys / "model", PROMPT, ids) - logp(other, PROMPT, ids)
        assert found[name] == pytest.approx(0.5 * ratio, abs=1e-3)


def test_the_command_measures_with_a_named_folder_and_knows_no_policy(toys: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "1 + 1 =", "chosen": "2", "rejected": "two or so"}\n', encoding="utf-8")
    options: dict[str, Any] = {"limit": None, "tolerance": 1e-6, "show": 10, "quiet": True}
    chosen = named_judge("log-prob", [f"model={toys / 'model'}", "normalise=sum"], None)
    found = run_test(chosen, data, **options)
    assert found.judge["version"] == "1+" + find_model(str(toys / "model")).digest
    assert found.trial.examples == {"pair": 1}
    with pytest.raises(JudgeError, match="exists only in a campaign"):
        run_test(named_judge("log-prob", [], None), data, **options)
