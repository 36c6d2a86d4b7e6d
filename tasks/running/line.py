"""A line between the process that runs a flow and those that do its jobs, on this machine or on others.

Progress and warnings go up; that the flow stops or is gone comes down, by the line's end. What is said is lines of
JSON: nothing is unpickled, and whoever does not know the flow's secret is not heard.
"""

from __future__ import annotations

import hmac
import json
import logging
import multiprocessing
import os
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from multiprocessing.process import BaseProcess
from typing import Any

from vidistill.storage.errors import TransientError
from vidistill.storage.mirror import borrowed
from vidistill.tasks.running.stopping import hearing_of_stops, stopped_by
from vidistill.tasks.stage import Event, Job, listening, tell, tell_progress, watching

LOOPBACK = "127.0.0.1"
CALL_SECONDS = 20.0
BETWEEN_SECONDS = 0.2
"""A job says no more often than this how far it is."""


@contextmanager
def answering(host: str = LOOPBACK) -> Iterator[str]:
    """Hear the jobs that other processes do for this one's flow; yields what `calling` needs."""
    with _Exchange((host, 0), _Call) as exchange, hearing_of_stops(exchange.hang_up):
        threading.Thread(target=exchange.serve_forever, daemon=True, name="exchange").start()
        try:
            yield f"{host}:{exchange.server_address[1]}:{exchange.secret}"
        finally:
            exchange.shutdown()
            exchange.hang_up()


class _Exchange(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.secret, self.calls, self.over = secrets.token_hex(16), set[socket.socket](), False

    def hang_up(self) -> None:
        """Tell every process to stop; what it has to say until then is heard."""
        self.over = True
        for call in list(self.calls):
            with suppress(OSError):
                call.shutdown(socket.SHUT_WR)


class _Call(socketserver.StreamRequestHandler):
    server: _Exchange

    def handle(self) -> None:
        if not hmac.compare_digest(self.rfile.readline(100).strip(), self.server.secret.encode()):
            return
        self.server.calls.add(self.connection)
        if self.server.over:
            self.server.hang_up()
        with suppress(OSError):
            for line in self.rfile:
                _hear(**json.loads(line))
        self.server.calls.discard(self.connection)


def _hear(progress: Any = None, job: Any = None, event: Event = "began", log: Any = None) -> None:
    if progress:
        tell_progress(*progress)
    if job:
        tell(Job.model_validate(job), event)
    if log:
        logging.getLogger().handle(logging.makeLogRecord(log))  # the console alone: its worker has told Prefect


class Line:
    """A worker's end.

    Raises:
        TransientError: the flow's process cannot be reached from here.
    """

    def __init__(self, caller: str) -> None:
        address, _, secret = caller.rpartition(":")
        host, _, port = address.rpartition(":")
        try:
            self._socket = socket.create_connection((host, int(port)), CALL_SECONDS)
        except OSError as error:
            raise TransientError(
                f"The worker on {socket.gethostname()} cannot reach the run that it works for at {address} ({error}): "
                "open the way, or start the run on a machine that its workers reach."
            ) from error
        self._socket.settimeout(None)
        self._socket.sendall(f"{secret}\n".encode())
        self._saying = threading.Lock()
        self._jobs = 0
        self.stopped = threading.Event()
        threading.Thread(target=self._listen, daemon=True, name="line").start()

    def say(self, **words: Any) -> None:
        with suppress(OSError), self._saying:  # the flow is gone: `_listen` hears of that
            self._socket.sendall(json.dumps(words).encode() + b"\n")

    @contextmanager
    def used(self) -> Iterator[None]:
        """By a job, which says what it has to say even after it was told to stop."""
        with self._saying:
            self._jobs += 1
        try:
            yield
        finally:
            with self._saying:
                self._jobs -= 1
            self._close()

    def _listen(self) -> None:
        with suppress(OSError):
            self._socket.recv(1)  # nothing is said: the line ends
        self.stopped.set()
        self._close()
        _end_with_parent()

    def _close(self) -> None:
        """Once the flow is over and no job has anything to say."""
        with self._saying:
            if self.stopped.is_set() and not self._jobs:
                self._socket.close()


@cache
def _end_with_parent() -> None:
    """Processes of a pool would wait for ever for an owner that was killed."""
    parent = multiprocessing.parent_process()

    def wait(process: BaseProcess) -> None:
        process.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=wait, args=(parent,), daemon=True, name="parent").start()


@cache
def _line(caller: str) -> Line:
    logger = logging.getLogger("vidistill")
    if not any(isinstance(handler, _Forwarding) for handler in logger.handlers):
        logger.addHandler(_Forwarding())
    return Line(caller)


_own: ContextVar[Line | None] = ContextVar("line", default=None)


class _Forwarding(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        line = _own.get()
        if line is not None:
            known = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}
            line.say(log=known | {"msg": record.getMessage()})


@contextmanager
def calling(job: Job, caller: str) -> Iterator[None]:
    """Tell the flow's process of this job, and stop when it says so; nothing where the job runs in that process."""
    if not caller:
        yield
        return
    line, name, said = _line(caller), job.label or job.stage, -BETWEEN_SECONDS

    def told(label: str, done: int, total: int, note: str) -> None:
        nonlocal said
        now = time.monotonic()
        if label == name and (now - said >= BETWEEN_SECONDS or done == total):
            said = now
            line.say(progress=[label, done, total, note])

    def heard(other: Job, event: Event) -> None:
        if other is job:
            line.say(job=job.model_dump(mode="json"), event=event)

    before = _own.set(line)
    try:
        with borrowed(), line.used(), listening(told), watching(heard), stopped_by(line.stopped):
            yield
    finally:
        _own.reset(before)
