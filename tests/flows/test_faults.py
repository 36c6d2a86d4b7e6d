"""Nothing lost: killed, damaged and doubled runs end with the same bytes as one that nothing happened to."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from deployed import Deployed, kill_with_children
from faults import ARGUMENTS, EXPERIMENT, kill_after, made, start, task_runs, wait_for, whole
from flow_running import CommandLine, environment


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


@pytest.mark.slow  # a minute
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_two_runs_at_once_do_the_work_once(tmp_path: Path, videos: Path, server, unbroken: Path) -> None:
    since = datetime.now(UTC).isoformat()
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    (second / "store").symlink_to(first / "store")
    (first / "store").mkdir(parents=True)
    runs = [start(folder, videos, server.variables) for folder in (first, second)]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    assert whole(first / "store") == whole(unbroken)
    done = [run["name"] for run in task_runs(server.url, since) if run["state_name"] == "Completed"]
    assert len(done) == len(set(done)) > 10, "some stage was done twice"
