"""Room loop, what an iteration trains on, in words: settings or a manifest's counts come in, a clause goes out. The
plan, the run and the status say it alike."""

from collections.abc import Mapping
from typing import Any

from loop.config import Config
from loop.config_prompts import MixturePrompts, PreferencePrompts, rate_columns
from loop.prompt_mixture import names_of, source_name


def prompts_in_words(config: Config) -> str:
    """The three sets and how an iteration draws from them."""
    prompts = config.prompts
    train = f"{prompts.train}" if prompts.train else "all other"
    where = source_name(prompts).replace(" ", " (", 1) + ")" if " " in source_name(prompts) else source_name(prompts)
    if isinstance(prompts, MixturePrompts):
        total = sum(mixed.weight for mixed in prompts.sources)
        parts = zip(names_of(prompts), prompts.sources, strict=True)
        where = "a mixture of " + ", ".join(f"{100 * mixed.weight / total:.3g} % {name}" for name, mixed in parts)
    return f"{where}: {train} to train on, {slices_in_words(config)}; {prompts.gate} gate, {prompts.test} test"


def slices_in_words(config: Config) -> str:
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
    return f"{each}, {first} ({ease_in_words(config)})"


def ease_in_words(config: Config) -> str:
    """What counts as easy."""
    prompts = config.prompts
    if isinstance(prompts, PreferencePrompts):
        by_model = "by how much likelier the base model finds the chosen answer"
        return "by their margin" if prompts.order_by == "margin" else by_model
    measured, columns = "by the solve rate that earlier iterations measured", rate_columns(prompts)
    return f"{measured}, before that the column {' or '.join(dict.fromkeys(columns))}" if columns else measured


def data_in_words(config: Config, k: int) -> str:
    """What iteration `k` trains on besides what it makes itself, and where its own pairs come from if it samples
    nothing; empty if there is nothing to say."""
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


def sources_in_words(counts: Mapping[str, Any]) -> str:
    """Of a finished sample stage of a mixture, how many prompts each source gave; empty for a single source."""
    return ", ".join(f"{count} of {name}" for name, count in counts.get("sources", {}).items())


def beside_in_words(counts: Mapping[str, Any]) -> str:
    """Of a finished pair stage, what stands beside the iteration's own pairs, e.g. ` (12 replayed, 30 offline)`; empty
    if nothing does."""
    words = [f"{count} replayed from iteration {source}" for source, count in counts.get("replayed", {}).items()]
    words += [f"{counts['offline']} offline"] if "offline" in counts else []
    return f" ({', '.join(words)})" if words else ""
