"""Leases: who needs what, on a disk and in object storage, with real processes that live and die."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from vidistill.storage import leases as module
from vidistill.storage.errors import StoreError
from vidistill.storage.leases import Lease, collecting, leased, leases
from vidistill.storage.opening import open_store
from vidistill.storage.store import ArtifactRef, Store

A, B = ArtifactRef(kind="teacher", key="a"), ArtifactRef(kind="score", key="b")
RUN = """
import socket, sys, time
from vidistill.storage import leases
from vidistill.storage.opening import open_store
from vidistill.storage.store import ArtifactRef
location, host, what = sys.argv[1:]
socket.gethostname = lambda real=socket.gethostname(): host or real
leases.BEAT_SECONDS = 0.1
store = open_store(location)
needs = [ArtifactRef(kind="teacher", key="a")]
with leases.leased(store, needs) if what == "run" else leases.collecting(store):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["disk", "objects"])
def store(request: pytest.FixtureRequest, tmp_path) -> Store:
    return request.getfixturevalue("host")("here") if request.param == "objects" else Store(tmp_path / "store")


@contextmanager
def other(store: Store, what: str = "run", host: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lease, on this host or under another host's name."""
    command = [sys.executable, "-c", RUN, store.location, host, what]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_lease_says_who_needs_what_while_the_block_runs(store):
    before = datetime.now(UTC)
    with leased(store, [A, B]):
        (lease,) = leases(store)
        assert lease.needs == {A, B}
        assert lease.alive
        assert before <= lease.began <= lease.renewed <= datetime.now(UTC)
        assert lease.owner["pid"] == os.getpid()
        assert lease.command
        assert store.refs() == []
        assert store.survey() == {}
    assert leases(store) == []


def test_a_lease_is_renewed(store, monkeypatch):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    with leased(store, [A]):
        (first,) = leases(store)
        deadline = time.monotonic() + 10
        while leases(store)[0].renewed <= first.renewed:
            assert time.monotonic() < deadline, "the lease is not renewed"
        assert leases(store)[0].began == first.began


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_the_lease_of_a_block_that_raises_stays_and_is_dead(store, error):
    with pytest.raises(error), leased(store, [A]):
        raise error
    (lease,) = leases(store)
    assert lease.ended
    assert not lease.alive
    assert lease.needs == {A}


def test_the_lease_of_a_run_of_which_a_part_failed_stays(store):
    with leased(store, [A, B]) as lease:
        lease.unfinished = True
    assert [(lease.ended, lease.needs) for lease in leases(store)] == [(True, {A, B})]


def test_the_lease_of_a_killed_process_stays_and_is_dead_at_once(store):
    with other(store) as process:
        assert leases(store)[0].alive
        process.kill()
        process.wait()
        (lease,) = leases(store)
        assert not lease.alive
        assert not lease.ended
        assert lease.needs == {A}


def test_another_host_is_believed_while_it_renews_its_lease(store, monkeypatch):
    monkeypatch.setattr(module, "STALE_SECONDS", 1.5)
    with other(store, host="elsewhere") as process:
        time.sleep(2)
        assert leases(store)[0].alive
        process.kill()
        process.wait()
        assert leases(store)[0].alive  # as far as this host knows
        time.sleep(2)
        assert not leases(store)[0].alive


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_host_is_believed_whatever_its_clock_says(store, monkeypatch, hours):
    then = datetime.now(UTC) + timedelta(hours=hours)
    owner = {"host": "elsewhere", "pid": 1, "start": "0"}
    lease = Lease(id="far", command="run", owner=owner, began=then, renewed=then, needs=frozenset([A]))
    store.write_note(".leases", "far.json", lease.model_dump_json().encode())
    assert leases(store)[0].alive
    monkeypatch.setattr(module, "STALE_SECONDS", 1.0)
    time.sleep(2.5)  # object storage tells whole seconds
    assert not leases(store)[0].alive


def test_a_run_takes_the_place_of_a_dead_one_that_needed_nothing_else(store):
    for needs in ([A], [A, B]):
        with pytest.raises(ZeroDivisionError), leased(store, needs):
            _ = 1 / 0
    with leased(store, [A]):
        assert [lease.needs for lease in leases(store)] == [{A, B}, {A}]
    with other(store), leased(store, [A, B]):  # the other one lives
        assert [lease.needs for lease in leases(store)] == [{A}, {A, B}]


def test_a_run_waits_until_a_collector_has_ended(store, caplog):
    begun = threading.Event()

    def run():
        with leased(store, [A]):
            begun.set()

    thread = threading.Thread(target=run)
    with collecting(store) as others:
        assert others == []
        thread.start()
        assert not begun.wait(2)
        assert {A} in [lease.needs for lease in leases(store)]
    assert begun.wait(20)
    thread.join()
    assert leases(store) == []
    assert caplog.text.count("`vidistill gc` is at work in the store") == 1


def test_a_collector_sees_a_run_that_has_begun(store):
    with leased(store, [A]), collecting(store) as others:
        assert [lease.needs for lease in others] == [{A}]


def test_nobody_waits_for_a_collector_that_was_killed(store):
    with other(store, "collect") as process:
        process.kill()
        process.wait()
    begin = time.monotonic()
    with leased(store, [A]):
        assert time.monotonic() - begin < 5
        assert [lease.needs for lease in leases(store)] == [{A}]  # and its lease is gone


def test_a_collector_that_fails_leaves_nobody_waiting(store):
    with pytest.raises(ZeroDivisionError), collecting(store):
        _ = 1 / 0
    assert leases(store) == []


def test_a_lease_that_cannot_be_read_is_named(store):
    store.write_note(".leases", "odd.json", b"{}")
    with pytest.raises(StoreError, match=r"^The lease \.leases/odd\.json in the store .* cannot be read: remove"):
        leases(store)


RACER = """
import sys
from vidistill.storage.leases import collecting, leased
from vidistill.storage.opening import open_store
from vidistill.storage.store import ArtifactRef, Manifest
store, what = open_store(sys.argv[1]), sys.argv[2]
ref = ArtifactRef(kind="teacher", key="a")
print("ready", flush=True)
sys.stdin.readline()
lost = 0
for _ in range(40):
    if what == "collect":
        with collecting(store) as others:
            if not any(ref in lease.needs for lease in others):
                store.discard(ref)
        continue
    with leased(store, [ref]):
        with store.writing(Manifest(kind=ref.kind, key=ref.key, version=1, parameters={}, inputs={})) as attempt:
            if attempt is not None:
                (attempt.folder / "a").write_bytes(b"a")
        lost += not store.has(ref)
print(lost)
"""


def test_runs_and_collectors_that_race_lose_nothing(tmp_path, monkeypatch):
    """Whatever a run has seen while it holds its lease, no collector takes from it."""
    commands = [[sys.executable, "-c", RACER, str(tmp_path / "store"), what] for what in ("run", "run", "collect")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for command in commands]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=120)[0] for process in processes] == ["0\n"] * 3
    assert leases(open_store(str(tmp_path / "store"))) == []
