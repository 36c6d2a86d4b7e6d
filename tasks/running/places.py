"""What jobs take while they run: threads of a processor and a place on a GPU; whoever comes too many waits.

Jobs of one process share a counter. Jobs of several processes on one machine share locked files, which the kernel
unlocks however a process ends: nothing is left to renew, to expire, or to clean up after SIGKILL.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

from vidistill.storage.errors import RequestError
from vidistill.tasks.running.stopping import go_on, stopping

POLL_SECONDS = 0.05
GPU_JOBS, VIDEO_SECONDS = "VIDISTILL_GPU_JOBS", "VIDISTILL_VIDEO_SECONDS"


class _Threads:
    """The threads that networks of this process have taken."""

    def __init__(self) -> None:
        self._taken = 0
        self._changed = threading.Condition()
        self._next = threading.Lock()  # held by whoever waits: a job of all threads is not overtaken by jobs of one

    @contextmanager
    def taken(self, count: int, limit: int) -> Iterator[None]:
        with self._next, self._changed:
            self._changed.wait_for(lambda: self._taken + count <= limit or self._taken == 0 or stopping())
            go_on()
            self._taken += count
        try:
            yield
        finally:
            with self._changed:
                self._taken -= count
                self._changed.notify_all()


_threads = _Threads()
_shared: ContextVar[str] = ContextVar("shared", default="")


@contextmanager
def sharing_threads(name: str) -> Iterator[None]:
    """The threads that jobs take are those of all processes on this machine that call them so; empty: of this one."""
    before = _shared.set(name)
    try:
        yield
    finally:
        _shared.reset(before)


@contextmanager
def threads_taken(count: int, limit: int) -> Iterator[None]:
    """Wait until `count` of `limit` threads are free, and hold them; those that ask for none do not wait."""
    with ExitStack() as held:
        if count:
            held.enter_context(_threads.taken(count, limit))
        if count and _shared.get():
            folder = _folder(f"threads-{_shared.get()}")
            held.enter_context(_places([folder / str(number) for number in range(limit)], count))
        yield


def gpu_jobs() -> int:
    """How many jobs may be on one GPU at a time: `VIDISTILL_GPU_JOBS`; without it one.

    Raises:
        RequestError: it is no positive whole number.
    """
    told = os.environ.get(GPU_JOBS, "1")
    if not told.isdecimal() or int(told) < 1:
        raise RequestError(f"{GPU_JOBS} takes how many jobs are on one GPU at a time, such as 8; got {told!r}.")
    return int(told)


def video_seconds() -> float:
    """How long the decoder may take for one video: `VIDISTILL_VIDEO_SECONDS`; without it 60.

    Raises:
        RequestError: it is no positive number.
    """
    told = os.environ.get(VIDEO_SECONDS, "60")
    if not re.fullmatch(r"\d+(\.\d+)?", told) or float(told) <= 0:
        raise RequestError(f"{VIDEO_SECONDS} takes how long one video may be decoded, such as 300; got {told!r}.")
    return float(told)


@contextmanager
def gpu_taken(device: str, jobs: int) -> Iterator[None]:
    """Wait until one of this machine's GPUs has a place for a job, and have torch use it; nothing where there is none.

    Args:
        device: auto, cpu or cuda.
        jobs: at a time on one GPU, of all processes of this user.
    """
    import torch

    count = 0 if device == "cpu" else torch.cuda.device_count()
    if not count:
        yield
        return
    names = [str(torch.cuda.get_device_properties(number).uuid) for number in range(count)]
    files = [_folder(f"gpu-{name}") / str(place) for place in range(jobs) for name in names]
    with _places(files, 1) as (taken,), torch.cuda.device(taken % count):
        try:
            yield
        finally:
            torch.cuda.empty_cache()  # which another process would find taken


def _folder(name: str) -> Path:
    """Of this user on this machine, or in a job whose TMPDIR is its own, which sees no other's places."""
    folder = Path(tempfile.gettempdir()) / f"vidistill-{os.getuid()}" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _places(files: Sequence[Path], count: int) -> Iterator[list[int]]:
    """Lock `count` of these files, in any process; which.

    Whoever is next gathers them one by one and the others wait behind it, so that nobody is overtaken and no two
    hold half of what each needs.
    """
    with ExitStack() as held:
        taken: list[int] = []
        with ExitStack() as queue:
            while not _locked(files[0].parent / "next", queue):
                _wait()
            while len(taken) < count:
                for number, file in enumerate(files):
                    if number not in taken and len(taken) < count and _locked(file, held):
                        taken.append(number)
                if len(taken) < count:
                    _wait()
        yield taken


def _wait() -> None:
    go_on()
    time.sleep(POLL_SECONDS)


def _locked(path: Path, held: ExitStack) -> bool:
    """Whether nobody else holds this file; it is this caller's until the stack is closed."""
    number = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        return False
    held.callback(os.close, number)
    held.callback(fcntl.flock, number, fcntl.LOCK_UN)  # first: a child that was forked meanwhile holds it open, too
    return True
