"""What `import vidistill` gives: reading distilled sets in one's own code, without the flows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidistill.storage.distilled import DistilledSet

__all__ = ["DistilledSet"]


def __getattr__(name: str) -> Any:
    """Loaded when it is first asked for, so that `import vidistill.flows` costs no more than it did."""
    if name == "DistilledSet":
        from vidistill.storage.distilled import DistilledSet

        return DistilledSet
    raise AttributeError(f"module 'vidistill' has no attribute {name!r}")
