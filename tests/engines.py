"""The engines that may do a run's jobs, and clusters of two one-thread processes on this machine."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flow_running import background, environment


def needs(package: str) -> Any:
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"{package} is not installed (an extra of vidistill)")


DASK, RAY = needs("prefect_dask"), needs("prefect_ray")
OWN = [
    pytest.param("processes", id="processes", marks=pytest.mark.slow),
    pytest.param("dask", id="dask", marks=[DASK, pytest.mark.slow]),
    pytest.param("ray", id="ray", marks=[RAY, pytest.mark.slow]),
]
ENGINES = [
    *OWN,
    pytest.param("dask:ADDRESS", id="a Dask cluster", marks=[DASK, pytest.mark.slow]),
    pytest.param("ray:ADDRESS", id="a Ray cluster", marks=[RAY, pytest.mark.slow]),
]


@contextmanager
def engine(runner: str, folder: Path) -> Iterator[str]:
    """What `--runner` takes: where that names an ADDRESS, a cluster is there meanwhile."""
    kind, _, address = runner.partition(":")
    if not address:
        yield runner
        return
    with {"dask": dask_cluster, "ray": ray_cluster}[kind](folder) as found:
        yield f"{kind}:{found}"


@contextmanager
def dask_cluster(folder: Path) -> Iterator[str]:
    """A scheduler and two workers; the scheduler's address."""
    file, env = folder / "scheduler.json", environment(folder / "home")
    scheduler = ["-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    worker = ["-m", "distributed.cli.dask_worker", "--nworkers", "2", "--nthreads", "1", "--no-dashboard"]
    with background([sys.executable, *scheduler, "--scheduler-file", str(file)], folder, env):
        until(file.exists)
        with background([sys.executable, *worker, "--scheduler-file", str(file)], folder, env):
            yield json.loads(file.read_text())["address"]


@contextmanager
def ray_cluster(folder: Path) -> Iterator[str]:
    """A head that does two jobs at a time; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = ["-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}",
            "--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats", "--block"]  # fmt: skip
    with background([sys.executable, *head], folder, environment(folder / "home")):
        until(lambda: "Ray runtime started" in (folder / "-m.log").read_text())
        yield f"127.0.0.1:{port}"


def until(reached: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)
