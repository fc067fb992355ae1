"""Resolve what a config names before the first token is sampled: losses, data files, the chat template on the prompts.

`run` calls it in the trainer's worker, `plan --check` in its own process; both show all problems as one list.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from loop.config.settings import Config
from loop.engines.option_checks import check_tokens
from loop.errors import UserError
from loop.pairing.data_answers import AnswerText, given_pairs, texts_of, wanted
from loop.prompts.chat_template import Renderer, chat_format, render
from loop.prompts.preferences import PAIRS, read_pairs_of
from loop.prompts.row import PromptRow
from loop.prompts.supervised import read_mix
from loop.store.findings import Findings
from trainer.data import check_data
from trainer.losses.terms import LossTerm
from trainer.model_folder import load_tokenizer
from trainer.settings import LoraSettings

LOOKED_AT = 2000
"""Prompts of each set that are tokenised, to see whether they fit."""


def check_named(policy: Path, configs: Sequence[Config], prompts: dict[str, list[PromptRow]]) -> Findings:
    """Check what the iterations' configs name, with the base model's tokenizer. Nothing is loaded or sampled."""
    found = Findings()
    tokenizer = load_tokenizer(policy)
    for options in distinct(one for config in configs for one in (config.sampling.decoding, config.eval_options)):
        found.look(check_tokens, options, tokenizer)
    for term in distinct(term for config in configs for term in config.train.terms):
        found.look(check_loss, term)
    for lora in distinct(config.train.lora for config in configs if config.train.lora is not None):
        found.look(check_lora, policy, lora)
    for path in distinct(config.train.mix.path for config in configs if config.train.mix is not None):
        _with_renderer(found, configs[0], tokenizer, partial(check_mix, found, path))
    for offline in distinct(config.pairs.offline for config in configs if config.pairs.offline is not None):
        source = found.look(read_pairs_of, offline, "pairs.offline", {})
        if source is not None:
            found.notes += source.notes
            rows = [PromptRow(str(at), row["prompt"], None, row) for at, row in enumerate(source.rows)]
            _with_renderer(found, configs[0], tokenizer, partial(check_pairs, rows))
    if "strftime_now" in str(tokenizer.chat_template) and not configs[0].model.chat_template_kwargs:
        found.notes.append(
            "the model's chat template writes the date of the day into prompts (strftime_now), so samples of another "
            "day differ; set the date in model.chat_template_kwargs (date_string in templates of the Llama family)"
        )
    fits = found.look(check_prompts, prompts, tokenizer, configs[0])
    if fits is not None:
        _with_renderer(found, configs[0], tokenizer, partial(check_answers, prompts["train"], configs))
    return found


def distinct(values: Iterator[Any]) -> list[Any]:
    """The values without repetitions; they need not be hashable."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def check_mix(found: Findings, path: str, renderer: Renderer) -> None:
    """UserError or TrainerError unless a file of supervised examples can be trained on; counts what is left out."""
    examples = read_mix(path, renderer)
    vocabulary = max(renderer.tokenizer.get_vocab().values(), default=-1) + 1
    dropped = check_data(examples, vocabulary=vocabulary, context=None, source=path).dropped
    if dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        found.notes.append(
            f"{path}: {sum(dropped.values())} of {len(examples.relations)} examples are left out ({reasons})"
        )


def check_loss(term: LossTerm) -> None:
    """ValueError if a loss cannot be imported or does not take its arguments."""
    term.filled(term.method())


def check_lora(policy: Path, lora: LoraSettings) -> None:
    """TrainerError if the base model cannot get the adapters of `train.lora`."""
    from trainer.adapters import check_adapters  # loads torch

    check_adapters(policy, lora)


def check_prompts(prompts: dict[str, list[PromptRow]], tokenizer: Any, config: Config) -> bool:
    """Whether prompts can be sampled. UserError if the template refuses one or all look alike, or all of a set are too
    long."""
    for name, longest in (("train", config.sampling.max_tokens), ("gate", config.eval.max_tokens)):
        room = config.engine.max_model_len - (longest or config.sampling.max_tokens)
        rows = prompts[name][:LOOKED_AT]
        rendered = [render(tokenizer, row, chat_format(config.model)) for row in rows]
        if len(rows) > 1 and all(ids == rendered[0] for ids in rendered):
            raise UserError(
                f"The chat template of {config.model.base} writes the same text for all {len(rows)} {name} prompts: it "
                "has no place for the content of a message. Correct the template (chat_template.jinja)."
            )
        lengths = [*map(len, rendered)]
        if lengths and min(lengths) > room:
            raise UserError(
                f"Every {name} prompt is too long: the shortest of {len(lengths)} has {min(lengths)} tokens, and "
                f"engine.max_model_len={config.engine.max_model_len} less max_tokens leaves {room}. Raise "
                "engine.max_model_len, or lower max_tokens."
            )
    return True


def check_answers(rows: Sequence[PromptRow], configs: Sequence[Config], renderer: Renderer) -> None:
    """UserError if the template changes answers that the prompts' rows hold, and such answers are refused."""
    check_pairs([row for row in rows if PAIRS in row.columns], renderer)
    for pairs in distinct(config.pairs for config in configs if config.samples and wanted(config.pairs)):
        _check_texts(texts_of(rows, pairs), renderer)


def check_pairs(rows: Sequence[PromptRow], renderer: Renderer) -> None:
    """The same for rows with given pairs."""
    _check_texts([side for row in rows for pair in given_pairs(row) for side in (pair.chosen, pair.rejected)], renderer)


def _check_texts(texts: Sequence[AnswerText], renderer: Renderer) -> None:
    for one in texts:
        turns = one.turns or ({"role": "assistant", "content": one.text},)
        renderer.check(one.prompt.messages, turns, f"The {one.role} answer of prompt {one.prompt.id}")


def _with_renderer(found: Findings, config: Config, tokenizer: Any, check: Callable[[Renderer], Any]) -> None:
    renderer = Renderer(tokenizer, chat_format(config.model))
    found.look(check, renderer)
    if note := renderer.note():
        found.notes.append(note)
