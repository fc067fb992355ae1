"""A round that does harm, because the judge lies while its responses are labelled: what the gate makes of it.

Three seeds, one pool for all of them. The gate and the retry decide on the very round that did harm: their runs are
copies of the one without a gate, whose last decision was taken back.
"""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from loop.campaign.context import Campaign
from loop.campaign.run import work
from loop.config.load import load_config
from loop.store.files import read_json
from loop.store.run_folder import RunFolder
from loop.view.display import Display
from loop.view.status import collect
from loop.workers.pool import WorkerPool
from tests.helpers import tiny
from tests.helpers.campaigns import Cli

JUDGE = '''"""Short answers are right; in one iteration the training responses are labelled the wrong way round."""

from judges.contract import PointwiseJudge, Prompt, Response, Verdict


class Short(PointwiseJudge):
    """Right if the text has at most `most` characters; the responses of iteration `lies_in` are judged falsely."""

    most: int = 3
    lies_in: int = 2

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        lies = response.id.startswith(f"{self.lies_in}-train-")
        return Verdict.of((len(response.text) <= self.most) != lies)
'''
GATE = ["per_iteration.2.promote.rule=not_worse", "per_iteration.2.promote.margin=0.1"]
RETRY = [*GATE, "per_iteration.2.promote.on_reject=retry", "per_iteration.2.promote.retry.learning_rate=0.001"]


@pytest.fixture(scope="module")
def config(toys: Path, _settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two iterations that teach short answers and, in the second, long ones."""
    cli = Cli(tmp_path_factory.mktemp("harmful"))
    (cli.folder / "short.py").write_text(JUDGE, encoding="utf-8")
    prompts = {"path": str(tiny.save_prompts(cli.folder / "prompts.jsonl", 140)), "train": 64, "per_iteration": 32}
    changes = {
        "prompts": _settings["prompts"] | prompts | {"gate": 40, "test": 8},
        "judge": {"name": f"{cli.folder / 'short.py'}:Short"},
        "engine": _settings["engine"] | {"batch": 256},
        "sampling": {"n": 8, "max_tokens": 12},
        "pairs": {"per_prompt": 4, "drop_truncated": "none"},
        "train": {"precision": "fp32", "learning_rate": [2e-4, 2e-3], "epochs": [1, 3], "batch_pairs": 8}
        | {"loss": "dpo", "nll_weight": 1.0},  # without it both sides of a pair may lose to some third answer
        "eval": {"samples": 4},
    }
    return cli.write(_settings | changes)


@pytest.fixture(scope="module")
def pool(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    """Workers for all the campaigns of this file."""
    run = RunFolder(tmp_path_factory.mktemp("pool"))
    with closing(WorkerPool(run, load_config(config).base, Display(to_stderr=True))) as pool:
        yield pool


def campaign(run: RunFolder, config: Path, pool: WorkerPool, *changes: str) -> dict[str, Any]:
    """Work until nothing is left to do; the state and the last decision."""
    with run.locked():
        work(Campaign(run, load_config(config, changes), pool, Display(to_stderr=True)))
    return collect(run).as_json() | {"last": read_json(run.promotion(2))}


def decided_again(run: RunFolder, name: str) -> RunFolder:
    """A copy in which iteration 2 waits for its decision."""
    copy = RunFolder(run.root.with_name(name))
    shutil.copytree(run.root, copy.root)
    copy.promotion(2).unlink()
    return copy


def accuracies(state: dict[str, Any]) -> list[float]:
    """Sampled accuracy of each iteration's model on the gate prompts, by the honest judge."""
    return [it["gate"]["sampled_accuracy"]["value"] for it in state["iterations"]]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_gate_keeps_the_best_iteration_and_a_retry_recovers(
    seed: int, config: Path, pool: WorkerPool, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "ungated")
    ungated = campaign(run, config, pool, f"seed={seed}")
    base, taught, harmed = accuracies(ungated)
    assert base + 0.2 < taught, "the honest round teaches something"
    assert harmed < taught - 0.3, "the round with the lying judge does harm"
    assert ungated["incumbent"] == 2

    gated = campaign(decided_again(run, "gated"), config, pool, f"seed={seed}", *GATE)
    assert accuracies(gated) == accuracies(ungated)
    assert (gated["incumbent"], gated["last"]["promoted"]) == (1, False)
    assert gated["last"]["reason"].startswith(
        f"not promoted, worse: sampled accuracy changed by {100 * (harmed - taught):.2f} "
    )
    assert "points worse; the limit is 10 (not_worse)" in gated["last"]["reason"]

    retried = campaign(decided_again(run, "retried"), config, pool, f"seed={seed}", *RETRY)
    assert [attempt["promoted"] for attempt in retried["last"]["attempts"]] == [False, True]
    assert retried["incumbent"] == 2
    assert accuracies(retried)[2] > harmed + 0.15
