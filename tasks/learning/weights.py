"""Weights that a user gives: by a path, or by a name on the Hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vidistill.storage.errors import RequestError
from vidistill.storage.files import files_of
from vidistill.storage.keys import digest, file_digest


def check_installed(package: str, what: str) -> None:
    """Before anything is made for it.

    Raises:
        RequestError: this package of the extra `pool` is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise RequestError(f"{what} needs {package}: `pip install 'vidistill[pool]'`.")


def known_by(place: str) -> str:
    """What a key says of given weights: a local file or folder is known by its name and content, a Hub name by itself.

    Raises:
        RequestError: it looks like a path and is not there.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        content = digest({one.relative_to(path).as_posix(): file_digest(one) for one in files_of(path)})
        return f"{path.name}:{content[:16]}"
    if path.is_file():
        return f"{path.name}:{file_digest(path)[:16]}"
    if path.is_absolute() or place.startswith((".", "~")):
        raise RequestError(f"There are no weights at {place}: give an existing file or folder.")
    return place
