"""Jobs side by side: in one process, in several, and what they and their flow tell each other."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from vidistill.storage.errors import RequestError, RunError, Stopped
from vidistill.tasks.running import performing
from vidistill.tasks.running.line import Line, answering, calling
from vidistill.tasks.running.places import GPU_JOBS, VIDEO_SECONDS, gpu_taken, sharing_threads, threads_taken
from vidistill.tasks.running.stopping import start_jobs, stop_jobs
from vidistill.tasks.stage import Job, Runtime, listening, report_progress, tell, watching

JOB = Job(stage="tiny", module="nowhere", version=1, parameters={"a": 1}, label="a tiny job")
HOLDING = """
import sys, time
from vidistill.tasks.running.places import sharing_threads, threads_taken
count, limit, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
with sharing_threads(sys.argv[4]), threads_taken(count, limit):
    began = time.time()
    print(began, flush=True)
    time.sleep(seconds)
    print(time.time(), flush=True)
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What these processes call their threads; the files lie in a folder of the test's."""
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return "tests"


def holding(count: int, limit: int, seconds: float, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDING, str(count), str(limit), str(seconds), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_share_threads_never_take_more_than_there_are(name: str) -> None:
    """Jobs of one thread and of both, in six processes."""
    counts = (1, 2, 1, 1, 2, 1)
    processes = [holding(count, 2, 0.2, name) for count in counts]
    held = [[float(line) for line in process.communicate(timeout=60)[0].split()] for process in processes]
    moments = sorted((since, until, count) for (since, until), count in zip(held, counts, strict=True))
    for moment in [since for since, _, _ in moments]:
        assert sum(count for since, until, count in moments if since <= moment < until) <= 2


def test_what_a_killed_process_held_is_free_at_once(name: str) -> None:
    process = holding(2, 2, 600, name)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    since = time.monotonic()
    with sharing_threads(name), threads_taken(2, 2):
        assert time.monotonic() - since < 5
    process.stdout.close()


def test_other_runs_do_not_wait_for_each_other(name: str) -> None:
    with sharing_threads(name), threads_taken(2, 2):
        other = holding(2, 2, 0, "another")
        assert other.communicate(timeout=30)[0].count("\n") == 2


def test_a_job_that_waits_for_threads_of_another_process_can_be_stopped(name: str) -> None:
    process = holding(2, 2, 600, name)
    assert process.stdout is not None
    process.stdout.readline()
    timer = threading.Timer(0.3, stop_jobs)
    timer.start()
    try:
        with pytest.raises(Stopped), sharing_threads(name), threads_taken(1, 2):
            pass
    finally:
        start_jobs()
        process.kill()
        process.communicate()


def test_a_server_that_takes_no_progress_costs_no_job_and_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.context import TaskRunContext
    from prefect.settings import PREFECT_API_URL, temporary_settings

    said: list[str] = []
    monkeypatch.setattr(performing.log, "warning", lambda words, *_: said.append(words))
    monkeypatch.setattr(performing, "INTERVAL_SECONDS", 0.0)
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        TaskRunContext.model_construct(task=performing.prefect_task("tiny")),
        listening(performing.Published(JOB)),
    ):
        for done in range(3):
            report_progress("a tiny job", done, 3)
    assert said == ["The progress of %s is not shown: %s"]


def test_without_a_gpu_nothing_is_taken(name: str, tmp_path: Path) -> None:
    with gpu_taken("cpu", 1), gpu_taken("cpu", 1):
        assert not list(tmp_path.rglob("gpu-*"))


def test_a_job_leaves_a_gpu_s_memory_to_the_next(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may be another process's: torch keeps what networks freed."""
    import torch

    seen: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="one"))
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append("emptied"))
    with gpu_taken("auto", 1):
        seen.append("at work")
    assert seen == ["at work", "emptied"]


def test_jobs_on_a_gpu_take_turns(name: str) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here")
    most, now, lock = 0, 0, threading.Lock()

    def job() -> None:
        nonlocal most, now
        with gpu_taken("auto", 2):
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.3)
            with lock:
                now -= 1

    threads = [threading.Thread(target=job) for _ in range(8 * torch.cuda.device_count())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2 * torch.cuda.device_count()


def test_the_jobs_on_a_gpu_are_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GPU_JOBS, raising=False)
    assert Runtime(store="store").gpu_jobs == 1
    monkeypatch.setenv(GPU_JOBS, "8")
    assert (Runtime(store="store").gpu_jobs, Runtime(store="store", gpu_jobs=2).gpu_jobs) == (8, 2)
    for wrong in ("0", "-1", "many", ""):
        monkeypatch.setenv(GPU_JOBS, wrong)
        with pytest.raises(RequestError, match=f"VIDISTILL_GPU_JOBS takes .* such as 8; got '{wrong}'"):
            Runtime(store="store")


def test_the_environment_says_how_long_a_video_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VIDEO_SECONDS, raising=False)
    assert Runtime(store="store").timeout_seconds == 60
    monkeypatch.setenv(VIDEO_SECONDS, "300.5")
    assert Runtime(store="store").timeout_seconds == 300.5
    for wrong in ("0", "-1", "long", "", "inf", "nan", "0.0"):
        monkeypatch.setenv(VIDEO_SECONDS, wrong)
        with pytest.raises(RequestError, match=f"VIDISTILL_VIDEO_SECONDS takes .* such as 300; got '{wrong}'"):
            Runtime(store="store")


# --- the line ----------------------------------------------------------------------------------------------------

WORKER = """
import json, logging, sys, time
from vidistill.tasks.running.line import calling
from vidistill.tasks.stage import Job, report_progress, tell
job = Job.model_validate_json(sys.argv[2])
with calling(job, sys.argv[1]):
    tell(job, "began")
    logging.getLogger("vidistill").warning("careful: %s", "thin ice")
    report_progress("another job", 1, 2)
    report_progress(job.label, 1, 2, "half")
    while len(sys.argv) > 3:
        report_progress(job.label, 1, 2, "half")
        time.sleep(0.05)
    report_progress(job.label, 2, 2, "whole")
    tell(job, "made")
"""


def worker(caller: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, caller, JOB.model_dump_json(), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_worker_s_progress_and_warnings_reach_the_flow(caplog: pytest.LogCaptureFixture) -> None:
    told, heard = [], []
    with (
        answering() as caller,
        listening(lambda *words: told.append(words)),
        watching(lambda job, event: heard.append((job, event))),
    ):
        said, complaints = worker(caller).communicate(timeout=60)
        deadline = time.monotonic() + 10
        while len(heard) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert (said, complaints) == ("", "")
    assert told == [("a tiny job", 1, 2, "half"), ("a tiny job", 2, 2, "whole")]
    assert heard == [(JOB, "began"), (JOB, "made")]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "careful: thin ice")
    ]


@pytest.mark.parametrize("how", ["stopped", "gone"])
def test_a_worker_stops_when_its_flow_is(how: str) -> None:
    flow = answering()
    process = worker(flow.__enter__(), "for ever")
    heard = threading.Event()
    with watching(lambda job, event: heard.set()):
        assert heard.wait(60)
    if how == "stopped":
        stop_jobs()
        start_jobs()
    else:
        flow.__exit__(None, None, None)
    assert "Stopped: The run was stopped" in process.communicate(timeout=20)[1]
    if how == "stopped":
        flow.__exit__(None, None, None)


def test_whoever_does_not_know_the_secret_is_not_heard() -> None:
    told = []
    with answering() as caller, listening(lambda *words: told.append(words)):
        line = Line(caller[:-1] + ("0" if caller[-1] != "0" else "1"))
        line.say(progress=["a tiny job", 1, 2, ""])
        assert line.stopped.wait(10)
    assert told == []


def test_a_flow_that_cannot_be_reached_is_one_sentence() -> None:
    with pytest.raises(RunError, match=r"cannot reach the run that it works for at 127\.0\.0\.1:9 \("):
        Line("127.0.0.1:9:secret")


def test_a_job_of_this_process_calls_nobody() -> None:
    with calling(JOB, ""):
        report_progress("a tiny job", 1, 2)


def test_each_flow_stops_its_own_jobs() -> None:
    """Two flows whose jobs one worker does: the one that ends leaves the other's job alone."""
    with answering() as lasting:
        with answering() as ending, calling(JOB, ending):
            report_progress("a tiny job", 0, 2)
        with calling(JOB, lasting):
            time.sleep(0.3)
            report_progress("a tiny job", 1, 2)
            tell(JOB, "made")


def test_a_flow_that_is_over_leaves_no_line_behind() -> None:
    """A worker of a cluster does the jobs of many flows."""

    def held() -> int:
        return len(os.listdir("/proc/self/fd")) + sum(one.name != "parent" for one in threading.enumerate())

    gc.collect()
    before = held()
    for _ in range(10):
        with answering() as caller, calling(JOB, caller):
            report_progress("a tiny job", 1, 2)
    deadline = time.monotonic() + 10
    while held() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert held() <= before
