"""What checks before a campaign have found, as one list."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from judges.types import JudgeError
from loop.errors import UserError
from trainer.errors import TrainerError


@dataclass(slots=True)
class Findings:
    """What stops the campaign, and what is worth knowing before it starts; each is one paragraph."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def look(self, check: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a check; if it refuses something, a problem and None."""
        try:
            return check(*arguments)
        except (UserError, JudgeError, TrainerError, ValueError) as error:
            text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
            if text not in self.problems:
                self.problems.append(text)
        return None

    def refuse(self) -> None:
        """UserError with all problems, if there are any."""
        if len(self.problems) == 1:
            raise UserError(self.problems[0])
        if self.problems:
            listed = "".join(f"\n  {number}. {text}" for number, text in enumerate(self.problems, 1))
            raise UserError(f"{len(self.problems)} things in the config cannot be used:{listed}")
