"""Nothing lost where the store is far away, its hosts are two, or the server dies: real endpoints, hosts, servers."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from faults import kill_after, made, start, task_runs, wait_for, whole
from flow_running import BIN, background, environment
from stumbling import Stumbling

from vidistill.storage.store import Store


def seeded(seed: int, share: float) -> Callable[[str, str], str | None]:
    """A store of which this share of requests goes wrong, in one way or another."""
    draw = random.Random(seed)

    def fault(method: str, path: str) -> str | None:
        if draw.random() > share:
            return None
        found = draw.choice(["500", "503", "slow", "half", "short"])
        return found if (method == "GET" and "list-type" not in path) or found not in {"half", "short"} else "503"

    return fault


@pytest.mark.slow
def test_a_run_on_a_store_that_stumbles_is_killed_and_resumed(
    host: Callable[[str], Store], stumbling: Stumbling, tmp_path: Path, videos: Path, server: Any, unbroken: Path
) -> None:
    here = host("here")
    stumbling.fault, stumbling.slow_seconds = seeded(0, 0.05), 0.3
    more = ("--store", here.location)
    half = len(whole(unbroken)) // 2
    assert kill_after(start(tmp_path / "a", videos, server.variables, *more), here, half, 0.2)
    before = made(here)
    assert len(before) >= half - 1
    run = start(tmp_path / "b", videos, server.variables, *more)  # a mirror of its own: another machine goes on
    assert run.wait(timeout=300) == 0, (tmp_path / "b" / "said").read_text()
    assert before.items() <= made(here).items(), "a committed artifact was made again"
    assert whole(here) == whole(unbroken)
    assert not [ref for ref in here.refs() if ref.kind.endswith("-checkpoint")]
    assert stumbling.asked


def named(host: str) -> tuple[str, ...]:
    """A prefix that runs a command on a host of this name."""
    prefix = ("unshare", "--uts", "--map-root-user", "sh", "-c", f'hostname {host} && exec "$@"', "sh")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("a process may not have a host name of its own here")
    return prefix


@pytest.mark.slow
def test_two_hosts_that_run_the_same_do_the_work_once(
    host: Callable[[str], Store], s3: Any, tmp_path: Path, videos: Path, server: Any, unbroken: Path
) -> None:
    """Each with a mirror, and with a name of its own."""
    since = datetime.now(UTC).isoformat()
    here = host("here")
    runs = [
        start(tmp_path / name, videos, server.variables, "--store", here.location, prefix=named(name))
        for name in ("one", "two")
    ]
    assert [run.wait(timeout=300) for run in runs] == [0, 0], (tmp_path / "one" / "said").read_text()
    assert whole(here) == whole(unbroken)
    done = [run["name"] for run in task_runs(server.url, since) if run["state_name"] == "Completed"]
    assert len(done) == len(set(done)) > 10, "some stage was done twice"


def own_server(process: subprocess.Popen[bytes]) -> int:
    """The server that a run started for itself."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                if b"vidistill.flows.server" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        time.sleep(0.1)
    raise AssertionError("the run started no server")


@pytest.mark.slow  # a minute
def test_a_run_whose_server_is_killed_loses_nothing(tmp_path: Path, videos: Path, unbroken: Path) -> None:
    store = tmp_path / "store"
    run = start(tmp_path, videos, {})
    assert wait_for(store, len(whole(unbroken)) // 2, run)
    os.kill(own_server(run), signal.SIGKILL)
    code = run.wait(timeout=120)
    said = (tmp_path / "said").read_text()
    print(code, said)
    assert "Traceback" not in said, said
    before = made(store)
    assert start(tmp_path, videos, {}).wait(timeout=300) == 0
    assert before.items() <= made(store).items(), "a committed artifact was made again"
    assert whole(store) == whole(unbroken)


@pytest.mark.slow
def test_a_run_whose_named_server_is_killed_ends_with_a_sentence(tmp_path: Path, videos: Path, unbroken: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    variables = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_CLIENT_MAX_RETRIES": "1"}
    store = tmp_path / "store"
    with background(command, tmp_path, environment(tmp_path / "server")) as server:
        deadline = time.monotonic() + 180
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline, "the Prefect server did not start"
            time.sleep(0.3)
        run = start(tmp_path, videos, variables)
        assert wait_for(store, len(whole(unbroken)) // 2, run)
        os.killpg(server.pid, signal.SIGKILL)
        assert run.wait(timeout=300) == 1
    said = (tmp_path / "said").read_text()
    assert "vidistill: The Prefect server no longer answers (" in said, said
    assert "Traceback" not in said, said
    before = made(store)
    assert start(tmp_path, videos, {}).wait(timeout=300) == 0
    assert before.items() <= made(store).items(), "a committed artifact was made again"
    assert whole(store) == whole(unbroken)
