"""Room loop, the stage promote: what the attempts of an iteration came to is written down, and with it what the next
iteration starts from."""

from dataclasses import asdict, replace

from loop.context import Campaign, Standing, model_record, read_model, refuse_changes
from loop.files import read_json, to_json, write_file
from loop.runfolder import StageFolder
from loop.stages.attempts import Attempt


def promote_stage(campaign: Campaign, k: int, standing: Standing, attempts: list[Attempt]) -> Standing:
    """Record the decision of the last attempt with all that led to it; returns where the next iteration stands."""
    config, path, last = campaign.loaded.at(k), campaign.run.promotion(k), attempts[-1]
    inputs = {
        **config.promote.decided_by(len(attempts)),
        "made from": {"candidate": last.candidate.hash, "incumbent": standing.incumbent.hash},
    }
    if not path.exists():
        campaign.begin_work()
        promoted, reason = last.decision.promote, last.decision.reason
        policy = last.candidate if promoted else standing.incumbent
        record = {
            "iteration": k,
            "promoted": promoted,
            "reason": reason,
            "gain": asdict(last.difference),
            "limits": [asdict(limit) for limit in last.decision.limits],
            "attempts": [attempt.record for attempt in attempts],
            "policy": model_record(campaign.run, policy),
            "candidate": model_record(campaign.run, last.candidate),
            "incumbent": model_record(campaign.run, standing.incumbent),
            "start": model_record(campaign.run, standing.start(config)),
            "reference": model_record(campaign.run, standing.reference(config)),
            "inputs": inputs,
        }
        write_file(path, to_json(record))
        campaign.run.event("promotion", iteration=k, promoted=promoted, reason=reason, attempts=len(attempts))
    record = read_json(path)
    refuse_changes(StageFolder(path.parent, "promote", k), record["inputs"], inputs)
    policy, candidate = (read_model(campaign.run, record[name]) for name in ("policy", "candidate"))
    return replace(standing, incumbent=policy, previous=candidate)
