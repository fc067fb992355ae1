"""Base class of all config sections."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen, unknown keys refused; docstrings under the fields are their documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
