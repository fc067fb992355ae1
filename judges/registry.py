"""The names of built-in judges and of installed judge plug-ins."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


BUILT_IN = {
    "classifier": "judges.models.scores:Classifier",
    "combine": "judges.combine.combine:Combine",
    "contains": "judges.rules.text:Contains",
    "exact": "judges.rules.text:Exact",
    "external": "judges.people.external:External",
    "format": "judges.rules.form:Format",
    "gsm8k": "judges.rules.gsm8k:GSM8K",
    "implicit-reward": "judges.models.log_prob:ImplicitReward",
    "length": "judges.rules.form:Length",
    "llm-compare": "judges.llm.judges:LLMCompare",
    "llm-grade": "judges.llm.judges:LLMGrade",
    "log-prob": "judges.models.log_prob:LogProb",
    "math": "judges.rules.maths:Math",
    "multiple-choice": "judges.rules.choice:MultipleChoice",
    "number": "judges.rules.text:Number",
    "preference-model": "judges.models.preference_model:PreferenceModel",
    "reasoning-gym": "judges.rules.reasoning_gym:ReasoningGym",
    "regex": "judges.rules.text:Regex",
    "reward-model": "judges.models.scores:RewardModel",
}
"""Where each built-in lives; imported only when asked for."""

GROUP = "prefloop.judges"


def installed_plugins() -> dict[str, "EntryPoint"]:
    """The entry points of installed packages by name; those that would take a built-in's name are left out."""
    from importlib import metadata

    return {point.name: point for point in metadata.entry_points(group=GROUP) if point.name not in BUILT_IN}
