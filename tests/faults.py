"""Runs that things happen to: started, watched, killed, and what is whole afterwards."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from flow_running import BIN, CommandLine, environment

from vidistill.storage.store import MANIFEST, ArtifactRef, Store

ARGUMENTS = shlex.split(
    "--method random,tsgf --ipc 1 --seeds 1 --frames 4 --size 48 --set front=rgb --set teacher.epochs=4"
    " --set teacher.least_steps=1 --set teacher.precision=fp32 --set teacher.checkpoint_epochs=1"
    " --set tsgf.iterations=4 --set tsgf.precision=fp32 --set student.epochs=1 --set student.least_steps=5"
    " --set student.precision=fp32 --set decode.max_lost_share=0.5"
)
EXPERIMENT = {
    "cells": [{"method": "random"}, {"method": "tsgf", "options": {"iterations": 4, "precision": "fp32"}}],
    "seeds": 1,
    "decode": {"frames": 4, "size": 48, "max_lost_share": 0.5},
    "front": "rgb",
    "teacher": {"epochs": 4, "least_steps": 1, "checkpoint_epochs": 1, "precision": "fp32"},
    "student": {"epochs": 1, "least_steps": 5, "precision": "fp32"},
}
"""The same as `ARGUMENTS`."""


def whole(store: Path | Store) -> dict[ArtifactRef, str]:
    """Every committed artifact but the report (which tells times) and checkpoints, with its files' checksums."""
    opened = Store(store) if isinstance(store, Path) else store
    refs = [ref for ref in opened.refs() if ref.kind != "report" and not ref.kind.endswith("-checkpoint")]
    return {
        ref: json.dumps(opened.manifest(ref).model_dump()["files"], sort_keys=True) for ref in refs if opened.has(ref)
    }


def made(store: Path | Store) -> dict[ArtifactRef, str]:
    """When each artifact was committed: it changes when one is made again."""
    opened = Store(store) if isinstance(store, Path) else store
    return {ref: opened.manifest(ref).model_dump_json() for ref in whole(opened)}


def manifests(store: Store) -> dict[ArtifactRef, bytes]:
    """Every committed artifact that is no checkpoint, with its manifest's bytes, which change when it is made again."""
    kept = [ref for ref in store.refs() if not ref.kind.endswith("-checkpoint")]
    return store.contents(kept, MANIFEST)


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory, videos: Path, server) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    done = CommandLine(folder, server.variables)("run", "--data", videos, *ARGUMENTS, "--store", folder / "store")
    assert done.returncode == 0, done.stderr
    return folder / "store"


def start(
    folder: Path, videos: Path, variables: dict[str, str], *more: str, prefix: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    """A run in a process group of its own, which writes what it says to `said`."""
    folder.mkdir(exist_ok=True)
    store = str(folder / "store")
    command = [*prefix, str(BIN / "vidistill"), "run", "--data", str(videos), *ARGUMENTS, "--store", store, *more]
    env = environment(folder / "home", **variables)
    with (folder / "said").open("wb") as said:
        return subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, stdout=said, stderr=said)


def wait_for(store: Path | Store, manifests: int, process: subprocess.Popen[bytes]) -> bool:
    """Until the store holds so many artifacts; False: the process ended before."""
    deadline = time.monotonic() + 400
    while len(list(store.glob("*/*/manifest.json")) if isinstance(store, Path) else store.refs()) < manifests:
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError("the run makes no progress")
        time.sleep(0.01)
    return True


def kill_after(process: subprocess.Popen[bytes], store: Path | Store, manifests: int, delay_seconds: float) -> bool:
    """SIGKILL the run and all its children when the store holds so many artifacts; False: it ended before."""
    if not wait_for(store, manifests, process):
        return False
    time.sleep(delay_seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def task_runs(url: str, since: str) -> list[dict[str, str]]:
    body = json.dumps({"task_runs": {"start_time": {"after_": since}}, "limit": 200}).encode()
    asked = urllib.request.Request(f"{url}/task_runs/filter", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.load(answer)
