"""The base of every stage's parameters, and what differs between two of them in words."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Parameters(BaseModel):
    """Frozen, and deaf to names that it does not know: a misspelled option is an error, not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def in_words(changes: dict[str, Any], prefix: str = "") -> str:
    """`lr 0.1, least_steps 100`: the optimiser's parameters by their own names, others below a name by both."""
    said = (
        in_words(value, "" if name == "optimiser" else f"{prefix}{name}.")
        if isinstance(value, dict) else f"{prefix}{name} {value}"
        for name, value in changes.items()
    )  # fmt: skip
    return ", ".join(said)
