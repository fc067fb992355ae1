"""The supervised phase before a round: a round of its own on the chosen responses, and the spec of the round after it.
DPO's authors fit the reference so where it did not sample the data (section 4 of arXiv:2305.18290)."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.data import Pair, PreferenceData, Ranked, Relation, Single
from trainer.summary import RoundSummary, WarmStartSummary

if TYPE_CHECKING:
    from trainer.spec import RoundSpec


FOLDER = "warm-start"


def first_round(spec: "RoundSpec") -> "RoundSpec":
    """The spec of the supervised round, inside the work folder of the whole."""
    warm = spec.settings.warm_start
    assert warm is not None
    changes = {"loss": "sft", "beta": None, "nll_weight": None, "warm_start": None, "probe_pairs": 0}
    changes |= {"max_steps": None, "select": "last"}
    settings = spec.settings.model_copy(update=changes | {"epochs": warm.epochs, "learning_rate": warm.learning_rate})
    work = spec.work / FOLDER
    return replace(spec, settings=settings, work=work / "work", out=work / "model")


def second_round(spec: "RoundSpec", first: "RoundSpec") -> "RoundSpec":
    """The spec of the round itself: the first one's result is start and reference, the identity that of the whole."""
    settings = spec.settings.model_copy(update={"warm_start": None})
    start, name = first.out, weights_digest(first.out)
    models = replace(spec, policy=start, policy_hash=name, reference=start, reference_hash=name)
    return replace(models, settings=settings, whole=spec.identity)


def chosen_only(data: PreferenceData) -> PreferenceData:
    """Every response that some relation prefers, once, as an example to imitate."""
    chosen = dict.fromkeys((relation.prompt_id, id) for relation in data.relations if (id := _best(relation)))
    return replace(data, relations=tuple(Single(prompt, response, good=True) for prompt, response in chosen))


def summarise(summary: RoundSummary, weights_hash: str) -> WarmStartSummary:
    """This phase in the record of the whole round."""
    return WarmStartSummary(
        weights_hash=weights_hash,
        responses=summary.pairs,
        steps=summary.steps,
        loss_first=summary.first["sft"],
        loss_last=summary.last["sft"],
    )


def remove_warm_start(work: Path) -> None:
    """Remove the model that a finished round started from."""
    shutil.rmtree(work / FOLDER, ignore_errors=True)


def _best(relation: Relation) -> str | None:
    if isinstance(relation, Pair):
        return relation.chosen_id
    if isinstance(relation, Ranked):
        return relation.response_ids[0]
    return relation.response_id if relation.good else None


def weights_digest(folder: Path) -> str:
    """sha256 over the weight files of a model folder."""
    sha = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()
