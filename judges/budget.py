"""Room judges, money: what a judge may spend comes in as arguments, what it has spent is held against it."""

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, model_validator

from judges.contract import JudgeError
from judges.handed import Usage

MILLION = 1_000_000


class Budget(BaseModel):
    """Limits for the whole run, continued or not; calls under way when a limit is reached are still finished."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_calls: NonNegativeInt | None = None
    """Calls, failed ones and retries included."""

    max_tokens: NonNegativeInt | None = None
    """Tokens in both directions, as the endpoint counts them."""

    max_cost: NonNegativeFloat | None = None
    """Money, in the unit of the prices."""

    prompt_price: NonNegativeFloat | None = None
    """Price of a million tokens sent."""

    completion_price: NonNegativeFloat | None = None
    """Price of a million tokens received."""

    @model_validator(mode="after")
    def _has_prices(self) -> "Budget":
        if self.max_cost is not None and self.cost(Usage()) is None:
            raise ValueError("max_cost needs prompt_price and completion_price, the prices of a million tokens")
        return self

    @property
    def counts_tokens(self) -> bool:
        """Whether a limit depends on the endpoint's count of tokens."""
        return self.max_tokens is not None or self.max_cost is not None

    def cost(self, usage: Usage) -> float | None:
        """What the usage costs at these prices; None without prices."""
        if self.prompt_price is None or self.completion_price is None:
            return None
        return (usage.prompt_tokens * self.prompt_price + usage.completion_tokens * self.completion_price) / MILLION

    def check(self, spent: Usage, judge: str) -> None:
        """JudgeError if another call may not be made."""
        cost = self.cost(spent) or 0.0
        limits = (("max_calls", spent.calls), ("max_tokens", spent.tokens), ("max_cost", cost))
        for name, reached in limits:
            limit = getattr(self, name)
            if limit is not None and reached >= limit:
                raise JudgeError(
                    f"Judge {judge}: its budget is used up: {name} is {limit:g} and {reached:g} is spent "
                    f"({spent.calls} calls, {spent.tokens} tokens{'' if not cost else f', cost {cost:.4f}'}). Every "
                    f"verdict that was paid for is kept: raise judge.args.budget.{name} and run the same command; it "
                    f"goes on from here."
                )
