"""`plan --check`: resolve everything that the config names, as a run would. No model is loaded, nothing is sampled."""

import importlib

from judges.context import JudgeContext
from judges.resolve import build_judge
from judges.trial.selftest import self_test
from loop.config.settings import Config, JudgeConfig
from loop.engines.base import chosen_engine
from loop.prompts.sets import build_prompt_sets
from loop.store.model_folder import find_model, resolve_base
from loop.store.run_records import Json
from loop.workers.judge_service import try_examples
from trainer.model_folder import check_model


def check_for_real(config: Config) -> Json:
    """Import what a run needs, build and test the judge, open the data; no model is loaded."""
    libraries = ["torch", "transformers", *(["vllm"] if chosen_engine(config.engine) == "vllm" else [])]
    versions = {name: importlib.import_module(name).__version__ for name in libraries}
    judges = {} if config.judge is None else {"judge": check_judge(config.judge, config.pairs.correct_at)}
    if config.eval_judge is not None and config.eval_judge != config.judge:
        judges["judge of the evaluation"] = check_judge(config.eval_judge, config.pairs.correct_at)
    sets = build_prompt_sets(config.prompts, config.seed)
    folder = resolve_base(config.model.base)
    check_model(folder, longest=config.engine.max_model_len)
    return {
        "libraries": versions,
        "model": str(folder),
        **judges,
        "prompts": sets.counts,
        "first_prompt": sets.train[0].messages,
    }


def check_judge(settings: JudgeConfig, correct_at: float) -> str:
    """Build a judge, have it answer its own examples and the user's; JudgeError if it fails."""
    judge = build_judge(settings.name, settings.args)
    judge.bind(JudgeContext(find=find_model))
    checked = f"{type(judge).__name__} built, {self_test(judge)} examples judged as known"
    if "engine" in judge.needs:
        return f"{checked}, its engine and labelled examples are tried when the run starts"
    given = try_examples(judge, settings, correct_at)
    return f"{checked}, {given} of {settings.examples} as labelled" if settings.examples else checked
