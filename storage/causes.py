"""Why a store could not be written, in one sentence."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vidistill.storage.errors import NotMade, StoreError

ANOTHER = "name another --store"
YOURS = "name a --store that you may write to"
CAUSES: dict[int | None, tuple[str, str]] = {
    errno.ENOSPC: (
        "its disk is full",
        f"free some space (`vidistill gc` removes what no report and no run needs) or {ANOTHER}",
    ),
    errno.EDQUOT: ("the disk quota is used up", f"free some space or {ANOTHER}"),
    errno.EACCES: ("permission denied", YOURS),
    errno.EPERM: ("permission denied", YOURS),
    errno.EROFS: ("its file system is read-only", ANOTHER),
    errno.ENOTDIR: ("a part of the path is a file", ANOTHER),
    errno.EEXIST: ("a part of the path is a file", ANOTHER),
}
"""The cause and the remedy."""


@contextmanager
def clear_errors(root: Path, removing: object = None) -> Iterator[None]:
    """Say in one sentence why the store under `root` cannot be written, or `removing` not be removed from it.

    Other errors pass.
    """
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number not in CAUSES or _elsewhere(error, root):
            raise
        cause, remedy = CAUSES[number]
        if removing is not None:
            raise StoreError(f"{removing} cannot be removed from the store {root}: {cause}.") from error
        raise StoreError(f"The store {root} cannot be written: {cause}: {remedy}.") from error


@contextmanager
def making(ref: object) -> Iterator[None]:
    """Name the artifact that a failing store kept from being made."""
    try:
        yield
    except NotMade:
        raise  # a part of it is named already
    except StoreError as error:
        raise NotMade(f"{ref} could not be made: {error}") from error


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))  # safetensors writes its files in Rust
    return int(told[1]) if told else None


def _elsewhere(error: Exception, root: Path) -> bool:
    """Whether the error names a file that has nothing to do with the store, such as a stage's own video."""
    name = getattr(error, "filename", None)
    return isinstance(name, str) and not (Path(name).is_relative_to(root) or root.is_relative_to(name))
