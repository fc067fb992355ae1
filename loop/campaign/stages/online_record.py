"""Records an online iteration as the four stages of any other: their folders, inputs and manifests."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from loop.campaign.context import Iteration
from loop.campaign.stages.extra_pairs import ExtraPairs
from loop.campaign.stages.pair import finish_pairing, own_of, pair_inputs, signal_of, tally_for
from loop.campaign.stages.sample import Sources, judge_inputs, origins, response_counts, sample_inputs, verdict_counts
from loop.campaign.stages.take_prompts import Take
from loop.campaign.stages.train import finish_training, round_inputs, round_spec, train_inputs
from loop.engines.base import number_format
from loop.pairing.io import judged_groups
from loop.pairing.iteration import Pairing, joined
from loop.pairing.records import Answers
from loop.store.files import read_rows
from loop.store.model_refs import Model
from loop.store.run_records import Json
from loop.store.stage import Manifest
from loop.store.tables import digest
from loop.workers.online_service import OnlineTask
from loop.workers.shards import Shard
from loop.workers.train_service import TrainResult


class OnlineRecord:
    """Folders, models and inputs of one online iteration."""

    def __init__(self, it: Iteration, taken: Take) -> None:
        self.it, self.campaign, self.config, self.taken = it, it.campaign, it.config, taken
        self.samples, self.verdicts, self.pairs, self.train = map(it.folder, ("sample", "judge", "pair", "train"))

    @cached_property
    def sample_inputs(self) -> Json:
        """Settings and digests that determine the samples of the first slice."""
        return sample_inputs(self.it, Sources.of(self.it, self.it.start), self.taken)

    @cached_property
    def identity(self) -> Json:
        """Settings that determine the samples of later slices: those of all four stages."""
        return {
            "sample": self.sample_inputs,
            "judge": self.campaign.judge,
            "pair": self.config.pairs.model_dump(mode="json"),
            "train": train_inputs(self.it, self.config.train),
            "reference": self.it.reference.hash,
        }

    def sampler(self, at: int) -> Model:
        """The model that samples slice `at`. Weights inside a round have no hash, so a digest of all that determines
        them stands in for it; the folder is the first slice's model, valid until the first step."""
        name = f"{digest(self.identity)[:40]}-slice-{at:04d}" if at else self.it.start.hash
        return Model(self.it.start.path, name, self.it.k)

    def task(self, slices: int) -> OnlineTask:
        """The round as a task for the trainer."""
        spec = round_spec(self.it, self.config.train, self.train)
        return OnlineTask(spec, self.train.steps, slices, number_format(self.config.engine))

    def finished(self) -> Manifest | None:
        """The pair manifest if all four stages are finished, else None."""
        campaign = self.campaign
        sampled = campaign.finished(self.samples, self.sample_inputs)
        judged = campaign.finished(self.verdicts, judge_inputs(campaign, sampled, None)) if sampled else None
        if not (sampled and judged):
            return None
        paired = campaign.finished(self.pairs, pair_inputs(self.it, sampled, judged, self.taken))
        if paired and campaign.finished(self.train, round_inputs(self.it, self.config.train, paired)):
            return paired
        return None

    def finish(
        self,
        shards: Sequence[Shard],
        made: Sequence[Pairing],
        answers: Mapping[str, Answers],
        result: TrainResult,
        seconds: Mapping[str, float],
    ) -> Manifest:
        """Write the missing manifests, the train stage's last; return the pair manifest."""
        sampled = self._finish_samples(shards, made, seconds)
        judged = self._finish_verdicts(shards, sampled, seconds["judge"])
        inputs = pair_inputs(self.it, sampled, judged, self.taken)
        if not (paired := self.campaign.finished(self.pairs, inputs)):
            pairing = joined(made, self.it.k)
            own = own_of(pairing, self.pairs, answers, self._signal(shards, pairing))
            paired = finish_pairing(self.it, own, ExtraPairs(), inputs, seconds["pair"])
        inputs = round_inputs(self.it, self.config.train, paired)
        if not self.campaign.finished(self.train, inputs):
            finish_training(self.campaign, self.train, inputs, result, None, seconds["train"])
        return paired

    def _signal(self, shards: Sequence[Shard], pairing: Pairing) -> dict[str, float | None]:
        """The training signal of all slices together."""
        tally = tally_for(self.config)
        for _ in tally.watch(judged_groups([(shard.task.path, shard.verdicts) for shard in shards])):
            pass
        return signal_of(tally, pairing, [shard.task.path for shard in shards])

    def _finish_samples(
        self, shards: Sequence[Shard], made: Sequence[Pairing], seconds: Mapping[str, float]
    ) -> Manifest:
        if manifest := self.campaign.finished(self.samples, self.sample_inputs):
            return manifest
        paths = [shard.task.path for shard in shards]
        rows = [row for shard in shards for row in shard.task.prompts]
        slices = of_slices([row["slice"] for row in read_rows(self.train.steps)], made)
        times = {name: seconds[name] for name in ("load", "generate", "judge_after_sampling")}
        times |= {"wall": seconds["label"], "judge": 0.0}
        return self.campaign.finish(
            self.samples,
            paths,
            inputs=self.sample_inputs,
            counts={**response_counts(paths, len(rows)), **origins(rows), "slices": slices},
            seconds=times,
        )

    def _finish_verdicts(self, shards: Sequence[Shard], sampled: Manifest, seconds: float) -> Manifest:
        inputs, paths = judge_inputs(self.campaign, sampled, None), [shard.verdicts for shard in shards]
        return self.campaign.finished(self.verdicts, inputs) or self.campaign.finish(
            self.verdicts, paths, inputs=inputs, counts=verdict_counts(paths), seconds={"wall": 0.0, "judge": seconds}
        )


def of_slices(of_steps: Sequence[int], made: Sequence[Pairing]) -> list[dict[str, Any]]:
    """Each slice's record: the steps before it was sampled, the steps trained on it, and its staleness: how many steps
    the policy was ahead of the weights that sampled it. `of_steps` holds the slice of each step."""
    steps, found, before = Counter(of_steps), [], 0
    for at, pairing in enumerate(made):
        own = steps[at]
        staleness = {"staleness_mean": (own - 1) / 2, "staleness_most": own - 1} if own else {}
        found.append({"sampled_at_step": before, "steps": own, "pairs": len(pairing.relations)} | staleness)
        before += own
    return found
