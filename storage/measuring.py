"""What a stage cost: seconds, and the process's peak memory while it ran."""

from __future__ import annotations

import ctypes
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Self

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
_lock = threading.Lock()
_open: set[Cost] = set()


class Cost:
    """Seconds and peak resident memory between `with` and its end.

    Linux lets a process reset its high-water mark; stages that overlap in one process share its memory, so each one's
    peak is that of the whole process while it ran. Elsewhere it is the peak since the process began.
    """

    def __init__(self) -> None:
        self.peak_memory_bytes = 0
        self._begin = 0.0
        self._end: float | None = 0.0

    @property
    def seconds(self) -> float:
        """From the beginning to the end, or to now while it lasts."""
        return (time.perf_counter() if self._end is None else self._end) - self._begin

    def __enter__(self) -> Self:
        self._begin, self._end = time.perf_counter(), None
        with _lock:
            _note_peak()
            _open.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._end = time.perf_counter()
        with _lock:
            _note_peak()
            _open.discard(self)


def _note_peak() -> None:
    """Give the mark to every open measurement, then set it back to the present size.

    What the C library keeps of memory that was freed goes back first: it is not the next stage's.
    """
    peak = peak_memory_bytes()
    for cost in _open:
        cost.peak_memory_bytes = max(cost.peak_memory_bytes, peak)
    if _malloc_trim is not None:
        _malloc_trim(0)
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak_memory_bytes() -> int:
    """The process's high-water mark of resident memory."""
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
