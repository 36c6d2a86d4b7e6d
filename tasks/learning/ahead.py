"""Ahead: what the next step needs is read from the disk while this step is taken."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Calls `read(step + 1)` in a thread as soon as `read(step)` is given out; steps may come in any order.

    Args:
        read: from a step to what it needs, always the same.
    """

    def __init__(self, read: Callable[[int], T]) -> None:
        self._read = read
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._next: tuple[int, Future[T]] | None = None

    def __call__(self, step: int) -> T:
        found = self._next[1].result() if self._next and self._next[0] == step else self._read(step)
        self._next = (step + 1, self._thread.submit(self._read, step + 1))
        return found
