"""Builds the engine named in the settings."""

from pathlib import Path

from loop.config.settings import EngineConfig
from loop.engines.base import Engine, chosen_engine


def make_engine(policy: Path, settings: EngineConfig) -> Engine:
    """The engine that the settings ask for, its libraries imported now."""
    if chosen_engine(settings) == "vllm":
        from loop.engines.vllm_engine import VllmEngine

        return VllmEngine(policy, settings)
    from loop.engines.transformers_engine import TransformersEngine

    return TransformersEngine(policy, settings)
