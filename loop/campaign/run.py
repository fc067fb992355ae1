"""Runs a campaign: iteration after iteration, each a walk through the stages. A resumed run reuses finished stages."""

import signal
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial

from judges.context import ModelRef
from loop import interrupt
from loop.campaign.context import Campaign, Iteration, ModelRoles, StopPoint
from loop.campaign.repair import finish_repair, repair_run
from loop.campaign.stages.evaluate import eval_stage
from loop.campaign.stages.limits import check_files
from loop.campaign.stages.online import online_stages
from loop.campaign.stages.pair import pair_stage
from loop.campaign.stages.prepare import base_stage, prompts_stage
from loop.campaign.stages.promote import promote_stage, train_and_decide
from loop.campaign.stages.reference import first_reference, update_average
from loop.campaign.stages.sample import record_given_prompts, sample_and_judge, widened
from loop.campaign.stages.take_prompts import take_prompts
from loop.config.load import LoadedConfig, diff, refuse_comparing
from loop.engines.option_checks import option_problems
from loop.errors import StoppedAtUntil
from loop.measure.metric_names import iteration_metrics
from loop.prompts.row import PromptRow
from loop.redact import remember_secrets
from loop.report.model_card import describe_model, describe_models
from loop.store.findings import Findings
from loop.store.lineage import inherited_caches, settings_of
from loop.store.missing import missing
from loop.store.model_refs import Model
from loop.store.run_folder import RunFolder
from loop.store.run_records import Evaluation
from loop.store.run_state import RunState
from loop.store.stage import Manifest
from loop.store.tables import damaged
from loop.trackers.driver import Trackers
from loop.view.describe import describe_data
from loop.view.display import Display
from loop.view.frame import time_left
from loop.view.progress import look
from loop.view.status import collect, keep_states, write_metrics
from loop.view.status_tables import iteration_line
from loop.workers.pool import WorkerPool
from loop.workers.process import Job, call


def run_campaign(
    run: RunFolder,
    loaded: LoadedConfig,
    display: Display,
    *,
    verify: bool = False,
    repair: bool = False,
    until: StopPoint | None = None,
) -> RunState:
    """Run the configured iterations, or stop after `until`, and return the state that `prefloop status` shows. Raises
    UserError, JudgeError or TrainerError with a one-paragraph message, and AwaitingLabels while human labels are
    missing. Finished work is kept in every case."""
    run.check_format()
    remember_secrets(loaded.raw)
    run.heard = display.event
    with (
        run.locked(),
        display.log.open_at(run.log("run")),
        closing(prepared(run, loaded, display, verify=verify, repair=repair)) as pool,
    ):
        campaign = Campaign(run, loaded, pool, display, verify=verify, until=until)
        display.look = partial(look, run, loaded)
        try:
            with Trackers(run, loaded.base.trackers, campaign.warn):
                work_until_interrupted(campaign)
        except StoppedAtUntil:
            last = until == (loaded.iterations, "promote")
            rest = "nothing left to do" if last else f"resume with: prefloop run {run}"
            display.say(f"Stopped after {until} (--until); {rest}")
        finally:
            display.update_metrics()
        if repair:
            finish_repair(run)
        return collect(run)


def prepared(run: RunFolder, loaded: LoadedConfig, display: Display, *, verify: bool, repair: bool) -> WorkerPool:
    """The workers, once the run folder is swept, repaired and verified."""
    run.sweep()
    if repair:
        repair_run(run, loaded, display)
    if verify and (wrong := run.misshapen()):
        raise damaged(wrong[0], "it is not as it was written")
    return WorkerPool(run, loaded.base, display)


def work_until_interrupted(campaign: Campaign) -> None:
    """Do the work; at Ctrl-C or SIGTERM ask the workers to end, and log the interruption in the events."""
    try:
        work(campaign)
    except KeyboardInterrupt:
        campaign.pool.stop()
        by = signal.Signals(interrupt.received() or signal.SIGINT).name
        with suppress(OSError):  # nobody can mend that now
            campaign.run.event("campaign_interrupted", signal=by)
        raise


def work(campaign: Campaign) -> None:
    """Do the work that is missing, and report how it ended."""
    run, display, planned = campaign.run, campaign.display, campaign.loaded.iterations
    started = time.monotonic()
    warn_of_lost_caches(campaign)
    describe_models(run)
    new = is_new(campaign)
    Findings(option_problems(campaign.loaded.each)).refuse()
    if new:
        read = run.prompts().manifest() is not None  # then the data's own files are no longer needed
        Findings([text for text in missing(campaign.loaded) if not (read and text.startswith("prompts."))]).refuse()
    check_files(campaign)
    check_judges(campaign)
    last = walk(campaign, planned, new=new)
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


def walk(campaign: Campaign, last: int, *, new: bool = False) -> int:
    """Go from the prompt sets to the end of iteration `last` (0: the base model's evaluation); only check finished
    work. With `new`, first check what the config names. Returns the last completed iteration: an earlier one if a
    rejection ended the campaign."""
    prompts = prompts_stage(campaign)
    models = base_stage(campaign)
    if new:
        check_names(campaign, models.initial, prompts)
    if last:
        models = replace(models, separate=first_reference(campaign, models.initial))
    campaign.pool.initial = ModelRef(models.initial.path, models.initial.hash)
    evaluations = {0: eval_stage(Iteration(campaign, 0, campaign.base, models, prompts), models.initial)}
    refresh(campaign, 0)
    campaign.reached(0, "eval")
    for k in range(1, last + 1):
        models = update_average(campaign, k, models)
        config, why = widened(campaign.run, campaign.loaded, k)
        models = run_iteration(Iteration(campaign, k, config, models, prompts, why), evaluations)
        if k < last and stops_at(campaign, k, models):
            return k
        campaign.reached(k, "promote")
    return last


def is_new(campaign: Campaign) -> bool:
    """Whether nothing has been sampled with the current settings."""
    run = campaign.run
    if not run.config.exists() or run.stage(0, "eval").manifest() is None:
        return True
    return bool(diff(settings_of(run).raw, campaign.loaded.raw))


def check_names(campaign: Campaign, base: Model, prompts: Mapping[str, list[PromptRow]]) -> None:
    """Resolve everything that the config names before the first token is sampled. UserError with all problems."""
    details = {"policy": base.path, "configs": campaign.loaded.each, "prompts": prompts}
    found: Findings = call(campaign.pool.trainer, Job("checking what the config names", "named", details))
    asked = (("judge", campaign.pool.judge, ("train",)), ("eval-judge", campaign.pool.eval_judge, ("gate", "test")))
    for name, judge, sets in asked:
        if judge is not None and (name == "eval-judge" or campaign.base.samples):
            rows = [row for which in sets for row in prompts[which]]
            job = Job(f"trying the prompts on the {name}", "check_prompts", {"prompts": rows})
            found.problems += call(judge.worker, job).problems
    for note in found.notes:
        campaign.warn(note)
    found.refuse()


def stops_at(campaign: Campaign, k: int, models: ModelRoles) -> bool:
    """Whether a rejection ends the campaign at iteration `k`, and it has not been continued since."""
    rejected = models.incumbent.iteration != k
    return rejected and campaign.loaded.at(k).promote.on_reject == "stop" and not campaign.run.promotion(k + 1).exists()


def check_judges(campaign: Campaign) -> None:
    """Test the judges on their known examples, and keep their fingerprints."""
    pool, correct_at = campaign.pool, campaign.base.pairs.correct_at
    if pool.judge is not None:
        campaign.judge = campaign.eval_judge = pool.prepare(pool.judge, correct_at)
        refuse_comparing(campaign.loaded, pool.judge.compares)
    if pool.eval_judge is not None and pool.eval_judge is not pool.judge:
        campaign.eval_judge = pool.prepare(pool.eval_judge, correct_at)


def run_iteration(it: Iteration, evaluations: dict[int, Evaluation]) -> ModelRoles:
    """Run one iteration, and return the models that the next one starts from. `evaluations` holds those of the earlier
    iterations, and gets this one's."""
    campaign, was_working, started = it.campaign, it.campaign.working, time.monotonic()
    announce(it)
    paired = make_pairs(it)
    it.reached("pair")
    models = promote_stage(it, train_and_decide(it, paired, evaluations))
    if campaign.working:
        describe_model(campaign.run, it.k)
        elapsed = time.monotonic() - started if was_working else None
        campaign.run.event("iteration_finished", iteration=it.k, seconds=elapsed)
    refresh(campaign, it.k)
    return models


def make_pairs(it: Iteration) -> Manifest:
    """Return the pair manifest. In online mode the round has been trained when this returns."""
    taken = take_prompts(it)
    if it.config.train.online:
        paired = online_stages(it, taken)
        it.reached("sample")
        it.reached("judge")
        return paired
    sampled, judged = sample_and_judge(it, taken) if it.config.samples else record_given_prompts(it, taken)
    it.reached("judge")
    return pair_stage(it, sampled, judged, taken)


def announce(it: Iteration) -> None:
    """Print which models this iteration starts from, unless it is finished."""
    campaign, config, train = it.campaign, it.config, it.config.train
    if campaign.run.promotion(it.k).exists():
        return
    sampler, start = it.sampler, it.start
    warm = ", both after a warm start on the chosen responses" if train.warm_start else ""
    online = f"; syncing weights to the sampler at least every {train.sync_every} steps" if train.online else ""
    works_on = f"and training {start.named}" if sampler == start else f"{sampler.named}, training {start.named}"
    works_on = f"sampling from {works_on}" if config.samples else f"training {start.named}"
    extra = describe_data(config, it.k)
    campaign.display.say(
        f"\niteration {it.k} of {campaign.loaded.iterations}: {works_on}, reference: {it.reference.named}{warm}{online}"
        f"{f'; {extra}' if extra else ''}"
    )


def refresh(campaign: Campaign, k: int) -> None:
    """Rewrite metrics.jsonl and the report from the run folder, and print the iteration's line."""
    if not campaign.working:
        return
    state = collect(campaign.run, campaign.loaded)
    keep_states(campaign.run, state)
    write_metrics(campaign.run, state)
    done = state.state_of(k)
    campaign.display.say(iteration_line(state, k), details={"iteration": k, "metrics": iteration_metrics(done)})
    if 0 < k < campaign.loaded.iterations:
        campaign.display.say(f"  {time_left(look(campaign.run, campaign.loaded), None)}")
    campaign.display.evaluated(done)
    refresh_report(campaign)


def refresh_report(campaign: Campaign) -> None:
    """Rewrite the report; if that fails, warn and continue."""
    from loop.report.page import write_report

    try:
        write_report(campaign.run)
    except Exception as error:  # noqa: BLE001  a broken report must not end a campaign
        problem = f"{type(error).__name__}: {error}"
        campaign.display.warn(f"the report could not be written ({problem}); retry with `prefloop report`")
