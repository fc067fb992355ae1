"""Settings of the second engine, for a judge's own model: like the policy's engine, in its own worker for the whole
campaign."""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from judges.context import LocalModel, ModelRef
from judges.contract import Judge
from loop.config.engine_section import EngineConfig
from loop.engines.option_checks import engine_problems
from loop.errors import UserError

MODEL_LEN = 4096
"""Longest question plus reply in tokens, unless judge.args.engine_settings.max_model_len is set."""


@dataclass(frozen=True, slots=True)
class JudgeEngine:
    """Model and settings of the judge's engine."""

    found: ModelRef
    settings: EngineConfig
    chat_template_kwargs: dict[str, Any]


def asked_for(judge: Judge) -> LocalModel | None:
    """The model that the judge, or a part of it, needs in an engine. UserError if it needs two."""
    models = [one.local_model for one in judge.paid_for()]
    wanted = [model for number, model in enumerate(models) if model is not None and model not in models[:number]]
    if len(wanted) + ("generate" in judge.needs) > 1:
        raise UserError(
            "The judges of this combination use different models, but there is only one engine for judges: give all of "
            "them the same engine, model, max_tokens, engine_settings and chat_template_kwargs, or let the others use "
            "an endpoint (engine: api)."
        )
    return wanted[0] if wanted else None


def judge_engine(model: LocalModel, base: EngineConfig) -> JudgeEngine:
    """The campaign's engine settings without what fits its own model only, overridden by the judge's own. UserError if
    those are wrong."""
    longest = min(MODEL_LEN, places_of(model.found) or MODEL_LEN)
    own = {"max_model_len": longest, "args": {}, "tensor_parallel": 1, "pipeline_parallel": 1, "replicas": 1}
    given = {**own, "threads": None, **model.settings}
    if "kind" in given:
        raise UserError("judge.args.engine_settings: kind cannot be given; judge.args.engine names it.")
    if given["replicas"] != 1:
        raise UserError("judge.args.engine_settings: a judge has one engine; remove replicas.")
    try:
        settings = EngineConfig(**{**base.model_dump(), **given, "kind": model.kind})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(
            f"judge.args.engine_settings is wrong: {problems}. Its keys are those of the section engine, without kind."
        ) from error
    if problem := next(iter(engine_problems(settings, "judge.args.engine_settings")), None):
        raise UserError(problem)
    if model.reply_tokens >= settings.max_model_len:
        raise UserError(
            f"judge.args.max_tokens={model.reply_tokens} leaves no room for a question: its engine takes "
            f"{settings.max_model_len} tokens in all. Lower max_tokens, or raise engine_settings.max_model_len."
        )
    return JudgeEngine(model.found, settings, dict(model.chat_template_kwargs))


def places_of(found: ModelRef) -> int | None:
    """The model's context length in tokens, from its config."""
    config = json.loads((found.folder / "config.json").read_text(encoding="utf-8"))
    places = config.get("text_config", config).get("max_position_embeddings")
    return int(places) if places else None
