"""Spending limits of a judge, checked before each call."""

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, model_validator

from judges.context import Usage
from judges.types import JudgeError

MILLION = 1_000_000


class Budget(BaseModel):
    """Limits for the whole run, resumed or not; calls in flight when a limit is reached still finish."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_calls: NonNegativeInt | None = None
    """Maximum number of calls, including failed ones and retries."""

    max_tokens: NonNegativeInt | None = None
    """Maximum number of tokens, sent and received, as the endpoint counts them."""

    max_cost: NonNegativeFloat | None = None
    """Maximum cost, in the unit of the prices."""

    prompt_price: NonNegativeFloat | None = None
    """Price per million tokens sent."""

    completion_price: NonNegativeFloat | None = None
    """Price per million tokens received."""

    @model_validator(mode="after")
    def _has_prices(self) -> "Budget":
        if self.max_cost is not None and self.cost(Usage()) is None:
            raise ValueError("max_cost needs prompt_price and completion_price, the prices per million tokens")
        return self

    @property
    def counts_tokens(self) -> bool:
        """Whether a limit depends on the endpoint's count of tokens."""
        return self.max_tokens is not None or self.max_cost is not None

    def cost(self, usage: Usage) -> float | None:
        """Cost of the usage at these prices; None without prices."""
        if self.prompt_price is None or self.completion_price is None:
            return None
        return (usage.prompt_tokens * self.prompt_price + usage.completion_tokens * self.completion_price) / MILLION

    def check(self, spent: Usage, judge: str) -> None:
        """JudgeError if a limit is reached, so no further call is allowed."""
        cost = self.cost(spent) or 0.0
        limits = (("max_calls", spent.calls), ("max_tokens", spent.tokens), ("max_cost", cost))
        for name, reached in limits:
            limit = getattr(self, name)
            if limit is not None and reached >= limit:
                raise JudgeError(
                    f"Judge {judge}: its budget is used up: {name} is {limit:g} and {reached:g} is spent "
                    f"({spent.calls} calls, {spent.tokens} tokens{'' if not cost else f', cost {cost:.4f}'}). Paid "
                    f"verdicts are kept: raise judge.args.budget.{name}, and the same command resumes from here."
                )
