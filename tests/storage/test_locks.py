from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from vidistill.storage import locks
from vidistill.storage.locks import abandoned, locked, this_process

OWNER = """
import socket, sys, time
from pathlib import Path
from vidistill.storage import locks
path, host = sys.argv[1:]
socket.gethostname = lambda real=socket.gethostname(): host or real
locks.HEARTBEAT_SECONDS = 0.1
with locks.locked(Path(path)):
    print("held", flush=True)
    time.sleep(60)
"""

COUNTER = """
import sys, time
from pathlib import Path
from vidistill.storage.locks import locked
lock, counter = map(Path, sys.argv[1:])
for _ in range(5):
    with locked(lock):
        count = int(counter.read_text())
        time.sleep(0.01)
        counter.write_text(str(count + 1))
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(locks, "STALE_SECONDS", 1.0)


@contextmanager
def owner(path, host=""):
    """Another process that holds the lock, on this host or under another host's name."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(path), host], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def waiting(path):
    """A thread that wants the lock; yields the event that it has got it."""
    got = threading.Event()

    def take():
        with locked(path):
            got.set()

    thread = threading.Thread(target=take)
    thread.start()
    yield got
    thread.join(10)
    assert not thread.is_alive()


def test_the_lock_is_gone_afterwards(tmp_path):
    with locked(tmp_path / "locks" / "key"):
        assert [path.name for path in (tmp_path / "locks").iterdir()] == ["key"]
        assert not abandoned(tmp_path / "locks" / "key", time.time())
    assert list((tmp_path / "locks").iterdir()) == []


def test_the_lock_is_gone_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "key"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_who_was_thought_dead_leaves_the_next_one_s_lock_alone(tmp_path):
    with locked(tmp_path / "key"):
        other = {"host": "elsewhere", "pid": 1, "start": None, "id": "next"}
        (tmp_path / "key").write_text(json.dumps(other))
    assert json.loads((tmp_path / "key").read_text()) == other


def test_a_heart_beats_on_after_a_disk_that_did_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.02)
    beat, touched = os.utime, []

    def late(path):
        touched.append(path)
        if len(touched) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        beat(path)

    monkeypatch.setattr(os, "utime", late)
    with locked(tmp_path / "key"):
        deadline = time.monotonic() + 5
        while len(touched) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(touched) >= 3


def test_a_container_that_shares_the_host_s_name_is_told_by_its_heartbeat(tmp_path):
    """Its process numbers are of another namespace: here they name nobody, or somebody else."""
    for owner, dead in ((this_process() | {"pid": 2**22 + 1}, True), (this_process() | {"space": "another"}, False)):
        (tmp_path / "key").write_text(json.dumps(owner | {"pid": 2**22 + 1}))
        now = (tmp_path / "key").stat().st_mtime
        assert (abandoned(tmp_path / "key", now), abandoned(tmp_path / "key", now + 2)) == (dead, True)


def test_a_live_owner_on_this_host_is_waited_for_however_old_its_heartbeat(tmp_path):
    with owner(tmp_path / "key") as process:
        process.send_signal(signal.SIGSTOP)  # alive, and silent
        with waiting(tmp_path / "key") as got:
            assert not got.wait(1.5)
            process.kill()
            assert got.wait(5)


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "STALE_SECONDS", 3600.0)
    with owner(tmp_path / "key") as process:
        process.kill()
        process.wait()
        assert abandoned(tmp_path / "key", time.time())
        begin = time.monotonic()
        with locked(tmp_path / "key"):
            assert time.monotonic() - begin < 1
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_another_process_has_now_is_not_its_dead_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "STALE_SECONDS", 3600.0)
    with owner(tmp_path / "key"):
        facts = json.loads((tmp_path / "key").read_text())
    (tmp_path / "key").write_text(json.dumps(facts | {"pid": os.getpid()}))  # started at another time than this process
    with waiting(tmp_path / "key") as got:
        assert got.wait(2)


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError])
def test_another_user_s_process_that_proc_hides_is_alive(monkeypatch, error):
    """Mounted with hidepid=1, and with hidepid=2."""
    owner = this_process() | {"pid": os.getppid(), "start": "7"}
    assert locks.gone(owner, 0.0, 60.0)
    monkeypatch.setattr(Path, "read_text", raising(Path.read_text, f"/proc/{os.getppid()}", error))
    assert not locks.gone(owner, 0.0, 60.0)
    monkeypatch.setattr(Path, "read_text", raising(Path.read_text, "/proc/", error))
    assert locks.gone(owner | {"pid": 2**22 + 1}, 0.0, 60.0)


def raising(read, below, error):
    def read_text(path, *arguments, **named):
        if str(path).startswith(below) and str(path).endswith("/stat"):
            raise error
        return read(path, *arguments, **named)

    return read_text


def test_another_host_is_believed_while_its_heart_beats(tmp_path):
    with owner(tmp_path / "key", "elsewhere") as process, waiting(tmp_path / "key") as got:
        assert not got.wait(2.0)  # twice the time after which silence means death
        killed = time.monotonic()
        process.kill()
        assert got.wait(5)
        assert time.monotonic() - killed > 0.7


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_jumps_takes_no_lock_away(tmp_path, monkeypatch, hours):
    """The disk's own time is set back or forth, which is seen on heartbeats, and this process's, which is seen here."""
    with owner(tmp_path / "key", "elsewhere") as process, waiting(tmp_path / "key") as got:
        monkeypatch.setattr(time, "time", lambda real=time.time: real() + 3600 * hours)
        for _ in range(20):
            os.utime(tmp_path / "key", (time.time(), time.time()))
            assert not got.wait(0.1)
        process.kill()


def test_a_lock_that_was_never_written_to_the_end_dies_of_age(tmp_path):
    (tmp_path / "key").touch()
    begin = time.monotonic()
    with locked(tmp_path / "key"):
        assert 0.7 < time.monotonic() - begin < 5


NO_LINKS = """
import errno, os
def refused(*_): raise OSError(errno.EPERM, "Operation not permitted")
os.link = refused
"""


@pytest.mark.parametrize("disk", ["", NO_LINKS], ids=["links", "a disk without"])
def test_processes_that_find_a_dead_lock_at_once_go_in_one_by_one(tmp_path, disk):
    lock, counter = tmp_path / "key", tmp_path / "counter"
    counter.write_text("0")
    with owner(lock):
        pass
    assert lock.exists()
    command = [sys.executable, "-c", disk + COUNTER, str(lock), str(counter)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(30) for process in processes] == [0] * 4
    assert counter.read_text() == "20"
    assert list(tmp_path.iterdir()) == [counter]


def test_threads_of_one_process_go_in_one_by_one(tmp_path):
    inside, most = [], []

    def work():
        with locked(tmp_path / "key"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == [1] * 8
