"""The base of every stage's parameters."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Parameters(BaseModel):
    """Frozen, and deaf to names that it does not know: a misspelled option is an error, not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
