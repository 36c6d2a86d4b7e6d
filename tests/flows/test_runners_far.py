"""Engines whose store is a bucket, and whose flow or worker is killed: nothing is lost, and the bytes are the same."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from engines import ENGINES, OWN, engine
from faults import kill_after, made, start, wait_for, whole

from vidistill.storage.store import Store

WORKERS = {"processes": b"spawn_main", "dask": b"spawn_main", "ray": b"ray::"}


@pytest.mark.parametrize("runner", ENGINES)
def test_a_run_in_a_bucket_is_killed_and_resumed(
    runner: str, host: Callable[[str], Store], tmp_path: Path, videos: Path, server: Any, unbroken: Path
) -> None:
    here, half = host("here"), len(whole(unbroken)) // 2
    with engine(runner, tmp_path) as address:
        more = ("--store", here.location, "--runner", address)
        assert kill_after(start(tmp_path / "a", videos, server.variables, *more), here, half, 0.2)
        before = made(here)
        assert len(before) >= half - 1
        run = start(tmp_path / "b", videos, server.variables, *more)  # a mirror of its own: another machine goes on
        assert run.wait(timeout=300) == 0, said(tmp_path / "b")
    assert before.items() <= made(here).items(), "a committed artifact was made again"
    assert whole(here) == whole(unbroken)


@pytest.mark.parametrize("runner", OWN)
def test_a_killed_worker_costs_its_job_alone(
    runner: str, tmp_path: Path, videos: Path, server: Any, unbroken: Path
) -> None:
    """Dask and Ray give its job to another one; a pool of processes is broken, and the next run goes on."""
    store, more = tmp_path / "store", ("--runner", runner)
    run = start(tmp_path, videos, server.variables, *more)
    assert wait_for(store, len(whole(unbroken)) // 2, run)
    os.kill(busiest(run, WORKERS[runner]), signal.SIGKILL)
    code = run.wait(timeout=300)
    assert "Traceback" not in said(tmp_path)
    if runner == "processes":
        assert code == 1
        assert said(tmp_path).count("killed or out of memory") == 1
        before = made(store)
        run = start(tmp_path, videos, server.variables, *more)
        code = run.wait(timeout=300)
        assert before.items() <= made(store).items(), "a committed artifact was made again"
    assert code == 0, said(tmp_path)
    assert whole(store) == whole(unbroken)


def said(folder: Path) -> str:
    return (folder / "said").read_text()


def busiest(run: subprocess.Popen[bytes], mark: bytes) -> int:
    """The worker of a run that has worked most."""
    ticks: dict[int, int] = {}
    for pid in descendants(run.pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if mark in Path(f"/proc/{pid}/cmdline").read_bytes():
                ticks[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])
    return max(ticks, key=ticks.__getitem__)


def descendants(pid: int) -> list[int]:
    children: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            children += map(int, task.read_text().split())
    return [*children, *(one for child in children for one in descendants(child))]
