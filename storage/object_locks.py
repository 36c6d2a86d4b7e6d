"""A lock in object storage: an object that is written only where there is none, so that of two hosts one does the work.

Stores without conditional writes have no such lock: there both do the work, and one whole artifact stays.
"""

from __future__ import annotations

import errno
import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging import getLogger
from typing import Any

from vidistill.storage.errors import StoreError
from vidistill.storage.locks import beating, gone, this_process
from vidistill.storage.objects import Objects

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
POLL_SECONDS = 1.0

log = getLogger("vidistill")


@contextmanager
def locked_for_all(objects: Objects, path: str) -> Iterator[None]:
    """Hold the lock object `path`, waiting for its present owner to finish or die.

    The owner writes it anew every 10 s. It is taken over when its owner's process no longer runs (seen at once on the
    same host), or when whoever waits has seen no new beat for 60 s of its own time: no two clocks are compared. A
    living process of the same host has let go of a silent one, too, which it could not remove while the store was down.
    """
    claim = _Claim(objects, path, this_process() | {"id": uuid.uuid4().hex})
    try:
        claim.take()
    except StoreError as error:
        if getattr(error.__cause__, "errno", None) != errno.ENOSYS:
            raise
        yield  # a store that knows no conditions, and says so
        return
    try:
        with beating(claim.beat, f"heartbeat {path}"):
            yield
    finally:
        with suppress(StoreError):  # a lock that stays is one of a dead owner; the work is done
            claim.release()


@dataclass
class _Claim:
    """What one attempt at a lock knows: whose it is, and the tag of the object as it was last written."""

    objects: Objects
    path: str
    owner: dict[str, Any]
    tag: str | None = None
    beats: int = 0

    def take(self) -> None:
        seen, since = b"", time.monotonic()
        while not self._written(mode="create"):
            if not seen:
                log.info("Somebody holds the lock %s: waiting until it is let go, or silent for a minute.", self.path)
            tag, content = self._look()
            if content != seen:
                seen, since = content, time.monotonic()
            if content and _dead(content, time.monotonic() - since) and self._written(**_only(tag)):
                return
            time.sleep(POLL_SECONDS)

    def beat(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT_SECONDS):
            self.beats += 1
            with suppress(StoreError):  # the next one may come through
                if not self._written(**_only(self.tag)):
                    log.warning("The lock %s was taken over by another host: its work is done twice.", self.path)
                    return

    def release(self) -> None:
        _, content = self._look()
        if self._is_mine(content):
            with suppress(FileNotFoundError):
                self.objects.rm_file(self.path)

    def _written(self, **condition: str) -> bool:
        """Write the lock object on a condition; False: somebody else's is there."""
        body = json.dumps(self.owner | {"beats": self.beats}).encode()
        try:
            answer = self.objects.pipe_file(self.path, body, **condition)
            self.tag = answer.get("ETag") if isinstance(answer, dict) else None
        except FileExistsError:
            tag, content = self._look()
            self.tag = tag
            return self._is_mine(content)  # the answer to an earlier try was lost on its way
        return True

    def _look(self) -> tuple[str | None, bytes]:
        try:
            self.objects.invalidate_cache(self.path.rpartition("/")[0])
            tag = self.objects.info(self.path).get("ETag")
            return tag, self.objects.content(self.path)
        except FileNotFoundError:
            return None, b""

    def _is_mine(self, content: bytes) -> bool:
        return self.owner["id"].encode() in content


def _only(tag: str | None) -> dict[str, str]:
    """The condition that the object is still the one that has this tag; stores that give none have no conditions."""
    return {"IfMatch": tag} if tag else {}


def _dead(content: bytes, silent_seconds: float) -> bool:
    try:
        return silent_seconds > STALE_SECONDS or gone(json.loads(content), silent_seconds, STALE_SECONDS)
    except (ValueError, KeyError, TypeError):
        return False
