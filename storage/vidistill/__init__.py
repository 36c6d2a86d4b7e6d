"""What `import vidistill` gives: reading distilled sets in one's own code, without the flows."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidistill.storage.dataset import Dataset
    from vidistill.storage.distilled import DistilledSet

__all__ = ["Dataset", "DistilledSet"]

_PLACES = {"Dataset": "vidistill.storage.dataset", "DistilledSet": "vidistill.storage.distilled"}


def __getattr__(name: str) -> Any:
    """Loaded when it is first asked for, so that `import vidistill.flows` costs no more than it did."""
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'vidistill' has no attribute {name!r}")
