"""Jobs that are told to stop do so at their next report of progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from vidistill.storage.errors import Stopped

_here = threading.Event()
_told: ContextVar[threading.Event] = ContextVar("told", default=_here)
_hearers: list[Callable[[], None]] = []


def stop_jobs() -> None:
    """Every job of this process's flow ends at its next progress report; what it had checkpointed stays."""
    _here.set()
    for hear in _hearers:
        hear()


def start_jobs() -> None:
    """Undo `stop_jobs`."""
    _here.clear()


def stopping() -> bool:
    return _told.get().is_set()


def go_on() -> None:
    """Raises Stopped where jobs are to stop."""
    if stopping():
        raise Stopped("The run was stopped: run the same command again to go on from here.")


@contextmanager
def stopped_by(event: threading.Event) -> Iterator[None]:
    """A job of another process's flow: it stops when that flow says so, not when a flow of this process is stopped."""
    before = _told.set(event)
    try:
        yield
    finally:
        _told.reset(before)


@contextmanager
def hearing_of_stops(hear: Callable[[], None]) -> Iterator[None]:
    """Call `hear` when this process's jobs are told to stop."""
    _hearers.append(hear)
    try:
        yield
    finally:
        _hearers.remove(hear)
