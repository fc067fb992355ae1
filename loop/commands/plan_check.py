"""`plan --check`: resolve everything that the config names, as a run would. No model is loaded, nothing is sampled."""

import importlib
import math
import os
from pathlib import Path

from safetensors import safe_open

from judges.context import JudgeContext
from judges.contract import Judge
from judges.resolve import build_judge
from judges.trial.selftest import self_test
from loop.campaign.stages.limits import check_limit_files
from loop.config.engine_section import EngineConfig
from loop.config.load import LoadedConfig
from loop.config.settings import Config, JudgeConfig
from loop.engines.base import chosen_engine, number_format, replicas_of, visible_gpus
from loop.engines.option_checks import option_problems
from loop.errors import UserError
from loop.prompts.sets import PromptSets, build_prompt_sets
from loop.prompts.thinking import find_thinking
from loop.store.findings import Findings
from loop.store.missing import missing
from loop.store.model_folder import find_model, resolve_base
from loop.store.run_records import Json
from loop.trackers.tracker_service import find_tracker
from loop.workers.judge_service import check_prompts, timer, try_examples
from loop.workers.named import check_named
from trainer.model_folder import check_model

LIBRARIES_GIB = 1.5
"""Memory of an engine's process besides weights and KV cache: measured with vLLM on a CPU and a model of 135M."""


def check_for_real(loaded: LoadedConfig) -> Json:
    """Import what a run needs, build and test the judges, open the data, resolve every name. UserError lists all that
    is wrong."""
    config, found = loaded.base, Findings([*missing(loaded), *option_problems(loaded.each)])
    configs = loaded.each
    versions = found.look(_versions, config)
    checked: dict[str, str] = {}
    judges = {"judge": config.judge}
    if config.eval_judge != config.judge:
        judges["judge of the evaluation"] = config.eval_judge
    for title, settings in judges.items():
        if settings is not None:
            checked[title] = found.look(check_judge, settings, config)
    sets = found.look(build_prompt_sets, config.prompts, config.seed)
    folder = found.look(_find_base, config)
    if config.reference_path is not None:
        found.look(_find_reference, config.reference_path)
    for one in configs:
        found.look(check_limit_files, one.promote.limits)
    for name in config.trackers.names:
        found.look(find_tracker, name)
    if sets is not None and folder is not None:
        prompts = {"train": sets.train, "gate": sets.gate, "test": sets.test}
        named = check_named(folder, configs, prompts)
        found.problems += named.problems
        found.notes += named.notes
        _check_targets(found, config, sets)
    if folder is not None:
        checked["engines"] = found.look(check_memory, config.engine, folder)
    found.refuse()
    notes = {"notes": [*sets.notes, *found.notes]} if sets.notes or found.notes else {}
    first = {"prompts": sets.counts, "first_prompt": sets.train[0].messages}
    return {"libraries": versions, "model": str(folder), **checked, **first, **notes}


def _versions(config: Config) -> dict[str, str]:
    libraries = ["torch", "transformers", *(["vllm"] if chosen_engine(config.engine) == "vllm" else [])]
    return {name: importlib.import_module(name).__version__ for name in libraries}


def check_memory(settings: EngineConfig, folder: Path) -> str:
    """What the engines of a CPU need, roughly: their weights, vLLM's KV cache, and the libraries. UserError if this
    machine has less."""
    replicas, vllm = replicas_of(settings), chosen_engine(settings) == "vllm"
    if visible_gpus():
        return f"{replicas} on GPUs; their memory is not estimated"
    bytes_each = 4 if number_format(settings) == "float32" else 2
    weights = parameters_of(folder) * bytes_each / 2**30
    each = weights + (settings.memory_gib if vllm else 0) + LIBRARIES_GIB
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    needs = f"{replicas} of about {each:.1f} GiB (weights {weights:.1f}{f', KV cache {settings.memory_gib:g}' * vllm})"
    if replicas * each > machine:
        raise UserError(
            f"The engines need about {replicas * each:.1f} GiB: {needs}; this machine has {machine:.1f} GiB. Lower "
            "engine.replicas or engine.memory_gib."
        )
    return needs


def parameters_of(folder: Path) -> int:
    """Number of weights in the files of a model folder, read from their headers."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as weights:
            names = weights.keys()
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    return total


def _find_base(config: Config) -> Path:
    folder = resolve_base(config.model.base)
    check_model(folder, longest=config.longest_sampled)
    return folder


def _find_reference(named: str) -> None:
    try:
        check_model(resolve_base(named))
    except UserError as error:
        raise UserError(str(error).replace("model.base", "reference_path")) from error


def _check_targets(found: Findings, config: Config, sets: PromptSets) -> None:
    """Try the judges that can be built on every prompt that they will judge."""
    own, held_out = sets.train if config.samples else [], sets.gate + sets.test
    for settings, rows in ((config.judge, own), (config.eval_judge, held_out)):
        judge = None if settings is None else Findings().look(_built, settings)
        if judge is not None:
            found.problems += check_prompts(judge, rows).problems


def check_judge(settings: JudgeConfig, config: Config) -> str:
    """Build a judge, have it answer its own examples and the user's; JudgeError if it fails."""
    judge = _built(settings)
    own = self_test(judge)
    checked = f"{type(judge).__name__} loads, {f'its own {own} examples as known' if own else 'no examples of its own'}"
    if "engine" in judge.needs:
        return f"{checked}, its engine and labelled examples are tried when the run starts"
    thinking = find_thinking(settings.thinking, config.model)
    given = try_examples(judge, settings, config.pairs.correct_at, thinking)
    return f"{checked}, {given} of {settings.examples} as labelled" if settings.examples else checked


def _built(settings: JudgeConfig) -> Judge:
    judge = build_judge(settings.name, settings.args)
    judge.bind(JudgeContext(find=find_model, on_item=timer(settings.seconds_per_response)))
    return judge
