"""A lock on one key: an owner, a heartbeat, and nobody waits for the dead."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from vidistill.storage.files import second_name

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
POLL_SECONDS = 0.2


@contextmanager
def locked(path: Path, refusal: Exception | None = None) -> Iterator[None]:
    """Hold the lock file `path`, waiting for its present owner to finish or die; a refusal is raised instead.

    The owner touches the file every 5 s from a thread. A lock is taken over when its owner's process no longer runs
    (seen at once on the same host), or when the waiting one has seen no new heartbeat for 60 s of its own time (another
    host): clocks that differ, or jump, change nothing.
    """
    owner, watch = this_process() | {"id": uuid.uuid4().hex}, _Watch()
    while not _take(path, owner, watch):
        if refusal is not None and path.exists():
            raise refusal
        time.sleep(POLL_SECONDS)
    try:
        with beating(lambda stop: _beat(path, stop), f"heartbeat {path.name}"):
            yield
    finally:
        with suppress(FileNotFoundError):
            if str(owner["id"]) in path.read_text():  # else this one slept, was thought dead, and it is the next one's
                path.unlink()


@contextmanager
def beating(beat: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """Have a thread beat until the event that it is given is set, which is when the block ends."""
    stop = threading.Event()
    thread = threading.Thread(target=beat, args=(stop,), daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _take(path: Path, owner: dict[str, object], watch: _Watch) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = path.with_name(f"{path.name}.{owner['id']}")
    try:
        mine.write_text(json.dumps(owner))
        second_name(mine, path)  # atomic; where there are links its owner stands in it from the first moment
    except FileExistsError:
        if watch.dead(path):
            _bury(path, str(owner["id"]), watch)
        return False
    else:
        return True
    finally:
        mine.unlink(missing_ok=True)


class _Watch:
    """How long a lock's file has been silent while this process looked at it."""

    def __init__(self) -> None:
        self._seen: tuple[int, str] | None = None
        self._since = time.monotonic()

    def dead(self, path: Path) -> bool:
        """Whether the owner is dead, as far as can be seen from here."""
        try:
            seen = (path.stat().st_mtime_ns, path.read_text())
        except FileNotFoundError:
            return False
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        return _gone(seen[1], time.monotonic() - self._since)


def abandoned(path: Path, now: float) -> bool:
    """Whether the lock's owner is dead at a single look, where it is `now` by the clock of the lock's disk."""
    try:
        return _gone(path.read_text(), now - path.stat().st_mtime)
    except FileNotFoundError:
        return False


def _gone(content: str, silent_seconds: float) -> bool:
    try:
        owner = json.loads(content)
    except ValueError:  # a machine that lost power may leave an empty file
        return silent_seconds > STALE_SECONDS
    return gone(owner, silent_seconds, STALE_SECONDS)


def this_process() -> dict[str, object]:
    """Who holds what this process takes: its host, where its number is one, its number, and when it started."""
    return {"host": socket.gethostname(), "space": _space(), "pid": os.getpid(), "start": _start(os.getpid())}


def gone(owner: Mapping[str, Any], silent_seconds: float, stale_seconds: float) -> bool:
    """Whether an owner no longer runs: asked on its own host, and told by its silence on another.

    Containers may share a host's name and not its processes.
    """
    if (owner["host"], owner.get("space")) == (socket.gethostname(), _space()):
        return _start(owner["pid"]) not in (owner["start"], "alive")
    return silent_seconds > stale_seconds


@cache
def _space() -> str:
    """The boot of this machine and its namespace of process numbers; nothing where there is no /proc."""
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _bury(path: Path, by: str, watch: _Watch) -> None:
    grave = path.with_name(f"{path.name}.{by}.dead")
    with suppress(FileNotFoundError):
        path.rename(grave)  # of several that found it dead, one renames and the others find nothing
        if not watch.dead(grave):  # somebody was quicker, and this is already the next owner's
            with suppress(FileExistsError):
                second_name(grave, path)
        grave.unlink()


def _start(pid: int) -> str | None:
    """When the process started, so that a recycled number is not taken for its owner; None: no such process."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return "alive" if _alive(pid) else None  # no /proc, or one that hides other users' processes
    return None if state in "ZX" else fields[18]  # a zombie: killed, and its parent has not asked yet


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):  # a network's disk may answer late, and the next beat is in time
            os.utime(path)
