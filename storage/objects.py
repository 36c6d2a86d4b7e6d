"""Objects under a URL: asked again where the store stumbles, side by side where there are many, and one sentence where
nothing helps.
"""

from __future__ import annotations

import errno
import hashlib
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from logging import getLogger
from typing import Any, TypeVar

from vidistill.storage.errors import StoreError, StoreUnreachable

WAITS_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Before the second, third … try; a store that has never answered is tried twice."""
UNKNOWN_TRIES = 2
SIDE_BY_SIDE = 16
"""Requests at a time."""
PART_BYTES = 8 << 20
"""Of an object that is read part by part."""
PATIENCE = {"connect_timeout": 10, "read_timeout": 30, "retries": {"total_max_attempts": 3}}
"""With one request, in botocore: what takes several of them, such as a long listing, begins afresh where this ends."""
LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Of this machine's disk, not of the store."""
FINAL = {errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG, errno.EMSGSIZE, *LOCAL}
REFUSED = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
LIBRARIES = {"aiohttp", "botocore", "urllib3"}
CUT_SHORT = {"IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "RequestTimeout"}
TAKEN = {"PreconditionFailed", "412"}

_answered: set[str] = set()
log = getLogger("vidistill")
T = TypeVar("T")
R = TypeVar("R")


class Objects:
    """A file system of fsspec: what is read and not there stays a FileNotFoundError, what is written only where there
    is nothing (`mode="create"`, `IfMatch=…`) and is there a FileExistsError; every other failure is a StoreError.

    Args:
        url: such as `s3://bucket/prefix`.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        s3 = self.url.startswith(("s3://", "s3a://"))
        own = {"config_kwargs": PATIENCE | {"max_pool_connections": SIDE_BY_SIDE}} if s3 else {}
        self._files, self.prefix = fsspec.core.url_to_fs(self.url, **own)  # type: ignore[no-untyped-call]
        self._single = {"max_concurrency": 1} if s3 else {}  # else s3fs asks for the size before it reads
        self._files.retries = 1  # those of s3fs would multiply ours

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self._files, name)
        if name == "invalidate_cache":  # asks nobody
            return function

        def call(*arguments: Any, **named: Any) -> Any:
            return self._insist(lambda: function(*arguments, **named), writes=name in {"pipe_file", "put_file"})

        return call

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Call a function with each item, 16 at a time."""
        with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="objects") as pool:
            return list(pool.map(function, items))

    def content(self, path: str) -> bytes:
        """The content of one small object.

        Raises:
            FileNotFoundError: it is not there.
        """
        return bytes(self.cat_file(path, **self._single))

    def digest(self, path: str, size: int) -> str:
        """The SHA-256 of an object of so many bytes, in hexadecimal; no more than a part of it is in memory.

        Raises:
            FileNotFoundError: it is not there.
        """
        found = hashlib.sha256()
        for start in range(0, size, PART_BYTES):
            found.update(self.cat_file(path, start=start, end=min(start + PART_BYTES, size)))
        return found.hexdigest()

    def read(self, paths: list[str]) -> dict[str, bytes]:
        """The content of those objects that are there, read side by side."""
        found: dict[str, bytes] = {}

        def one(path: str) -> None:
            try:
                found[path] = self.content(path)
            except FileNotFoundError:
                return

        self.each(one, paths)
        return found

    def _insist(self, function: Callable[[], Any], *, writes: bool) -> Any:
        """Call a function, and again after a while where that may help."""
        number = 0
        while True:
            try:
                answer = function()
            except Exception as error:  # noqa: BLE001
                self._wait_or_raise(error, number, writes)
            else:
                _answered.add(self.url)
                return answer
            number += 1

    def _wait_or_raise(self, error: Exception, number: int, writes: bool) -> None:
        if isinstance(error, REFUSED) or code(error) in TAKEN:  # that is an answer
            _answered.add(self.url)
        if isinstance(error, FileExistsError) or code(error) in TAKEN:
            raise FileExistsError(str(error)) from error
        if isinstance(error, FileNotFoundError) and not writes:
            raise error
        if isinstance(error, OSError) and error.errno in LOCAL:
            raise error
        if number < len(WAITS_SECONDS) and passing(error) and (self.url in _answered or number + 1 < UNKNOWN_TRIES):
            seconds = WAITS_SECONDS[number] * random.uniform(0.75, 1.25)
            if WAITS_SECONDS[number] >= 1:
                log.warning("The store %s stumbles (%s): asked again in %.0f s.", self.url, told(error), seconds)
            time.sleep(seconds)
            return
        raise self._unreachable(error, number + 1) from error

    def _unreachable(self, error: Exception, tries: int) -> StoreError:
        often = f", after {tries} tries" if tries > 1 else ""
        kind = StoreUnreachable if passing(error) else StoreError
        return kind(
            f"The store {self.url} cannot be reached ({told(error)}{often}): "
            "check its address, the endpoint and your access."
        )


def told(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def code(error: BaseException) -> str:
    """S3's own word for an error, such as `PreconditionFailed`; empty where there is none."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def passing(error: Exception) -> bool:
    """Whether asking again may help: the store was busy or slow, or what it said was cut short."""
    if isinstance(error, OSError):
        refused = isinstance(error, REFUSED) or error.errno in FINAL
        return not refused or code(error) in CUT_SHORT
    return type(error).__module__.partition(".")[0] in LIBRARIES and "Credential" not in type(error).__name__
