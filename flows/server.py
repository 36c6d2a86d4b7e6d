"""The Prefect server that a command talks to: the one that its user's settings name, or one of its own.

Prefect starts one itself, but in the terminal's process group, where Ctrl-C ends it before the run that still talks to
it, and leaves it behind when the run is killed. Ours has a session of its own, and reads from a pipe whose other end
its owner alone holds: the kernel closes that end however the owner dies. (Linux's parent-death signal comes when the
thread that started the server ends, and not at all where the owner died before it was asked for.)
"""

from __future__ import annotations

import atexit
import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import IO

from vidistill.storage.errors import RunError

START_SECONDS = 180  # importing Prefect and making its database, when every core works
STOP_SECONDS = 5
RESTARTS = 3
"""How often a run's own server may die, and be started again, within a run."""

log = logging.getLogger("vidistill")

THREADS = {"OMP_WAIT_POLICY": "passive"}
"""On a busy machine, spinning at barriers makes two threads an eighth as fast as one."""
ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    # one transaction for many states, not for each: else the database is busy, and a short run's own server ends before
    # it has written what it was told
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_CLI_PROMPT": "false",
} | THREADS
SILENCE = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_ROOT_LEVEL": "CRITICAL",  # the server's database complains when it is stopped within a query
}


def prepare(environment: Mapping[str, str]) -> None:
    """Set what a user has not."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def connect(verbose: bool) -> None:
    """Make Prefect ready for a command line: silent about itself, nothing sent anywhere, with a server that answers.

    Raises:
        RunError: the server does not answer.
    """
    prepare(ENVIRONMENT if verbose else ENVIRONMENT | SILENCE)
    logging.getLogger("vidistill").setLevel(logging.WARNING)
    logging.basicConfig(format="%(message)s", level=logging.CRITICAL if not verbose else logging.INFO)
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if url is None:
        os.environ["PREFECT_API_URL"] = start(verbose)
        spared = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = ",".join(filter(None, [spared, "127.0.0.1"]))  # no proxy leads to this machine's own
        refresh_global_settings_context()
    else:
        _check(url)


def _check(url: str) -> None:
    """A server that is named, but does not answer, ends in a page of Prefect's own words otherwise."""
    from prefect import get_client

    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem is not None:
        raise RunError(
            f"The Prefect server at {url} does not answer ({problem}): start it with `prefect server start`, "
            "or unset PREFECT_API_URL, and the run starts its own."
        )


def start(verbose: bool) -> str:
    """Start a server that lives as long as this process; the address of its API."""
    said = None if verbose else tempfile.TemporaryFile()  # noqa: SIM115
    server = _Own(said)
    atexit.register(server.stop)  # before Prefect's own, which still speak to it, so that it runs after them
    _wait(server.port, said)
    threading.Thread(target=server.keep, daemon=True, name="server").start()
    return f"http://127.0.0.1:{server.port}/api"


class _Own:
    """The server's process, and the port that it keeps when it is started again."""

    def __init__(self, said: IO[bytes] | None) -> None:
        self.port = 0
        self._said = said
        self._stopping = threading.Event()
        self._process = self._spawn()

    def keep(self) -> None:
        """Start it again where it dies: who talks to it tries for a minute, and goes on."""
        for _ in range(RESTARTS):
            self._process.wait()
            if self._stopping.is_set():
                return
            log.warning("The run's own Prefect server has died: it is started again.")
            self._process = self._spawn()

    def stop(self) -> None:
        self._stopping.set()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with socket.create_server(("127.0.0.1", self.port)) as listening:
            self.port = listening.getsockname()[1]
            command = [sys.executable, "-P", "-m", __name__, str(listening.fileno())]
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=self._said,
                stderr=self._said,
                pass_fds=[listening.fileno()],
                start_new_session=True,
            )


def lost(error: BaseException) -> RunError | None:
    """What to say where a server no longer answers a run; None: that is not what happened."""
    import httpx

    if not isinstance(error, httpx.TransportError):
        return None
    return RunError(
        f"The Prefect server no longer answers ({str(error) or type(error).__name__}): what the run has made is in the "
        "store; start the server, and run the same command again to go on from here."
    )


def _wait(port: int, said: IO[bytes] | None) -> None:
    """The server answers once it is up: the socket listens from the beginning, and goes with the server.

    Raises:
        RunError: it did not start.
    """
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
        connection.request("GET", "/api/health")
        status = connection.getresponse().status
        connection.close()
    except (OSError, http.client.HTTPException):
        status = 0
    if status != http.HTTPStatus.OK:
        why = "it says why above" if said is None else _last_line(said)
        raise RunError(f"The run's own Prefect server did not start ({why}): `vidistill doctor` looks for the cause.")


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")


def _end_with_owner() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(1)


def main() -> None:
    """Serve Prefect's API on the socket that the owner passed."""
    threading.Thread(target=_end_with_owner, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    settings = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=STOP_SECONDS - 2)
    uvicorn.Server(settings).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
