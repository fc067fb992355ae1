"""Room loop, the stage promote: the paired test on the gate prompts decides what the next iteration starts from."""

from dataclasses import asdict, replace
from typing import Any

from loop.context import Campaign, Model, Standing, model_record, read_model, refuse_changes
from loop.evaluation import compare
from loop.promote import decide
from loop.runfolder import StageFolder, read_json, to_json, write_file


def promote_stage(
    campaign: Campaign, k: int, standing: Standing, candidate: Model, measured: dict[int, dict[str, Any]]
) -> Standing:
    """Compare candidate and incumbent on the gate prompts, decide, and write down what the next iteration starts
    from."""
    config, path = campaign.loaded.at(k), campaign.run.promotion(k)
    inputs = {
        **{f"promote.{key}": value for key, value in config.promote.model_dump(mode="json").items()},
        "made from": {"candidate": candidate.hash, "incumbent": standing.incumbent.hash},
    }
    if not path.exists():
        campaign.begin_work()
        incumbent_gate = measured[standing.incumbent.iteration]["gate"]
        difference = compare(incumbent_gate, measured[k]["gate"], config.promote.metric, config.promote.confidence)
        decision = decide(config.promote, difference)
        policy = candidate if decision.promote else standing.incumbent
        record = {
            "iteration": k,
            "promoted": decision.promote,
            "reason": decision.reason,
            "gain": asdict(difference),
            "policy": model_record(campaign.run, policy),
            "candidate": model_record(campaign.run, candidate),
            "incumbent": model_record(campaign.run, standing.incumbent),
            "start": model_record(campaign.run, standing.start(config)),
            "reference": model_record(campaign.run, standing.reference(config)),
            "inputs": inputs,
        }
        write_file(path, to_json(record))
        campaign.run.event("promotion", iteration=k, promoted=decision.promote, reason=decision.reason)
    record = read_json(path)
    refuse_changes(StageFolder(path.parent, "promote", k), record["inputs"], inputs)
    policy, last = (read_model(campaign.run, record[name]) for name in ("policy", "candidate"))
    return replace(standing, incumbent=policy, previous=last)
