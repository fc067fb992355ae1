"""Room loop, the campaign: iteration after iteration, each a walk through the stages. Finished work is re-used as it
is.

Starting a campaign and continuing one are the same walk: every stage asks the run folder first.
"""

import time
from typing import Any

from judges.found import Found
from loop.config_load import LoadedConfig
from loop.context import Campaign, Standing, reference_of
from loop.crew import Crew
from loop.display import Display
from loop.lineage import inherited_caches
from loop.prompts import PromptRow
from loop.runfolder import RunFolder
from loop.stages.evaluate import eval_stage
from loop.stages.pair import pair_stage
from loop.stages.prepare import base_stage, prompts_stage
from loop.stages.promote import promote_stage
from loop.stages.sample import sample_and_judge
from loop.stages.train import train_stage
from loop.status import collect, write_metrics
from loop.status_tables import iteration_line


def run_campaign(
    run: RunFolder, loaded: LoadedConfig, display: Display, *, verify: bool = False, repair: bool = False
) -> dict[str, Any]:
    """Turn the loop as often as the settings say and return what `prefloop status` would show.

    Raises UserError, JudgeError or TrainerError with one paragraph, and WaitingForPeople where people are the judge and
    it is their turn; everything finished before stays.
    """
    with run.locked(), Crew(run, loaded.base, display) as crew:
        campaign = Campaign(run, loaded, crew, display, verify=verify)
        if repair:
            campaign.repair()
        warn_of_lost_caches(run, display)
        started = time.monotonic()
        test_judges(campaign)
        walk(campaign, loaded.iterations)
        if campaign.working:
            run.event("campaign_finished", seconds=time.monotonic() - started)
        else:
            display.say(f"{run} is complete: {loaded.iterations} iterations, nothing left to do.")
        return collect(run)


def warn_of_lost_caches(run: RunFolder, display: Display) -> None:
    """A fork reads what its parent has paid for; say so if that is gone, before it is paid for again."""
    for path in inherited_caches(run):
        if not path.exists():
            display.say(f"  warning: {path} is gone, so verdicts that were paid for there will be asked for again")


def walk(campaign: Campaign, last: int) -> None:
    """From the prompt sets to the end of iteration `last` (0: the base model's evaluation); finished work is only
    checked."""
    sets = prompts_stage(campaign)
    standing = base_stage(campaign)
    campaign.crew.initial = Found(standing.initial.path, standing.initial.hash)
    measured = {0: eval_stage(campaign, 0, standing.initial, sets)}
    refresh(campaign, 0)
    for k in range(1, last + 1):
        standing = run_iteration(campaign, k, standing, sets, measured)


def test_judges(campaign: Campaign) -> None:
    """Have the judges answer their known examples; their fingerprints."""
    crew, correct_at = campaign.crew, campaign.base.pairs.correct_at
    campaign.judge = crew.prepare(crew.judge, correct_at)
    campaign.eval_judge = campaign.judge if crew.eval_judge is crew.judge else crew.prepare(crew.eval_judge, correct_at)


def run_iteration(
    campaign: Campaign,
    k: int,
    standing: Standing,
    sets: dict[str, list[PromptRow]],
    measured: dict[int, dict[str, Any]],
) -> Standing:
    """One turn of the loop, from the incumbent to the next one."""
    was_working, started = campaign.working, time.monotonic()
    announce(campaign, k, standing)
    sampled, judged = sample_and_judge(campaign, k, standing, sets["train"])
    paired = pair_stage(campaign, k, sampled, judged)
    _, candidate = train_stage(campaign, k, standing, sampled, paired)
    measured[k] = eval_stage(campaign, k, candidate, sets)
    standing = promote_stage(campaign, k, standing, candidate, measured)
    if campaign.working:
        elapsed = time.monotonic() - started if was_working else None
        campaign.run.event("iteration_finished", iteration=k, seconds=elapsed)
    refresh(campaign, k)
    return standing


def announce(campaign: Campaign, k: int, standing: Standing) -> None:
    """Say in words what this iteration starts from, unless it is finished."""
    if campaign.run.promotion(k).exists():
        return
    config = campaign.loaded.at(k)
    reference = reference_of(config, standing)
    warm = ", both after a warm start on the chosen responses" if config.train.warm_start else ""
    campaign.display.say(
        f"\niteration {k} of {campaign.loaded.iterations}: sampling from and training {standing.incumbent} "
        f"({standing.incumbent.hash[:8]}), anchored to {reference} ({reference.hash[:8]}){warm}"
    )


def refresh(campaign: Campaign, k: int) -> None:
    """Rewrite metrics.jsonl from the run folder, and print the iteration's line."""
    if not campaign.working:
        return
    state = collect(campaign.run)
    write_metrics(campaign.run, state)
    campaign.display.say(iteration_line(state, k))
