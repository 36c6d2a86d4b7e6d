"""What of a store in object storage lies on this disk: no more than its limit, and what nobody reads goes first."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import getLogger
from pathlib import Path

from vidistill.storage.causes import clear_errors
from vidistill.storage.errors import RequestError
from vidistill.storage.files import listed, remove_folder, size_of
from vidistill.storage.locks import gone, locked, this_process

VARIABLE = "VIDISTILL_MIRROR_GB"
ELSEWHERE_SECONDS = 2 * 86400.0
"""For how long a process of another host, whose mirror this is too, is believed to read what it asked for."""

_HERE = uuid.uuid4().hex[:8]
"""Tells processes of containers apart that have one number and one mirror."""
_said: set[Path] = set()
_sizes: dict[tuple[Path, int], int] = {}
_borrowing = threading.Lock()
_borrowers = 0
log = getLogger("vidistill")


def limit_bytes() -> float:
    """How much of a store a mirror may hold: `VIDISTILL_MIRROR_GB`; without it as much as comes.

    Raises:
        RequestError: it is no positive number.
    """
    told = os.environ.get(VARIABLE, "inf")
    try:
        limit = float(told) * 1e9
    except ValueError:
        limit = 0
    if not limit > 0:
        raise RequestError(f"{VARIABLE} takes gigabytes, such as 50; got {told!r}.")
    return limit


@contextmanager
def borrowed() -> Iterator[None]:
    """Let go of what this process said it reads when the last of such blocks ends: a cluster's worker may never end."""
    global _borrowers
    with _borrowing:
        _borrowers += 1
    try:
        yield
    finally:
        with _borrowing:
            _borrowers -= 1
            while not _borrowers and _said:
                _said.pop().unlink(missing_ok=True)


class Mirror:
    """The artifacts in a local folder, `<root>/<kind>/<key>/`, of which some are in use.

    A process says what it reads before it reads it, and holds that until it ends, or `borrowed` does.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._limit = limit_bytes()

    def use(self, place: Path) -> None:
        """Keep the artifact in this folder as long as this process lives, or `borrowed` lasts."""
        mark = self._marks(place) / f"{os.getpid()}-{_HERE}"
        if mark not in _said:
            self._write(place, mark)
            _said.add(mark)
        with suppress(FileNotFoundError):
            os.utime(place)

    @contextmanager
    def held(self, place: Path) -> Iterator[None]:
        """Keep it while the block runs."""
        mark = self._marks(place) / f"{os.getpid()}-{_HERE}.{threading.get_ident()}"
        self._write(place, mark)
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)

    def _write(self, place: Path, mark: Path) -> None:
        with self._locked():  # without a limit of its own, too: another process may have one
            self._users(place)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(json.dumps(this_process()))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with clear_errors(self._root), locked(self._root / ".locks" / "mirror"):
            yield

    def trim(self) -> None:
        """Remove what was used longest ago, and nobody uses now, until the rest is within the limit."""
        if self._limit == float("inf"):
            return
        with self._locked():
            used = {place: _time_of(place) for place in self._root.glob("[!.]*/*/")}
            places = sorted(used, key=lambda place: used[place])
            sizes = {place: self._size(place) for place in places}
            total = sum(sizes.values())
            self._forget()
            for place in places:
                if total <= self._limit:
                    return
                if not self._users(place) and not self.only_copy(place).exists():
                    (place / "manifest.json").unlink(missing_ok=True)
                    remove_folder(place)
                    total -= sizes[place]
        log.warning(
            "The mirror %s holds %.1f GB, more than %s=%g: what is being read stays until its run has ended.",
            self._root, total / 1e9, VARIABLE, self._limit / 1e9,
        )  # fmt: skip

    def only_copy(self, place: Path) -> Path:
        """A file that is there while the store lacks the artifact in this folder, which therefore stays."""
        return self._root / ".unpublished" / f"{place.name}.{place.parent.name}"

    def _size(self, place: Path) -> int:
        """In bytes; what was committed is measured once a process: each of its jobs has a Mirror of its own."""
        try:
            committed = place, (place / "manifest.json").stat().st_mtime_ns
        except FileNotFoundError:
            return size_of(place)
        if committed not in _sizes:
            _sizes[committed] = size_of(place)
        return _sizes[committed]

    def _forget(self) -> None:
        """Remove the folders of marks on what is not here, and nobody is about to fetch."""
        for marks in listed(self._root / ".used"):
            place = self._root.joinpath(*marks.name.split(".", 1))
            if not place.exists() and not self._users(place):
                remove_folder(marks)

    def _marks(self, place: Path) -> Path:
        return self._root / ".used" / f"{place.parent.name}.{place.name}"

    def _users(self, place: Path) -> list[Path]:
        """The marks of those who use it; what the dead left is removed."""
        living = []
        for mark in listed(self._marks(place)):
            with suppress(FileNotFoundError):  # whoever used it has ended meanwhile
                content, age_seconds = mark.read_bytes(), time.time() - mark.stat().st_mtime
                try:
                    dead = gone(json.loads(content), age_seconds, ELSEWHERE_SECONDS)
                except ValueError:  # cut short: whoever writes holds the lock, as this one does
                    dead = True
                if dead:
                    mark.unlink(missing_ok=True)
                else:
                    living.append(mark)
        return living


def _time_of(place: Path) -> float:
    """When a folder was used last; one that somebody removes meanwhile was never."""
    try:
        return place.stat().st_mtime
    except FileNotFoundError:
        return 0.0
