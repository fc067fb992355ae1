"""Command `prefloop judge test`: reports how a judge does on labelled examples."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

from judges.context import Generate, JudgeContext, LocalModel, Usage
from judges.contract import Judge
from judges.resolve import build_judge
from judges.trial.labelled import read_cases
from judges.trial.report import TrialReport, report
from judges.trial.trial import Outcome, try_cases
from judges.types import USUAL, Thinking
from judges.versions import fingerprint
from loop.config.engine_section import EngineConfig
from loop.config.load import load_config
from loop.config.settings import JudgeConfig
from loop.config.yaml_text import parse_yaml
from loop.engines.judge_engine import asked_for, judge_engine
from loop.errors import UserError
from loop.measure.stats import wilson
from loop.prompts.chat_template import ChatFormat
from loop.prompts.thinking import find_thinking
from loop.store.model_folder import find_model
from loop.view.display import Display
from loop.workers.judge_service import timer
from loop.workers.log_prob_service import LogProbScorer

CONFIDENCE = 0.95
"""Of the interval around the agreement; examples count as independent."""


@dataclass(frozen=True, slots=True)
class JudgeSpec:
    """A judge as the command line names it, and from which score on a response counts as right."""

    name: str
    judge: Judge
    correct_at: float
    thinking: Thinking | None = USUAL


def named_judge(name: str, arguments: Sequence[str], correct_at: float | None) -> JudgeSpec:
    """The judge named directly or in a campaign's YAML file; `key=value` arguments override the file's."""
    given = dict(_argument(text) for text in arguments)
    if name.endswith((".yaml", ".yml")):
        config = load_config(name).base
        if config.judge is None:
            raise UserError(f"{name} names no judge: its pairs come from preference data.")
        name, args, default = config.judge.name, config.judge.args | given, config.pairs.correct_at
        thinking = find_thinking(config.judge.thinking, config.model)
    else:
        args, default, thinking = given, 1.0, USUAL
    return JudgeSpec(name, build_judge(name, args), default if correct_at is None else correct_at, thinking)


def _argument(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--arg {text!r} is not of the form key=value, e.g. --arg tolerance=0.1.")
    return key.strip(), parse_yaml(value, f"--arg {text!r}")


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast the judge was."""

    seconds: float
    responses: int
    responses_per_second: float


@dataclass(frozen=True, slots=True)
class PricedUsage(Usage):
    """Calls and tokens, and their cost in money (None: the judge has no prices)."""

    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An example on which judge and label differ."""

    where: str
    prompt: str
    target: str | None
    responses: list[str]
    wanted: str | float
    said: str
    scores: list[float | None]
    extracted: list[str | None]
    why: str


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """The report on a judge's test."""

    judge: dict[str, Any]
    """Its fingerprint."""
    data: str
    correct_at: float
    trial: TrialReport
    agreement_interval: list[float]
    speed: Speed
    used: PricedUsage | None
    hint: str | None
    disagreements: list[Disagreement]

    def as_json(self) -> dict[str, Any]:
        """The JSON document: the trial's numbers stand among the others, bins go from `from` to `to`."""
        named = {"low": "from", "high": "to"}
        values = asdict(self, dict_factory=lambda items: {named.get(key, key): value for key, value in items})
        head = {name: values.pop(name) for name in ("judge", "data", "correct_at")}
        return head | values.pop("trial") | values


def run_test(
    chosen: JudgeSpec, data: Path, *, limit: int | None, tolerance: float, show: int, quiet: bool
) -> JudgeReport:
    """The report on the judge. Raises JudgeError or UserError."""
    judge, used = chosen.judge, list[Usage]()
    context = JudgeContext(find=find_model, log_probs=LogProbScorer(), on_usage=lambda usage, _: used.append(usage))
    judge.bind(replace(context, on_item=timer(JudgeConfig.model_fields["seconds_per_response"].default)))
    judge.ready()
    cases = read_cases(data, chosen.thinking)[:limit]
    display = Display(to_stderr=quiet)
    if (model := asked_for(judge)) is not None:
        judge.bind(replace(judge.context, generate=start_engine(model, display), weights=model.found.digest))
    responses = sum(len(case.responses) for case in cases)
    started = time.perf_counter()
    with display.bar("judge", responses, "responses") as bar:
        outcomes = try_cases(judge, cases, correct_at=chosen.correct_at, tolerance=tolerance, on_progress=bar.set)
    seconds = time.perf_counter() - started
    trial, total = report(outcomes), sum(used, Usage())
    quantile = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return JudgeReport(
        judge=fingerprint(judge, chosen.name),
        data=str(data),
        correct_at=chosen.correct_at,
        trial=trial,
        agreement_interval=list(wilson(trial.agreed / len(outcomes), len(outcomes), quantile)),
        speed=Speed(seconds, responses, responses / max(seconds, 1e-9)),
        used=PricedUsage(**asdict(total), cost=judge.cost(total)) if total.calls else None,
        hint=hint(outcomes, chosen.correct_at),
        disagreements=[_disagreement(outcome) for outcome in outcomes if not outcome.agrees][:show],
    )


def hint(outcomes: Sequence[Outcome], correct_at: float) -> str | None:
    """What to change where labelled responses get different scores and all of them count as right, or none does."""
    labelled = [outcome for outcome in outcomes if outcome.case.kind == "label"]
    graded = [outcome for outcome in labelled if outcome.decision in ("right", "wrong")]
    scores = {verdict.score for outcome in graded for verdict in outcome.verdicts if verdict.score is not None}
    if len(scores) < 2 or len({outcome.decision for outcome in graded}) > 1:
        return None
    what = "all of them count as right" if graded[0].decision == "right" else "none of them counts as right"
    return (
        f"The judge's scores lie between {min(scores):g} and {max(scores):g}, and a score counts as right from "
        f"{correct_at:g} on, so {what}: choose another threshold with --correct-at."
    )


def start_engine(model: LocalModel, display: Display) -> Generate:
    """An engine with the judge's model in this process; its output goes to a file, which stays if it fails."""
    from loop.workers.sampling_service import EngineService

    own = judge_engine(model, EngineConfig())
    service = EngineService(own.settings, ChatFormat(own.chat_template_kwargs))
    display.say("  starting the judge's engine")
    with tempfile.NamedTemporaryFile(prefix="prefloop-judge-engine-", suffix=".log", delete=False) as file:
        log = Path(file.name)
    try:
        with output_into(log):
            answering = service.answering(own.found.folder, own.found.digest, lambda **_: None)
    except Exception as error:  # an engine is foreign code and may raise anything
        raise UserError(f"The judge's engine did not start: {error}. Its output is in {log}.") from error
    log.unlink()
    return answering


@contextmanager
def output_into(log: Path) -> Iterator[None]:
    """Inside, whatever this process and its libraries print goes into the file."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(handle) for handle in (1, 2)]
    try:
        with log.open("ab") as file:
            for handle in (1, 2):
                os.dup2(file.fileno(), handle)
            yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for handle, old in zip((1, 2), kept, strict=True):
            os.dup2(old, handle)
            os.close(old)


def _disagreement(outcome: Outcome) -> Disagreement:
    case = outcome.case
    return Disagreement(
        where=case.where,
        prompt=case.prompt.text,
        target=case.prompt.target,
        responses=[response.text for response in case.responses],
        wanted=case.wanted,
        said=outcome.decision,
        scores=[verdict.score for verdict in outcome.verdicts],
        extracted=[verdict.extracted for verdict in outcome.verdicts],
        why=outcome.why,
    )
