"""Runs a campaign: iteration after iteration, each a walk through the stages.

Starting and resuming are the same walk: every stage first looks in the run folder, and finished work is reused.
"""

import time
from dataclasses import replace
from functools import partial

from judges.context import ModelRef
from loop.campaign.context import Campaign, ModelRoles, StopPoint
from loop.campaign.stages.evaluate import eval_stage
from loop.campaign.stages.limits import check_files
from loop.campaign.stages.online import online_stages
from loop.campaign.stages.pair import pair_stage
from loop.campaign.stages.prepare import base_stage, prompts_stage
from loop.campaign.stages.promote import promote_stage, train_and_decide
from loop.campaign.stages.reference import first_anchor, move_anchor
from loop.campaign.stages.sample import Sources, record_given_prompts, sample_and_judge
from loop.campaign.stages.take_prompts import Take, slice_of
from loop.config.load import LoadedConfig, refuse_comparing
from loop.errors import StoppedAtUntil
from loop.prompts.row import PromptRow
from loop.redact import remember_secrets
from loop.report.model_card import describe_model, describe_models
from loop.store.lineage import inherited_caches
from loop.store.run_folder import RunFolder
from loop.store.run_records import Evaluation
from loop.store.run_state import RunState
from loop.store.stage import Manifest
from loop.trackers.driver import Trackers
from loop.view.describe import describe_data
from loop.view.display import Display
from loop.view.frame import time_left
from loop.view.progress import look
from loop.view.status import collect, write_metrics
from loop.view.status_tables import iteration_line
from loop.workers.pool import WorkerPool


def run_campaign(
    run: RunFolder,
    loaded: LoadedConfig,
    display: Display,
    *,
    verify: bool = False,
    repair: bool = False,
    until: StopPoint | None = None,
) -> RunState:
    """Run the configured iterations, or stop after `until`, and return the state that `prefloop status` shows.

    Raises UserError, JudgeError or TrainerError with a one-paragraph message, and WaitingForPeople while human labels
    are missing. Finished work is kept in every case.
    """
    run.check_format()
    remember_secrets(loaded.raw)
    with run.locked(), WorkerPool(run, loaded.base, display) as crew:
        campaign = Campaign(run, loaded, crew, display, verify=verify, until=until)
        display.look = partial(look, run, loaded)
        if repair:
            campaign.repair()
        try:
            with Trackers(run, loaded.base.trackers, campaign.warn):
                work(campaign)
        except StoppedAtUntil:
            last = until == (loaded.iterations, "promote")
            rest = "nothing left to do" if last else f"resume with: prefloop run {run}"
            display.say(f"Stopped after {until} (--until); {rest}")
        return collect(run)


def work(campaign: Campaign) -> None:
    """Do the work that is missing, and report how it ended."""
    run, display, planned = campaign.run, campaign.display, campaign.loaded.iterations
    started = time.monotonic()
    warn_of_lost_caches(campaign)
    describe_models(run)
    check_files(campaign)
    check_judges(campaign)
    last = walk(campaign, planned)
    if last < planned:
        run.event("campaign_stopped", iteration=last)
        display.say(
            f"Stopped: the candidate of iteration {last} was rejected and promote.on_reject is stop. To continue "
            f"from the incumbent: prefloop run {run} promote.on_reject=continue"
        )
    elif campaign.working:
        run.event("campaign_finished", seconds=time.monotonic() - started)
    else:
        display.say(f"{run} is complete: {planned} iterations, nothing left to do.")


def warn_of_lost_caches(campaign: Campaign) -> None:
    """Warn if a cache that a fork inherits from its parent is gone, before its verdicts are paid for again."""
    for path in inherited_caches(campaign.run):
        if not path.exists():
            campaign.warn(f"{path} is gone: the verdicts cached there must be requested, and paid for, again")


def walk(campaign: Campaign, last: int) -> int:
    """Go from the prompt sets to the end of iteration `last` (0: the base model's evaluation); only check finished
    work. Returns the last completed iteration: an earlier one if a rejection ended the campaign."""
    sets = prompts_stage(campaign)
    standing = base_stage(campaign)
    if last:
        standing = replace(standing, anchor=first_anchor(campaign, standing.initial))
    campaign.crew.initial = ModelRef(standing.initial.path, standing.initial.hash)
    measured = {0: eval_stage(campaign, 0, standing.initial, sets)}
    refresh(campaign, 0)
    campaign.reached(0, "eval")
    for k in range(1, last + 1):
        standing = run_iteration(campaign, k, standing, sets, measured)
        if k < last and stops_at(campaign, k, standing):
            return k
        campaign.reached(k, "promote")
    return last


def stops_at(campaign: Campaign, k: int, standing: ModelRoles) -> bool:
    """Whether a rejection ends the campaign at iteration `k`, and it has not been continued since."""
    rejected = standing.incumbent.iteration != k
    return rejected and campaign.loaded.at(k).promote.on_reject == "stop" and not campaign.run.promotion(k + 1).exists()


def check_judges(campaign: Campaign) -> None:
    """Test the judges on their known examples, and keep their fingerprints."""
    crew, correct_at = campaign.crew, campaign.base.pairs.correct_at
    if crew.judge is not None:
        campaign.judge = campaign.eval_judge = crew.prepare(crew.judge, correct_at)
        refuse_comparing(campaign.loaded, crew.judge.compares)
    if crew.eval_judge is not None and crew.eval_judge is not crew.judge:
        campaign.eval_judge = crew.prepare(crew.eval_judge, correct_at)


def run_iteration(
    campaign: Campaign,
    k: int,
    standing: ModelRoles,
    sets: dict[str, list[PromptRow]],
    measured: dict[int, Evaluation],
) -> ModelRoles:
    """Run one iteration, from the incumbent to the next one."""
    was_working, started = campaign.working, time.monotonic()
    standing = move_anchor(campaign, k, standing)
    announce(campaign, k, standing)
    paired = make_pairs(campaign, k, standing, sets)
    campaign.reached(k, "pair")
    attempts = train_and_decide(campaign, k, standing, paired, sets, measured)
    standing = promote_stage(campaign, k, standing, attempts)
    if campaign.working:
        describe_model(campaign.run, k)
        elapsed = time.monotonic() - started if was_working else None
        campaign.run.event("iteration_finished", iteration=k, seconds=elapsed)
    refresh(campaign, k)
    return standing


def make_pairs(campaign: Campaign, k: int, standing: ModelRoles, sets: dict[str, list[PromptRow]]) -> Manifest:
    """Return the pair manifest. In online mode the round has been trained when this returns."""
    taken = slice_of(campaign, k, sets["train"])
    if campaign.loaded.at(k).train.online:
        paired = online_stages(campaign, k, standing, taken)
        campaign.reached(k, "sample")
        campaign.reached(k, "judge")
        return paired
    sampled, judged = responses_of(campaign, k, standing, taken)
    campaign.reached(k, "judge")
    return pair_stage(campaign, k, sampled, judged, taken, sets)


def responses_of(campaign: Campaign, k: int, standing: ModelRoles, taken: Take) -> tuple[Manifest, Manifest]:
    """Sample and judge these prompts; both stages stay empty where the pairs come from the data."""
    config = campaign.loaded.at(k)
    if not config.samples:
        return record_given_prompts(campaign, k, taken)
    sources = Sources.of(config, standing.sampler(config), standing.reference(config))
    return sample_and_judge(campaign, k, sources, taken)


def announce(campaign: Campaign, k: int, standing: ModelRoles) -> None:
    """Print which models this iteration starts from, unless it is finished."""
    if campaign.run.promotion(k).exists():
        return
    config = campaign.loaded.at(k)
    sampler, start, reference = standing.sampler(config), standing.start(config), standing.reference(config)
    warm = ", both after a warm start on the chosen responses" if config.train.warm_start else ""
    online = (
        f"; syncing weights to the sampler at least every {config.train.sync_every} steps"
        if config.train.online
        else ""
    )
    works_on = f"and training {start.named}" if sampler == start else f"{sampler.named}, training {start.named}"
    works_on = f"sampling from {works_on}" if config.samples else f"training {start.named}"
    beside = describe_data(config, k)
    campaign.display.say(
        f"\niteration {k} of {campaign.loaded.iterations}: {works_on}, reference: {reference.named}{warm}{online}"
        f"{f'; {beside}' if beside else ''}"
    )


def refresh(campaign: Campaign, k: int) -> None:
    """Rewrite metrics.jsonl and the report from the run folder, and print the iteration's line."""
    if not campaign.working:
        return
    state = collect(campaign.run)
    write_metrics(campaign.run, state)
    campaign.display.say(iteration_line(state, k))
    if 0 < k < campaign.loaded.iterations:
        campaign.display.say(f"  {time_left(look(campaign.run, campaign.loaded), None)}")
    refresh_report(campaign)


def refresh_report(campaign: Campaign) -> None:
    """Rewrite the report; if that fails, warn and continue."""
    from loop.report.page import write_report

    try:
        write_report(campaign.run)
    except Exception as error:  # noqa: BLE001  a broken report must not end a campaign
        problem = f"{type(error).__name__}: {error}"
        campaign.display.say(f"  warning: the report could not be written ({problem}); retry with `prefloop report`")
