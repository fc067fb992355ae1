"""Finds contradictions in the settings of prompts and pairs; each is a ValueError that says what to change."""

from collections.abc import Callable, Mapping
from typing import Any

from loop.config.fit import why_not_adaptive, why_not_half, why_not_online, why_unfit
from loop.config.pairs_section import PairsConfig
from loop.config.promote_section import PromoteConfig, check_reference, check_retry
from loop.config.prompts_section import PreferencePrompts, PromptsConfig
from loop.config.rule_table import RULES
from loop.config.sampling_section import SamplingConfig
from loop.config.settings import Config
from trainer.settings import TrainSettings

PREFERENCE = "preference_accuracy"
"""The metric of models that nothing judges."""
OF_GIVEN = ("max_pairs", "replay", "offline", "correct_at")
"""Keys of `pairs` that apply to preference data (`correct_at` to the judge of the evaluation)."""
OF_RESPONSES = ("length", "length_ratio", "truncated", "shadow")
"""Limits that read the judged responses of an evaluation."""


def check(config: Config) -> None:
    """ValueError if settings of different sections contradict each other."""
    _check_lengths(config)
    _check_labels(config)
    check_reference(config.reference, config.reference_path, config.start, config.train)
    check_retry(config.promote, config.train)
    if config.eval_judge is not None and config.eval_judge.human_judge:
        raise ValueError(
            "the judge external labels training responses only: every model is evaluated, and the run could not "
            "continue without people; name another judge in eval.judge, e.g. eval.judge={name: exact}"
        )
    _check_pairs(config)


def _check_lengths(config: Config) -> None:
    longest = max(config.sampling.max_tokens, config.eval.max_tokens or 0)
    if longest >= config.engine.max_model_len:
        raise ValueError(
            f"max_tokens ({longest}) leaves no room for a prompt within engine.max_model_len "
            f"({config.engine.max_model_len}); raise engine.max_model_len or lower max_tokens"
        )
    for name, section in (("sampling", config.sampling), ("eval", config.eval)):
        most = section.max_tokens or config.sampling.max_tokens
        if section.min_tokens > most:
            raise ValueError(
                f"{name}.min_tokens ({section.min_tokens}) is more than the max_tokens ({most}) at which a response is "
                "cut off; lower it, or raise max_tokens"
            )


def _check_labels(config: Config) -> None:
    """A campaign that samples needs a judge; preference data rules out what reads sampled responses."""
    if config.judge is None and config.samples:
        raise ValueError("judge is missing: what labels the responses")
    check_data(config.prompts, config.pairs, config.iterations)
    if isinstance(config.prompts, PreferencePrompts):
        if config.judge is not None and config.eval.judge is not None:
            raise ValueError(
                "judge and eval.judge are both set, but with prompts.source=preferences nothing is sampled for "
                "training, so judge would have nothing to do; remove it"
            )
        judged = config.eval_judge is not None
        check_given_pairs(config.prompts, config.pairs, config.train, config.promote, judged=judged)
        check_sampling(config.sampling)
    elif config.promote.metric == PREFERENCE:
        raise ValueError("promote.metric preference_accuracy measures preference data, and this campaign samples")


def _check_pairs(config: Config) -> None:
    """The loss can be trained from what the pair rule makes, and sampling provides what both need."""
    given = config.prompts if isinstance(config.prompts, PreferencePrompts) else None
    why = why_unfit(config.pairs, config.train, n=config.sampling.n, given=given)
    if why := why or why_not_half(config.pairs, config.sampling):
        raise ValueError(why)
    if config.train.online and (why := why_not_online(config)):
        raise ValueError(f"train.sync_every {config.train.sync_every} cannot be used here: {why}, or set it to round")
    if config.sampling.adaptive is not None and (why := why_not_adaptive(config.pairs, human_judge=config.human_judge)):
        raise ValueError(f"sampling.adaptive {why}")


def fill_metric(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the metric of preference data, where nothing judges and no metric is named."""
    prompts, promote, evaluation = (given.get(name) or {} for name in ("prompts", "promote", "eval"))
    if not all(isinstance(section, Mapping) for section in (prompts, promote, evaluation)):
        return dict(given)
    judged = given.get("judge") or evaluation.get("judge")
    if prompts.get("source") != "preferences" or judged or "metric" in promote:
        return dict(given)
    return {**given, "promote": {**promote, "metric": PREFERENCE}}


def check_data(prompts: PromptsConfig, pairs: PairsConfig, iterations: int) -> None:
    """ValueError if the data cannot last for the iterations, or if a replayed iteration does not exist."""
    _check_slices(prompts, iterations)
    far = [back for back in sorted(pairs.replay) if back >= iterations]
    if far:
        count = "there is only 1 iteration" if iterations == 1 else f"there are only {iterations} iterations"
        raise ValueError(
            f"pairs.replay takes pairs from {far[0]} iteration{'s' * (far[0] > 1)} before, but {count}, so there is "
            "nothing to replay; raise iterations, or remove that key from pairs.replay"
        )


def _check_slices(prompts: PromptsConfig, iterations: int) -> None:
    if isinstance(prompts, PreferencePrompts) and prompts.parts is not None and prompts.parts < iterations:
        raise ValueError(
            f"{iterations} iterations need {iterations} parts of the preference data, but prompts.parts is "
            f"{prompts.parts}; raise it, or lower iterations"
        )
    size, train = prompts.per_iteration, prompts.train
    if not size or not train:
        return
    if prompts.order != "random" and size > train:
        raise ValueError(f"prompts.per_iteration is {size}, but prompts.train is {train}; raise it")
    if prompts.order == "random" and size * iterations > train:
        raise ValueError(
            f"{iterations} disjoint slices of prompts.per_iteration={size} need {size * iterations} training prompts, "
            f"but prompts.train is {train}; raise it, lower prompts.per_iteration, or set it to null to use all "
            "prompts each time"
        )


def check_given_pairs(
    prompts: PreferencePrompts, pairs: PairsConfig, train: TrainSettings, promote: PromoteConfig, *, judged: bool
) -> None:
    """ValueError for settings that need sampled responses where the pairs come from a dataset."""
    odd = [key for key in type(pairs).model_fields if key not in OF_GIVEN and pairs.changes(key)]
    if odd:
        raise ValueError(
            f"pairs.{odd[0]} applies to sampled responses, but the pairs come from preference data (prompts.source); "
            f"leave it out, only {', '.join(OF_GIVEN)} apply there"
        )
    if pairs.replay and not prompts.cut:
        raise ValueError(
            "pairs.replay brings back pairs of earlier iterations, but every iteration takes all pairs anyway; set "
            "prompts.parts, or remove pairs.replay"
        )
    if judged and promote.metric == PREFERENCE:
        raise ValueError(
            f"promote.metric {PREFERENCE} is for campaigns that nothing judges, but there is a judge; set "
            "promote.metric to sampled_accuracy, or remove the judge"
        )
    if not judged:
        _check_unjudged(train, promote)


def check_sampling(sampling: SamplingConfig) -> None:
    """ValueError for settings that depend on responses where nothing is sampled."""
    for key in ("adaptive", "widen"):
        if getattr(sampling, key) is not None:
            raise ValueError(
                f"sampling.{key} decides by sampled responses, but the pairs come from preference data "
                "(prompts.source); set it to null"
            )


def _check_unjudged(train: TrainSettings, promote: PromoteConfig) -> None:
    """What needs judged responses is refused without a judge."""
    way = "name a judge (judge, or eval.judge)"
    if promote.metric != PREFERENCE:
        raise ValueError(
            f"promote.metric {promote.metric} needs a judge, and there is none; {way}, or use {PREFERENCE}"
        )
    if train.select == "best" or promote.retry.checkpoint == "best":
        key = "train.select" if train.select == "best" else "promote.retry.checkpoint"
        raise ValueError(f"{key} best chooses by judged responses, and there is no judge; {way}, or leave it out")
    for name in OF_RESPONSES:
        if getattr(promote.limits, name) is not None:
            raise ValueError(f"promote.limits.{name} is measured on judged responses; {way}, or set it to null")


def schedule_problem(at: Callable[[int], Config], iterations: int) -> str | None:
    """What is wrong with settings that are right in each iteration, but contradict those of another."""
    return replay_problem(at, iterations) or looks_problem(at, iterations)


def looks_problem(at: Callable[[int], Config], iterations: int) -> str | None:
    """What is wrong if further samples of a model, which serve the decisions of several iterations, differ in size."""
    sizes = {m.samples for k in range(1, iterations + 1) if (m := at(k).promote.more_samples) is not None}
    if len(sizes) < 2:
        return None
    return (
        f"promote.more_samples.samples differs between iterations ({', '.join(map(str, sorted(sizes)))}), but the "
        "samples of one model serve the decisions of several; use one value"
    )


def replay_problem(at: Callable[[int], Config], iterations: int) -> str | None:
    """What is wrong if an iteration replays another kind than it makes: pairs, singles and groups do not mix."""
    for k in range(1, iterations + 1):
        kind = RULES[at(k).pairs.rule].kind
        for back in at(k).pairs.replay:
            before = RULES[at(k - back).pairs.rule].kind if back < k else kind
            if before != kind:
                return (
                    f"pairs.replay: iteration {k} makes {kind} (pairs.rule {at(k).pairs.rule}), but iteration "
                    f"{k - back} makes {before}; set pairs.replay to {{}} in iteration {k}, or use rules that make the "
                    "same"
                )
    return None
