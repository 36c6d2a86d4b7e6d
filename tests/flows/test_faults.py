"""Nothing lost: killed, damaged and doubled runs end with the same bytes as one that nothing happened to."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from deployed import Deployed, kill_with_children
from flow_running import BIN, CommandLine, environment

from vidistill.storage.store import ArtifactRef, Store

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


def whole(store: Path) -> dict[ArtifactRef, str]:
    """Every committed artifact but the report (which tells times) and checkpoints, with its files' checksums."""
    opened = Store(store)
    refs = [ref for ref in opened.refs() if ref.kind != "report" and not ref.kind.endswith("-checkpoint")]
    return {
        ref: json.dumps(opened.manifest(ref).model_dump()["files"], sort_keys=True) for ref in refs if opened.has(ref)
    }


def made(store: Path) -> dict[ArtifactRef, str]:
    """When each artifact was committed: it changes when one is made again."""
    opened = Store(store)
    return {ref: opened.manifest(ref).model_dump_json() for ref in whole(store)}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, videos: Path, server) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    done = CommandLine(folder, server.variables)("run", "--data", videos, *ARGUMENTS, "--store", folder / "store")
    assert done.returncode == 0, done.stderr
    return folder / "store"


def start(folder: Path, videos: Path, variables: dict[str, str], *more: str) -> subprocess.Popen[bytes]:
    """A run in a process group of its own, which writes what it says to `said`."""
    folder.mkdir(exist_ok=True)
    store = str(folder / "store")
    command = [str(BIN / "vidistill"), "run", "--data", str(videos), *ARGUMENTS, "--store", store, *more]
    env = environment(folder / "home", **variables)
    with (folder / "said").open("wb") as said:
        return subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, stdout=said, stderr=said)


def wait_for(store: Path, manifests: int, process: subprocess.Popen[bytes]) -> bool:
    """Until the store holds so many artifacts; False: the process ended before."""
    deadline = time.monotonic() + 200
    while len(list(store.glob("*/*/manifest.json"))) < manifests:
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the run makes no progress"
        time.sleep(0.01)
    return True


def kill_after(process: subprocess.Popen[bytes], store: Path, manifests: int, delay_seconds: float) -> bool:
    """SIGKILL the run and all its children when the store holds so many artifacts; False: it ended before."""
    if not wait_for(store, manifests, process):
        return False
    time.sleep(delay_seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def kill_and_resume(
    folder: Path, videos: Path, variables: dict[str, str], expected: dict, kills: int, seed: int
) -> None:
    draw, store = random.Random(seed), folder / "store"
    targets = sorted(draw.sample(range(1, len(expected)), kills))
    killed = 0
    for target in targets:
        before = made(store) if store.exists() else {}
        killed += kill_after(start(folder, videos, variables), store, target, draw.uniform(0, 0.4))
        kept = made(store)
        assert before.items() <= kept.items(), "a committed artifact was made again"
    assert killed >= kills - 1
    before = made(store)
    last = start(folder, videos, variables)
    assert last.wait(timeout=300) == 0
    assert before.items() <= made(store).items()
    assert whole(store) == expected
    assert not list(store.glob("*-checkpoint/*")), "checkpoints go when their artifact is there"
    assert not list((store / ".staging").glob("*"))


def test_killed_runs_resume_to_the_same_bytes(tmp_path: Path, videos: Path, server, unbroken: Path) -> None:
    kill_and_resume(tmp_path, videos, server.variables, whole(unbroken), kills=2, seed=0)


@pytest.mark.slow
def test_ten_kills(tmp_path: Path, videos: Path, server, unbroken: Path) -> None:
    kill_and_resume(tmp_path, videos, server.variables, whole(unbroken), kills=10, seed=1)


def test_a_killed_worker_loses_nothing(tmp_path: Path, videos: Path, server, unbroken: Path) -> None:
    """The dead run is said to have crashed, as in the UI, which frees its place at once (else within five minutes)."""
    deployed, experiment = Deployed(tmp_path, environment(tmp_path / "home", **server.variables)), dict(EXPERIMENT)
    experiment["data"] = str(videos)
    deployed.deploy()
    with deployed.worker() as worker:
        dead = deployed.start(experiment)
        assert wait_for(tmp_path / "store", len(whole(unbroken)) // 2, worker)
        kill_with_children(worker.pid)
    deployed.ask(f"/flow_runs/{dead}/set_state", {"state": {"type": "CRASHED"}, "force": True})
    before = made(tmp_path / "store")
    with deployed.worker():
        deployed.run(experiment)
    assert before.items() <= made(tmp_path / "store").items(), "a committed artifact was made again"
    assert whole(tmp_path / "store") == whole(unbroken)


def test_a_run_that_is_told_to_stop_does_so_soon(tmp_path: Path, videos: Path, server) -> None:
    """By SIGTERM, at its next step, with the last checkpoint in the store; Ctrl-C is in test_stopping.py."""
    run = start(tmp_path, videos, server.variables, "--set", "teacher.epochs=5000")
    store = tmp_path / "store"
    deadline = time.monotonic() + 200
    while not list(store.glob("teacher-checkpoint/*")):
        assert run.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < deadline, "the run makes no progress"
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == 130
    assert (tmp_path / "said").read_text().endswith("stopped; run the same command again to go on from here.\n")
    assert "Traceback" not in (tmp_path / "said").read_text()
    assert list(store.glob("teacher-checkpoint/*"))
    assert not list((store / ".staging").glob("*"))
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)


def test_damage_is_found_said_and_mended(tmp_path: Path, videos: Path, server, unbroken: Path) -> None:
    store, vidistill = tmp_path / "store", CommandLine(tmp_path, server.variables)
    shutil.copytree(unbroken, store)
    blocks = sorted((store / "block").iterdir())
    flipped = next(path for path in sorted(blocks[0].rglob("c/*")) if path.is_file() or path.is_dir())
    flipped = next(path for path in sorted(flipped.rglob("*")) if path.is_file()) if flipped.is_dir() else flipped
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    missing = next(path for path in sorted(blocks[1].rglob("*")) if path.is_file() and "/c/" in path.as_posix())
    missing.unlink()
    manifest = next((store / "distilled").iterdir()) / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    shutil.rmtree(next((store / "teacher").iterdir()))

    verified = vidistill("verify", "--store", store)
    assert verified.returncode == 1
    for damaged in (blocks[0].name, blocks[1].name, manifest.parent.name, next((unbroken / "teacher").iterdir()).name):
        assert damaged in verified.stdout
    planned = vidistill("plan", "--data", videos, *ARGUMENTS, "--store", store)
    assert planned.returncode == 0
    assert planned.stdout.count("damaged") >= 2

    mended = vidistill("run", "--data", videos, *ARGUMENTS, "--store", store)
    assert mended.returncode == 0, mended.stderr
    assert "does not have its checksum" in mended.stderr
    assert "is missing" in mended.stderr
    assert "manifest.json cannot be read" in mended.stderr
    assert whole(store) == whole(unbroken)
    assert vidistill("verify", "--store", store).returncode == 0


def test_a_changed_video_rebuilds_what_depends_on_it(tmp_path: Path, videos: Path, server, unbroken: Path) -> None:
    store, data, vidistill = tmp_path / "store", tmp_path / "data", CommandLine(tmp_path, server.variables)
    shutil.copytree(unbroken, store)
    shutil.copytree(videos, data / videos.name)
    changed = sorted((data / videos.name / "train" / "left").glob("left*.mp4"))
    shutil.copyfile(changed[0], changed[1])
    planned = vidistill("plan", "--data", data / videos.name, *ARGUMENTS, "--store", store)
    blocks = next(line for line in planned.stdout.splitlines() if line.startswith("block"))
    assert "1 to run" in blocks, planned.stdout
    assert f"{changed[1].relative_to(data / videos.name)} is changed" in planned.stdout
    before = set(whole(store))
    assert vidistill("run", "--data", data / videos.name, *ARGUMENTS, "--store", store).returncode == 0
    assert sum(ref.kind == "block" for ref in set(whole(store)) - before) == 1


def test_two_runs_at_once_do_the_work_once(tmp_path: Path, videos: Path, server, unbroken: Path) -> None:
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    (second / "store").symlink_to(first / "store")
    (first / "store").mkdir(parents=True)
    runs = [start(folder, videos, server.variables) for folder in (first, second)]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    assert whole(first / "store") == whole(unbroken)
    done = [run["name"] for run in task_runs(server.url, since) if run["state_name"] == "Completed"]
    assert len(done) == len(set(done)) > 10, "some stage was done twice"


def task_runs(url: str, since: str) -> list[dict[str, str]]:
    body = json.dumps({"task_runs": {"start_time": {"after_": since}}, "limit": 200}).encode()
    asked = urllib.request.Request(f"{url}/task_runs/filter", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.load(answer)
