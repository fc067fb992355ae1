"""Room loop, the stage pair: responses and verdicts on disk come in, pairs and the reasons for every loss go out."""

import time
from dataclasses import asdict
from pathlib import Path

from loop import tables
from loop.context import Campaign
from loop.errors import UserError
from loop.pairing import Judged, pair_all, why_no_pairs
from loop.runfolder import Manifest, write_file


def pair_stage(campaign: Campaign, k: int, sampled: Manifest, judged: Manifest) -> Manifest:
    """Build pairs from groups and verdicts; every prompt and response that gave none is counted under a reason."""
    config, folder = campaign.loaded.at(k), campaign.run.stage(k, "pair")
    inputs = {
        **{f"pairs.{key}": value for key, value in config.pairs.model_dump(mode="json").items()},
        "made from": {"sample": sampled.digest, "judge": judged.digest},
    }
    if manifest := campaign.finished(folder, inputs):
        return manifest
    campaign.begin_work()
    started = time.perf_counter()
    samples, verdicts = campaign.run.stage(k, "sample"), campaign.run.stage(k, "judge")
    groups = (
        group for name in sorted(sampled.outputs) for group in read_judged(samples.path / name, verdicts.path / name)
    )
    pairing = pair_all(groups, config.pairs, k)
    assert sum(pairing.responses.values()) == sampled.counts["responses"]
    if not pairing.pairs:
        raise UserError(
            f"There is nothing to train on: {why_no_pairs(pairing)}. The samples and verdicts are kept "
            f"in {samples.path.parent}."
        )
    rows = [{**asdict(pair), "source_iteration": k} for pair in pairing.pairs]
    write_file(folder.pairs, tables.to_bytes(rows, tables.PAIRS, {}))
    counts = {"pairs": len(rows), "responses": pairing.responses, "prompts": pairing.prompts}
    return campaign.finish(
        folder, [folder.pairs], inputs=inputs, counts=counts, seconds={"wall": time.perf_counter() - started}
    )


def read_judged(responses: Path, verdicts: Path) -> list[tuple[str, list[Judged]]]:
    """A shard's groups as pairing wants them."""
    by_id = {row["response_id"]: row for row in tables.read(verdicts, ["response_id", "kind", "score"]).to_pylist()}
    groups: dict[str, list[Judged]] = {}
    for row in tables.read(responses, ["prompt_id", "response_id", "token_ids", "finish_reason"]).to_pylist():
        verdict = by_id[row["response_id"]]
        key = ",".join(map(str, row["token_ids"]))
        judged = Judged(row["response_id"], key, verdict["kind"], verdict["score"], row["finish_reason"])
        groups.setdefault(row["prompt_id"], []).append(judged)
    return list(groups.items())
