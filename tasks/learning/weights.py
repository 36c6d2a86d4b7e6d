"""Weights that a user gives: by a path, or by a name on the Hub."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from vidistill.storage.errors import RequestError, TransientError
from vidistill.storage.files import expanded, files_of
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
    path = expanded(place)
    if path.exists():
        return f"{path.name}:{content_of(path)[:16]}"
    if path.is_absolute() or place.startswith((".", "~")):
        raise RequestError(f"There are no weights at {place}: give an existing file or folder.")
    return place


def content_of(path: Path) -> str:
    """The digest of a file or of a folder's files, which are read again only once one of them has changed."""
    found = [one.stat() for one in (path, *path.rglob("*")) if one.exists()]
    return _content(path, max(one.st_mtime_ns for one in found), sum(one.st_size for one in found))


@cache
def _content(path: Path, _changed_ns: int, _size: int) -> str:
    if path.is_file():
        return file_digest(path)
    return digest({one.relative_to(path).as_posix(): file_digest(one) for one in files_of(path)})


def unchanged(place: str, name: str) -> str:
    """The place of the weights that a key knows by this name.

    Raises:
        TransientError: what is there has changed since the run was planned.
    """
    if known_by(place) != name:
        raise TransientError(f"The weights {place} changed during the run: run again.")
    return place
