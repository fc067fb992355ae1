"""Texts about what an iteration trains on, from settings or a manifest's counts; plan, run and status share them."""

from collections.abc import Mapping
from dataclasses import dataclass

from loop.config.promote_section import LARGEST, settings_of_attempt
from loop.config.prompts_section import MixturePrompts, PreferencePrompts, rate_columns
from loop.config.settings import Config
from loop.config.yaml_text import flow_yaml
from loop.prompts.sets import names_of, source_name
from loop.redact import redacted
from loop.store.run_records import Json
from loop.store.run_state import PairCounts, SampleCounts
from trainer.settings import TrainSettings


def describe_prompts(config: Config) -> str:
    """The three prompt sets, and how an iteration draws from them."""
    prompts = config.prompts
    train = f"{prompts.train}" if prompts.train else "all other prompts"
    where = source_name(prompts).replace(" ", " (", 1) + ")" if " " in source_name(prompts) else source_name(prompts)
    if isinstance(prompts, MixturePrompts):
        total = sum(mixed.weight for mixed in prompts.sources)
        parts = zip(names_of(prompts), prompts.sources, strict=True)
        where = "a mixture of " + ", ".join(f"{100 * mixed.weight / total:.3g} % {name}" for name, mixed in parts)
    return f"{where}: {train} to train on, {describe_slices(config)}; {prompts.gate} gate, {prompts.test} test"


def describe_counts(counts: Mapping[str, int]) -> str:
    """The counts of the prompt sets, e.g. `80 rows, 48 train`; those of 0 are left out."""
    return ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items() if count)


def describe_slices(config: Config) -> str:
    """Which of the training prompts an iteration takes."""
    prompts = config.prompts
    if isinstance(prompts, PreferencePrompts) and prompts.parts is not None:
        each = f"in {prompts.parts} parts, one each iteration"
    elif prompts.per_iteration is None:
        return "all of them each iteration"
    else:
        each = f"{prompts.per_iteration} {'new ones ' if prompts.order == 'random' else ''}each iteration"
    if prompts.order == "random":
        return each
    first = {"easy_to_hard": "the easiest first", "hard_to_easy": "the hardest first"}[prompts.order]
    return f"{each}, {first} ({describe_difficulty(config)})"


def describe_difficulty(config: Config) -> str:
    """How the difficulty of a prompt is measured."""
    prompts = config.prompts
    if isinstance(prompts, PreferencePrompts):
        by_model = "by how much likelier the base model finds the chosen answer"
        return "by their margin" if prompts.order_by == "margin" else by_model
    measured, columns = "by the solve rate that earlier iterations measured", rate_columns(prompts)
    return f"{measured}, before that the column {' or '.join(dict.fromkeys(columns))}" if columns else measured


def describe_data(config: Config, k: int) -> str:
    """Pairs of iteration `k` that it does not sample itself: given, replayed, offline; empty if there are none."""
    pairs, prompts, words = config.pairs, config.prompts, list[str]()
    if isinstance(prompts, PreferencePrompts):
        part = f", part {k} of {prompts.parts}" if prompts.parts is not None else ""
        words.append(f"its pairs are given ({prompts.named}{part})")
    for back, share in sorted(pairs.replay.items()):
        if back < k:
            words.append(f"{100 * share:.3g} % as many pairs as it makes are replayed from iteration {k - back}")
    if pairs.offline is not None:
        words.append(f"{100 * pairs.offline.share:.3g} % of all its pairs come from {pairs.offline.named}")
    return "; ".join(words)


def describe_sources(counts: SampleCounts) -> str:
    """Number of prompts from each source of a mixture; empty for a single source."""
    return ", ".join(f"{count} of {name}" for name, count in counts.sources.items())


def describe_extra_pairs(counts: PairCounts) -> str:
    """Pairs besides the iteration's own, e.g. ` (12 replayed from iteration 1, 30 offline)`; empty if none."""
    parts = [f"{count} replayed from iteration {source}" for source, count in counts.replayed.items()]
    parts += [f"{counts.offline} offline"] if counts.offline is not None else []
    return f" ({', '.join(parts)})" if parts else ""


def describe_changes(changes: Json) -> str:
    """learning_rate 5e-07, max_steps 20."""
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in changes.items()
    )


def describe_evaluation(config: Config) -> str:
    """What is measured after every iteration, and how it decides on promotion."""
    rule = {
        "always": "every candidate is promoted",
        "better": f"a candidate is promoted if its {config.promote.metric} is significantly better on the gate prompts",
        "not_worse": f"a candidate is promoted unless its {config.promote.metric} on the gate prompts may be worse by "
        f"more than {config.promote.margin:g} than the incumbent's or the best promoted model's",
    }[config.promote.rule]
    answers = "how often the held-out pairs' chosen answers gain more on the base model than the rejected ones"
    if config.eval_judge is not None:
        top_p = "" if config.eval.top_p == 1 else f", top_p {config.eval.top_p:g}"
        how = f"temperature {config.eval.temperature:g}{top_p}{config.eval_options.describe()}"
        sampled = f"{config.eval.samples} sampled responses ({how})"
        answers = f"1 greedy and {sampled} per prompt"
    return f"{answers}; {rule}{describe_limits(config)}{describe_rejection(config)}"


def describe_limits(config: Config) -> str:
    """Limits of the first iteration; empty if there are none."""
    limits = config.promote.limits
    words = [f"{name} {most:g}" for name in LARGEST if (most := getattr(limits, name)) is not None]
    words += [f"{limits.shadow} falling by {limits.shadow_fall:g}"] if limits.shadow is not None else []
    return f"; never beyond {', '.join(words)}" if words else ""


def describe_rejection(config: Config) -> str:
    """What happens after a rejected candidate, if it is not the next iteration."""
    promote = config.promote
    if promote.on_reject == "stop":
        return "; the campaign stops at a rejected candidate"
    if promote.on_reject == "continue":
        return ""
    _, changes = settings_of_attempt(config.train, promote.retry, 2, steps_before=1)
    changes |= {"max_steps": f"{promote.retry.steps:g} of those before"} if "max_steps" in changes else {}
    changed = ", ".join(f"{key} {value}" for key, value in changes.items())
    times = "once" if promote.retries == 1 else f"{promote.retries} times"
    return f"; a rejected round is retried {times}, first with {changed}"


def describe_models(config: Config, k: int) -> tuple[str, str, str]:
    """The models that an iteration trains, samples from, and takes as its reference."""
    words = {
        "incumbent": "the last promoted model",
        "previous": "the last candidate, promoted or not",
        "initial": "the base model",
        "path": f"the model {config.reference_path}",
        "ema": f"the average of base and promoted models (decay {config.reference_decay:g})",
    }
    if k == 1:
        words |= dict.fromkeys(("incumbent", "previous", "ema"), "the base model")
    sampler = words["incumbent" if config.start == "initial" else config.start]
    return words[config.start], sampler, words[config.reference]


def describe_loss(train: TrainSettings) -> str:
    """The weighted sum with its arguments, e.g. `dpo (beta 0.1) + 0.5 x nll (normalise response)`."""
    words = []
    for term in train.terms:
        arguments = ", ".join(f"{key} {value}" for key, value in term.arguments.items())
        scale = "" if term.weight == 1 else f"{term.weight:g} x "
        words.append(f"{scale}{term.name}{f' ({arguments})' if arguments else ''}")
    return " + ".join(words)


@dataclass(frozen=True, slots=True)
class NamedJudge:
    """A judge's name and arguments, as the settings have them."""

    name: str
    args: Json


def describe_judge(judge: NamedJudge | None) -> str:
    """Its name and arguments."""
    if judge is None:
        return "none: the data say which answer is better"
    return f"{judge.name} {flow_yaml(redacted(judge.args))}" if judge.args else judge.name
