"""Ctrl-C in a terminal: one sentence, exit code 130, soon, whatever runs; nothing that was started stays behind."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import manifests
from flow_running import BIN, CLASSES, TINY, CommandLine
from terminals import CTRL_C, SOON_SECONDS, Terminal, check_alone, check_stopped

from vidistill.storage.store import Store

ASLEEP = """
import time
from pathlib import Path
from vidistill.tasks.methods import Method
class Mine(Method):
    def distil(self, material):
        Path("asleep").touch()
        time.sleep(600)
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """Enough videos to press a key while they are decoded: two blocks a class."""
    folder = tmp_path_factory.mktemp("many")
    for name in CLASSES:
        for split, count in (("train", 60), ("test", 1)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                shutil.copy(next((videos / split / name).glob(f"{name}*")), folder / split / name / f"{number}.mp4")
    return folder


MOMENTS = {
    "decode": ("run", "many", "--method random", "block/*/manifest.json"),
    "training": ("run", "videos", "--method tsgf --set teacher.epochs=5000 --set teacher.checkpoint_epochs=1",
                 "teacher-checkpoint/*/manifest.json"),
    "matching": ("run", "videos", "--method dm --set dm.iterations=1000", "distilled-checkpoint/*/manifest.json"),
    "scoring": ("run", "videos", "--method random --set front=rgb --set student.least_steps=50000",
                "distilled/*/manifest.json"),
}  # fmt: skip


OTHERS = [pytest.param(moment, marks=pytest.mark.slow) for moment in ("decode", "matching", "scoring")]


@pytest.mark.parametrize("moment", ["training", *OTHERS])
def test_ctrl_c(terminal: Callable[..., Terminal], request: pytest.FixtureRequest, moment: str) -> None:
    command, data, options, reached = MOMENTS[moment]
    folder = request.getfixturevalue(data)
    run = terminal(command, "--data", folder, *TINY, *shlex.split(options))
    run.until(lambda: any(run.store.glob(reached)))
    finished = manifests(Store(run.store)).keys()
    run.press(CTRL_C)
    check_stopped(run)
    assert finished <= manifests(Store(run.store)).keys()
    assert any(run.store.glob(reached))
    assert not (run.folder / "vidistill-report" / "report.json").exists()


@pytest.mark.slow
def test_ctrl_c_in_a_pool(terminal: Callable[..., Terminal], videos: Path) -> None:
    sizes = ("--frames", 4, "--size", 48, "--set", "decode.max_lost_share=0.5", "--set", "teacher.epochs=1")
    run = terminal("pool", "--data", videos, *sizes, "--set", "pool.autoencoder.checkpoint_steps=1")
    run.until(lambda: any(run.store.glob("autoencoder-checkpoint/*/manifest.json")))
    run.press(CTRL_C)
    check_stopped(run)
    assert any(run.store.glob("autoencoder-checkpoint/*/manifest.json"))


def interrupted(command: str, then: str, stderr: int) -> subprocess.CompletedProcess[str]:
    """A command line that Ctrl-C meets, and what its work does then."""
    program = f"""
import os, signal, sys, time
from vidistill.flows import cli

def work():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        {then}

sys.argv = ["vidistill", {command!r}, "a set"]
cli.answer = work
cli.main()
"""
    return subprocess.run([BIN / "python", "-c", program], stderr=stderr, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", ["train", "export", "unpack"])
def test_what_keeps_no_checkpoints_begins_anew(command: str) -> None:
    ended = interrupted(command, "return 130", subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (130, "vidistill: stopped; the same command begins anew.\n")


def test_a_run_whose_terminal_is_gone_ends_too() -> None:
    """It does not hear a first signal, and nobody hears what it says."""
    told, tell = os.pipe()
    os.close(told)
    ended = interrupted("run", "time.sleep(60)", tell)
    os.close(tell)
    assert ended.returncode == 130


def test_ctrl_c_before_anything_runs(terminal: Callable[..., Terminal], videos: Path) -> None:
    """Its server is starting."""
    run = terminal("run", "--data", videos, *TINY, "--method", "random")
    run.until(lambda: len(run.left()) > 1)
    run.press(CTRL_C)
    check_stopped(run)


@pytest.fixture
def asleep(terminal: Callable[..., Terminal], tmp_path: Path, videos: Path) -> Terminal:
    """A run whose method never comes to a step at which it could be told to stop."""
    (tmp_path / "mine.py").write_text(ASLEEP)
    run = terminal("run", "--data", videos, *TINY, "--method", "mine.py:Mine")
    run.until((tmp_path / "asleep").exists)
    return run


@pytest.mark.slow
def test_ctrl_c_where_nothing_listens(asleep: Terminal) -> None:
    asleep.press(CTRL_C)
    check_stopped(asleep)
    assert asleep.shown.endswith(b"\x1b[?25h"), "the cursor stays hidden"


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once(asleep: Terminal) -> None:
    asleep.press(CTRL_C)
    time.sleep(0.5)
    asleep.press(CTRL_C)
    check_stopped(asleep, within=4)  # a run that listens has five seconds


@pytest.mark.slow
def test_sigterm_where_nothing_listens(asleep: Terminal) -> None:
    os.kill(asleep.pid, signal.SIGTERM)
    check_stopped(asleep)


def test_a_killed_run_leaves_no_process(asleep: Terminal) -> None:
    own_session = [pid for pid in set(asleep.left()) - {asleep.pid} if os.getsid(pid) == pid]
    assert len(own_session) == 1, "Ctrl-C would reach the server"
    os.kill(asleep.pid, signal.SIGKILL)
    assert asleep.ended()[0] == -signal.SIGKILL
    check_alone(asleep)


def test_a_killed_decoder_s_owner_takes_it_along(tmp_path: Path) -> None:
    """In the middle of a video, too."""
    program = (
        "import os; from vidistill.tasks.videos.decoder import start\n"
        "child = start(60); child.stdin.write(open('request').read().encode()); print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    os.mkfifo(tmp_path / "endless")  # nobody writes to it: whoever opens it waits
    (tmp_path / "request").write_text('{"action": "probe", "path": "endless"}\n')
    command = [str(BIN / "python"), "-c", program]
    killed = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    child = Path("/proc") / killed.stdout.strip()
    deadline = time.monotonic() + SOON_SECONDS
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_server_that_cannot_start_says_why(tmp_path: Path, videos: Path) -> None:
    (tmp_path / "home").mkdir()
    database = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////proc/nothing.db"}
    ended = CommandLine(tmp_path, database)("run", "--data", videos, *TINY, "--method", "random", "--store", "store")
    assert ended.returncode == 1
    assert ended.stderr.startswith("vidistill: The run's own Prefect server did not start (")
    assert ended.stderr.count("\n") == 1
