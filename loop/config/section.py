"""Base class of all config sections."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Frozen, unknown keys refused; docstrings under the fields are their documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def changes(self, key: str) -> bool:
        """Whether this key has another value than its default."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)
