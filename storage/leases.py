"""A lease: what a run needs, said in the store while the run lives, and after it was killed or failed.

A run writes its lease before it looks at what there is; whoever collects garbage says so before looking at the leases.
So one of the two sees the other, on a disk and in object storage alike: the collector leaves what is leased, and a run
that begins meanwhile waits until the collector has ended.
"""

from __future__ import annotations

import shlex
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from vidistill.storage.errors import StoreError
from vidistill.storage.locks import beating, gone, this_process
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef, Store

LEASES = ".leases"
BEAT_SECONDS = 20.0
STALE_SECONDS = 300.0
POLL_SECONDS = 0.5

log = getLogger("vidistill")


class Lease(Parameters):
    """Who needs what, since when, and when that was last confirmed. A checkpoint is needed with what it is one of."""

    id: str
    command: str
    owner: dict[str, Any]
    began: datetime
    renewed: datetime
    needs: frozenset[ArtifactRef]
    ended: bool = False
    """The run failed or was stopped; one that was killed could not say so."""
    collecting: bool = False
    """It needs nothing: it removes what nobody needs."""
    silent_seconds: float = Field(0.0, exclude=True)
    """Since it was last confirmed, by the store's clock: those of two hosts differ, and jump."""

    @property
    def alive(self) -> bool:
        return not self.ended and not gone(self.owner, self.silent_seconds, STALE_SECONDS)


def leases(store: Store) -> list[Lease]:
    """Every lease in the store, the oldest first.

    Raises:
        StoreError: one cannot be read, so that nobody knows what is needed.
    """
    found = []
    times = store.note_times(LEASES)  # before the content: a lease that is confirmed meanwhile is not older than that
    now = store.clock(LEASES) if times else 0.0
    for name, content in store.notes(LEASES).items():
        try:
            lease = Lease.model_validate_json(content)
            found.append(lease.model_copy(update={"silent_seconds": now - times.get(name, now)}))
        except ValidationError as error:
            raise StoreError(
                f"The lease {LEASES}/{name} in the store {store.location} cannot be read: "
                "remove the file once no run uses the store."
            ) from error
    return sorted(found, key=lambda lease: lease.began)


def remove(store: Store, lease: Lease) -> None:
    store.remove_note(LEASES, f"{lease.id}.json")


@dataclass
class Held:
    """What a run says of itself before it lets go of its lease."""

    unfinished: bool = False


@contextmanager
def leased(store: Store, needs: Iterable[ArtifactRef]) -> Iterator[Held]:
    """Keep what a run needs from being collected while the block runs.

    The lease goes when the block ends well, and stays, as that of an interrupted run, when it raises, is killed, or
    says that it is unfinished. It takes the place of those left by interrupted runs that needed nothing else.
    """
    lease, held = _lease(needs=frozenset(needs)), Held()
    with _renewed(store, lease):
        for other in leases(store):
            if not other.alive and other.needs <= lease.needs:
                remove(store, other)
        _wait_for_collectors(store)
        yield held
    if held.unfinished:
        _write(store, lease, ended=True)
    else:
        remove(store, lease)


@contextmanager
def collecting(store: Store) -> Iterator[list[Lease]]:
    """Keep new runs waiting while the block removes; yields the leases of all others."""
    lease = _lease(needs=frozenset(), collecting=True)
    try:
        with _renewed(store, lease):
            yield [other for other in leases(store) if not other.collecting]
    finally:
        remove(store, lease)


def _lease(**facts: Any) -> Lease:
    now = datetime.now(UTC)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return Lease(id=uuid.uuid4().hex, command=command, owner=this_process(), began=now, renewed=now, **facts)


def _write(store: Store, lease: Lease, **changes: Any) -> None:
    current = lease.model_copy(update={"renewed": datetime.now(UTC), **changes})
    store.write_note(LEASES, f"{lease.id}.json", current.model_dump_json().encode())


@contextmanager
def _renewed(store: Store, lease: Lease) -> Iterator[None]:
    """Write a lease and confirm it every 20 s from a thread; it has ended when the block raises."""

    def beat(stop: threading.Event) -> None:
        while not stop.wait(BEAT_SECONDS):
            with suppress(OSError):  # a disk that is full for a moment; the next beat may succeed
                _write(store, lease)

    _write(store, lease)
    try:
        with beating(beat, "lease"):
            yield
    except BaseException:
        with suppress(OSError):  # the error that ended the block is the one to hear of
            _write(store, lease, ended=True)
        raise


def _wait_for_collectors(store: Store) -> None:
    said = False
    while any(lease.collecting and lease.alive for lease in leases(store)):
        if not said:
            log.warning("`vidistill gc` is at work in the store %s: the run begins when it has ended.", store.location)
        said = True
        time.sleep(POLL_SECONDS)
