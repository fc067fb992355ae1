"""Command `plan`: explains what a run would do, and imports nothing heavy unless it has to `check`."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from judges.contract import Judge
from judges.registry import BUILT_IN
from judges.resolve import build_judge
from loop.commands import plan_sampling as sampling
from loop.config.fit import prompts_per_slice
from loop.config.load import LoadedConfig, diff, refuse_comparing
from loop.config.rule_table import RULES
from loop.config.settings import Config, JudgeConfig
from loop.engines.base import chosen_engine
from loop.engines.option_checks import describe_replicas, option_problems
from loop.format import one_line
from loop.measure.power import describe_gate, gate_of
from loop.redact import setting_text
from loop.store.findings import Findings
from loop.store.lineage import settings_of
from loop.store.missing import missing
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json
from loop.store.run_state import SCHEMA
from loop.store.stage import STAGES
from loop.view.describe import (
    NamedJudge,
    describe_counts,
    describe_data,
    describe_evaluation,
    describe_judge,
    describe_loss,
    describe_models,
    describe_prompts,
)
from trainer.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class IterationPlan:
    """One iteration as planned; sizes are None where the number of prompts is only known from the data."""

    iteration: int
    sample: str
    pair: str
    train: str
    reference: str
    responses: int | None
    """Responses, if every prompt gets all of them."""
    responses_expected: int | None
    """The same with adaptive sampling, if solve rates are spread evenly."""
    makes: str
    """What the pair rule makes: pairs, singles or groups."""
    pairs_at_most: int | None
    steps_at_most: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What `prefloop run` would do. Field names are the keys of `prefloop plan --json`."""

    config: str
    run: str
    resume: str
    """Where the run would begin."""
    model: str
    engine: str
    replicas: str
    """How many engines there are, and what each takes; empty for one that finds its threads itself."""
    prompts: str
    judge: NamedJudge | None
    """None if the data say which answer is better."""
    eval_judge: NamedJudge | None
    evaluation: str
    gate: str
    """What the gate can see; empty if it decides nothing."""
    trackers: tuple[str, ...]
    iterations: list[IterationPlan]
    judge_calls: list[sampling.JudgeCalls]
    """Calls of the paid judges among the parts of the judge."""
    eval_judge_calls: list[sampling.JudgeCalls]
    """The same for the evaluation's own judge."""
    checked: Json | None
    """What `--check` has found, by subject; None without it."""

    def __str__(self) -> str:
        return "\n".join(plan_lines(self))

    def as_json(self) -> Json:
        """Plain values; what does not apply is left out."""
        plain = asdict(self) | {"trackers": list(self.trackers)}
        for key, calls in (("judge_calls", self.judge_calls), ("eval_judge_calls", self.eval_judge_calls)):
            plain[key] = [one.as_json() for one in calls]
        optional = ("judge_calls", "eval_judge_calls", "checked", "replicas")
        return {"schema": SCHEMA} | {key: value for key, value in plain.items() if value or key not in optional}


def make_plan(run: RunFolder, loaded: LoadedConfig, *, check: bool) -> Plan:
    """What `prefloop run` would do. UserError or JudgeError if it could not."""
    checked = None
    if check:
        from loop.commands.plan_check import check_for_real

        checked = check_for_real(loaded)
    else:
        Findings([*missing(loaded), *option_problems(loaded.each)]).refuse()
    return planned(run, loaded, checked)


def planned(run: RunFolder, loaded: LoadedConfig, checked: Json | None) -> Plan:
    """The plan of settings whose names and files are not looked up. JudgeError for wrong arguments of the judge."""
    config = loaded.base
    judge, eval_judge = (_built_in(settings) for settings in (config.judge, config.eval_judge))
    refuse_comparing(loaded, judge is not None and judge.compares)
    two = config.eval_judge != config.judge
    paid, paid_eval = _paid(judge), _paid(eval_judge) if two else []
    return Plan(
        config=str(loaded.source),
        run=str(run),
        resume=where_it_resumes(run, loaded),
        model=config.model.base,
        engine=chosen_engine(config.engine),
        replicas=describe_replicas(config.engine),
        prompts=describe_prompts(config),
        judge=_named(config.judge),
        eval_judge=_named(config.eval_judge),
        evaluation=describe_evaluation(config),
        gate="" if (gate := gate_of(loaded)) is None else describe_gate(gate),
        trackers=tuple(config.trackers.names),
        iterations=[iteration_plan(loaded, k) for k in range(1, loaded.iterations + 1)],
        judge_calls=[sampling.judge_calls(loaded, one, trains=config.samples, evaluates=not two) for one in paid],
        eval_judge_calls=[sampling.judge_calls(loaded, one, trains=False) for one in paid_eval],
        checked=checked,
    )


def _paid(judge: Judge | None) -> list[Judge]:
    return [] if judge is None else [*judge.paid_for()]


def _named(settings: JudgeConfig | None) -> NamedJudge | None:
    return None if settings is None else NamedJudge(settings.name, settings.args)


def _built_in(settings: JudgeConfig | None) -> Judge | None:
    """The judge, if it comes with prefloop: foreign code is run by `--check` only. JudgeError for wrong arguments."""
    known = settings is not None and settings.name in BUILT_IN
    return build_judge(settings.name, settings.args) if settings is not None and known else None


def iteration_plan(loaded: LoadedConfig, k: int) -> IterationPlan:
    """Plan of one iteration with rough sizes."""
    config = loaded.at(k)
    start, sampler, reference = describe_models(config, k)
    warmed = " after a warm start on the chosen responses" if config.train.warm_start else ""
    responses, pairs, steps = sizes(config)
    return IterationPlan(
        iteration=k,
        sample=describe_sampling(config, k, sampler, reference) if config.samples else "nothing is sampled",
        pair=describe_pairing(config, k),
        train=f"{describe_training(config.train)}, starting from {start}{warmed}",
        reference=f"{reference}{warmed}",
        responses=responses,
        responses_expected=None if responses is None else round(responses * sampling.sampled_share(config)),
        makes=RULES[config.pairs.rule].kind,
        pairs_at_most=pairs,
        steps_at_most=steps,
    )


def sizes(config: Config) -> tuple[int | None, int | None, int | None]:
    """Responses, and at most how many pairs and steps; None where the data decide."""
    prompts = prompts_of(config)
    if prompts is None or not config.samples:
        return None, None, None
    pairs = prompts * pairs_per_prompt(config)
    pairs = min(pairs, config.pairs.max_pairs or pairs)
    return prompts * config.sampling.n, pairs, steps_at_most(config, prompts, pairs)


def prompts_of(config: Config) -> int | None:
    """Training prompts of an iteration; None for all that the data have."""
    return config.prompts.per_iteration or config.prompts.train


def pairs_per_prompt(config: Config) -> int:
    """The most pairs that one prompt can give."""
    return config.pairs.at_most or config.sampling.n


def describe_sampling(config: Config, k: int, sampler: str, reference: str) -> str:
    """How many responses to how many prompts, from which models, with which settings."""
    s = config.sampling
    half = f", one half of them from {reference}" if s.from_reference else ""
    return (
        f"{s.n} responses to {prompts_of(config) or 'all'} prompts from {sampler}{half}, "
        f"temperature {s.temperature:g}, at most {s.max_tokens} tokens{s.describe()}"
        f"{describe_slices(config)}{sampling.describe_adaptive(config)}{sampling.describe_widen(config, k)}"
    )


def describe_pairing(config: Config, k: int) -> str:
    """The rule and its limit, and the pairs that come from elsewhere."""
    rule = config.pairs.rule
    own = [f"{rule} ({RULES[rule].about}), at most {pairs_per_prompt(config)} per prompt"] if config.samples else []
    return "; ".join(filter(None, [*own, describe_data(config, k)]))


def describe_training(train: TrainSettings) -> str:
    """Loss, trained weights, learning rate and batch."""
    how = f"LoRA rank {train.lora.rank}" if train.lora else "all weights"
    mixed = f", {train.mix.per_step} examples of {train.mix.path} in each" if train.mix else ""
    how += f", learning rate {train.learning_rate:g}"
    return f"{describe_loss(train)}, {how}, {train.batch_pairs} pairs a step{mixed}"


def describe_slices(config: Config) -> str:
    """How often the sampler gets new weights inside an iteration; nothing if it does not."""
    if not config.train.online:
        return ""
    steps = f"{config.train.sync_every} step{'s' if config.train.sync_every != 1 else ''}"
    return f", in slices of {prompts_per_slice(config)} prompts, new weights after at most {steps}"


def steps_at_most(config: Config, prompts: int, pairs: int) -> int:
    """Optimizer steps if every prompt yields all pairs."""
    train = config.train
    if train.online:
        return -(-prompts // prompts_per_slice(config)) * int(train.sync_every)
    steps = -(-pairs // train.batch_pairs) * train.epochs
    return min(steps, train.max_steps or steps)


def where_it_resumes(run: RunFolder, loaded: LoadedConfig) -> str:
    """Where a run with this folder would begin."""
    if not run.exists():
        return "nothing is there yet: it starts with the base model's evaluation"
    before = settings_of(run).raw
    changes = "; ".join(
        f"{key}: {setting_text(old, key)} → {setting_text(new, key)}" for key, old, new in diff(before, loaded.raw)
    )
    changed = f"; changed settings (rejected if they would invalidate finished work): {changes}" if changes else ""
    if run.stage(0, "eval").manifest() is None:
        return f"it continues with the base model's evaluation{changed}"
    for k in range(1, loaded.iterations + 1):
        missing = [stage for stage in STAGES if run.latest(k, stage).manifest() is None]  # in its last attempt
        if missing or not run.promotion(k).exists():
            return f"it continues in iteration {k} at stage {missing[0] if missing else 'promote'}{changed}"
    return f"all {loaded.iterations} iterations are finished{changed}"


def print_plan(plan: Plan) -> None:
    """The plan for a person."""
    print(plan)


def plan_lines(plan: Plan) -> Iterator[str]:
    """The plan for a person, line by line."""
    yield f"{plan.config} → {plan.run}: {plan.resume}.\n"
    yield f"model    {plan.model}, sampled with the {plan.engine} engine{plan.replicas and ': '}{plan.replicas}"
    yield f"prompts  {plan.prompts}"
    yield f"judge    {describe_judge(plan.judge)}"
    yield from (f"         {sampling.describe_calls(calls)}" for calls in plan.judge_calls)
    if plan.eval_judge != plan.judge:
        yield f"         in the evaluation {describe_judge(plan.eval_judge)}"
    yield from (f"         {sampling.describe_calls(calls)}" for calls in plan.eval_judge_calls)
    yield f"eval     {plan.evaluation}"
    if plan.gate:
        yield f"gate     {plan.gate}"
    if plan.trackers:
        yield f"tracked  {', '.join(plan.trackers)}"
    for iteration in plan.iterations:
        yield from _iteration_lines(iteration)
    if plan.checked is not None:
        yield from _checked_lines(plan.checked)


def _checked_lines(checked: Json) -> Iterator[str]:
    """What `--check` has found, a line each."""
    yield ""
    texts = {
        **{what: found for what, found in checked.items() if what != "notes"},
        "libraries": ", ".join(f"{name} {version}" for name, version in checked["libraries"].items()),
        "prompts": describe_counts(checked["prompts"]),
        "first_prompt": " ".join(f"{message['role']}: {message['content']}" for message in checked["first_prompt"]),
    }
    yield from (f"checked {what.replace('_', ' ')}: {one_line(text)}" for what, text in texts.items())
    yield from (f"note: {one_line(note)}" for note in checked.get("notes", ()))


def _iteration_lines(it: IterationPlan) -> Iterator[str]:
    yield f"\niteration {it.iteration}\n  sample     {it.sample}\n  pair       {it.pair}"
    yield f"  train      {it.train}\n  reference  {it.reference}"
    if it.responses is not None:
        most = f"at most {it.pairs_at_most} {it.makes} and {it.steps_at_most} steps"
        yield f"  sizes      {it.responses} responses, {most}"
