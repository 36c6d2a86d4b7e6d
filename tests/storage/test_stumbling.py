"""Stores in object storage that answer 500 or 503, late, half or not at all, and hosts that want the same at once."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from object_storage import FILES, contents, keys, make
from stumbling import Stumbling

from vidistill.storage import mirror, object_locks, objects
from vidistill.storage.clips import TABLE, Clips, create_clip_array
from vidistill.storage.errors import RequestError, StoreError
from vidistill.storage.leases import leased
from vidistill.storage.store import ArtifactRef, Manifest, Store
from vidistill.tasks.running.line import answering, calling
from vidistill.tasks.stage import Job

REF = ArtifactRef(kind="thing", key="k")
MANIFEST = Manifest(kind="thing", key="k", version=1, parameters={}, inputs={})


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(objects, "WAITS_SECONDS", (0.01, 0.01, 0.02, 0.05, 0.1))
    patience = {"connect_timeout": 2, "read_timeout": 0.5, "retries": {"total_max_attempts": 1}}
    monkeypatch.setattr(objects, "PATIENCE", patience)
    monkeypatch.setattr(object_locks, "POLL_SECONDS", 0.05)


def first(times: int, fault: str, *methods: str):
    """Every request of these methods fails so often before it succeeds."""
    seen: Counter[tuple[str, str]] = Counter()

    def of(method: str, path: str) -> str | None:
        if fault == "short" and "list-type" in path:
            return None
        seen[method, path] += 1
        return fault if seen[method, path] <= times and (not methods or method in methods) else None

    return of


@pytest.mark.parametrize(
    ("fault", "methods"),
    [("500", ()), ("503", ()), ("502", ()), ("hang", ()), ("half", ("GET",)), ("short", ("GET",))],
)
def test_a_store_that_stumbles_is_asked_again(host, stumbling: Stumbling, fault, methods):
    a, b = host("a"), host("b")
    stumbling.slow_seconds = 0.8
    assert a.refs() == []  # it has answered once
    stumbling.fault = first(1, fault, *methods)
    ref = make(a)
    assert contents(b, ref) == FILES
    assert a.refs() == b.refs() == [ref]


@pytest.mark.parametrize("look", [
    lambda store, ref: store.manifests([ref])[ref], lambda store, ref: store.survey()[ref].manifest
], ids=["one by one", "of all"])  # fmt: skip
def test_a_manifest_that_comes_half_is_asked_for_again(host, stumbling: Stumbling, look):
    ref = make(a := host("a"))
    stumbling.fault = first(1, "short", "GET")
    found = look(host("b"), ref)
    assert found is not None
    assert found.files == a.manifest(ref).files


def test_credentials_are_in_nothing_that_is_written_or_said(host, s3, bucket, stumbling, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame-opens")
    stumbling.fault = first(1, "503")
    with leased(a := host("a"), [make(a)]):
        written = [s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys(s3, bucket)]
    written += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    stumbling.fault = lambda method, path: "403"
    with pytest.raises(StoreError) as error:
        a.has(REF)
    assert len(written) > 10
    assert b"sesame" not in b"".join([*written, caplog.text.encode(), str(error.value).encode()])


def test_a_slow_store_is_waited_for(host, stumbling: Stumbling):
    a, b = host("a"), host("b")
    stumbling.slow_seconds, stumbling.fault = 0.2, lambda method, path: "slow"
    assert contents(b, make(a)) == FILES


def test_a_store_that_is_down_is_one_sentence_and_soon_where_it_never_answered(host, stumbling: Stumbling):
    a = host("a")
    stumbling.fault = lambda method, path: "503"
    with pytest.raises(StoreError, match=r"^The store s3://\S+ cannot be reached \(.+, after 2 tries\): check its"):
        a.has(REF)
    assert len(stumbling.asked) == 2
    stumbling.fault = lambda method, path: None
    assert not a.has(REF)
    stumbling.fault = lambda method, path: "503"
    with pytest.raises(StoreError, match="after 6 tries"):
        a.has(REF)


def test_what_cannot_be_helped_is_not_tried_again(host, stumbling: Stumbling):
    a = host("a")
    stumbling.fault = lambda method, path: "403"
    with pytest.raises(StoreError, match="cannot be reached"):
        a.has(REF)
    assert len(stumbling.asked) == 1


@pytest.mark.parametrize("below", ["thing/k/clips", ""])
def test_what_could_not_be_uploaded_is_not_made_again(host, stumbling: Stumbling, monkeypatch, below):
    """One object is refused, or the store is down when the work ends."""
    monkeypatch.setattr(object_locks, "STALE_SECONDS", 0.5)
    a = host("a")
    assert a.refs() == []

    def fault(method, path):
        begun = any((a.root / ".staging").glob("k.*")) or (a.root / "thing").exists()
        return "503" if begun and below in path else None

    stumbling.fault = fault
    with pytest.raises(StoreError):
        make(a)
    stumbling.fault = lambda method, path: None
    assert not host("b").has(REF)
    assert not a.has(REF)
    with host("a").writing(MANIFEST) as attempt:
        assert attempt is None
    assert contents(host("b"), REF) == FILES
    assert not list((a.root / ".unpublished").iterdir())


def test_what_is_uploaded_anew_is_not_seen_before_its_end(host, stumbling: Stumbling, s3, bucket):
    """Else whoever reads meanwhile finds it damaged once more, and removes it."""
    ref, there = make(host("a")), []
    s3.put_object(Bucket=bucket, Key="some/store/thing/k/curve.json", Body=b"damaged")

    def look(method, path):
        if method == "PUT" and "curve" in path:
            there.append("some/store/thing/k/manifest.json" in keys(s3, bucket))

    stumbling.fault = look
    make(host("b"))
    assert there == [False]
    assert contents(host("c"), ref) == FILES


def test_what_was_removed_on_purpose_is_made_again(host):
    a, b = host("a"), host("b")
    make(a)
    b.discard(REF)
    make(a, files={"curve.json": b"new"})
    assert contents(b, REF) == {"curve.json": b"new"}


RACER = """
import datetime, socket, sys, time
from pathlib import Path
from vidistill.storage import object_locks
from vidistill.storage.opening import open_store
from vidistill.storage.store import Manifest
location, name, hours, count = sys.argv[1:]
socket.gethostname = lambda: name
time.time = lambda real=time.time: real() + 3600 * float(hours)
object_locks.POLL_SECONDS, object_locks.BEAT_SECONDS, object_locks.STALE_SECONDS = 0.1, 0.2, 2.0
manifest = Manifest(kind="thing", key="k", version=1, parameters={}, inputs={})
store = open_store(location)
print("ready", flush=True)
sys.stdin.readline()
with store.writing(manifest) as attempt:
    if attempt is not None:
        with Path(count).open("a") as file:
            file.write("made\\n")
        print("making", flush=True)
        time.sleep(4.0)
        for number in range(30):
            (attempt.folder / str(number)).write_bytes(b"part")
print(len(list(store.folder(manifest.ref).iterdir())), flush=True)
"""


def race(location: str, tmp_path, *hours: float) -> list[subprocess.Popen[str]]:
    """A process a host, each with a mirror, a name and a clock of its own, who all want the same."""
    processes = []
    for number, ahead in enumerate(hours):
        command = [sys.executable, "-c", RACER, location, f"host{number}", str(ahead), str(tmp_path / "count")]
        env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / f"mirror{number}")}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=env, **pipes))
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes


def test_two_hosts_do_the_work_once_whatever_their_clocks_say(host, tmp_path):
    """The work takes twice as long as the silence that means death, and one clock is an hour ahead, one behind."""
    processes = race(host("here").location, tmp_path, 0, 1, -1)
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [lines[-1] for lines in said] == ["31"] * 3
    assert (tmp_path / "count").read_text() == "made\n"


def test_the_work_of_a_host_that_died_is_taken_over(host, tmp_path, monkeypatch):
    (dead,) = race(host("here").location, tmp_path, 0)
    assert dead.stdout.readline() == "making\n"
    dead.kill()
    dead.wait()
    monkeypatch.setattr(object_locks, "STALE_SECONDS", 1.5)
    begin = time.monotonic()
    make(host("b"))
    assert 1 < time.monotonic() - begin < 20
    assert contents(host("c"), REF) == FILES


@pytest.mark.parametrize("fault", ["blind", "501"])
def test_where_a_store_knows_no_conditions_one_whole_artifact_stays(host, stumbling: Stumbling, tmp_path, fault):
    stumbling.fault = lambda method, path: fault if method == "PUT" and ".locks" in path else None
    processes = race(host("here").location, tmp_path, 0, 0)
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [lines[-1] for lines in said] == ["31"] * 2
    assert (tmp_path / "count").read_text() in {"made\n", "made\nmade\n"}


def test_without_conditions_what_a_quicker_host_made_stays(host, stumbling: Stumbling):
    """Its run reads it by now."""
    stumbling.fault = lambda method, path: "blind" if method == "PUT" and ".locks" in path else None
    a, b = host("a"), host("b")
    with a.writing(Manifest(kind="thing", key="k", version=1, parameters={}, inputs={})) as attempt:
        (attempt.folder / "curve.json").write_bytes(b"later")
        ref = make(b)
    assert contents(host("c"), ref) == contents(a, ref) == FILES


def test_a_lock_is_gone_afterwards_also_where_its_answer_was_lost(host, stumbling: Stumbling, s3, bucket):
    """The store wrote the lock and the answer broke off: the second try finds it there, as one's own."""
    a = host("a")
    assert a.refs() == []
    lost = first(1, "half", "PUT")
    stumbling.fault = lambda method, path: lost(method, path) if ".locks" in path else None
    make(a)
    assert not [key for key in keys(s3, bucket) if "/.locks/" in key]


def test_a_lock_that_stayed_while_the_store_was_down_is_taken_over_by_the_process_that_held_it(
    host, stumbling: Stumbling, monkeypatch
):
    monkeypatch.setattr(object_locks, "STALE_SECONDS", 0.5)
    a = host("a")
    stumbling.fault = lambda method, path: "503" if method == "DELETE" else None
    with pytest.raises(TypeError):
        make(a, files={"curve.json": None})
    stumbling.fault = lambda method, path: None
    again = threading.Thread(target=make, args=(a,), daemon=True)
    again.start()
    again.join(20)
    assert not again.is_alive()
    assert contents(a, REF) == FILES


def at_once(stumbling: Stumbling, part: str) -> list[int]:
    """How many requests for such objects were on their way when each of them came."""
    now, most, lock = [], [], threading.Lock()

    def count(method: str, path: str) -> str | None:
        if method != "GET" or part not in path:
            return None
        with lock:
            now.append(path)
            most.append(len(now))
        time.sleep(0.1)
        with lock:
            now.remove(path)
        return None

    stumbling.fault = count
    return most


def test_files_are_fetched_side_by_side(host, stumbling: Stumbling):
    a, b = host("a"), host("b")
    files = {f"{number}": b"part" for number in range(32)}
    ref = make(a, files=files)
    most = at_once(stumbling, "/thing/k/")
    assert contents(b, ref) == files
    assert max(most) > 10, "botocore's own limit"


def test_the_blocks_of_a_batch_are_fetched_side_by_side(host, stumbling: Stumbling):
    a, b = host("a"), host("b")
    clips = tiny_clips_in(a, blocks=12)
    most = at_once(stumbling, "/block/")
    assert Clips(b, clips).read(range(12))[:, 0, 0, 0, 0].tolist() == list(range(12))
    assert max(most) >= 8


def tiny_clips_in(store: Store, blocks: int) -> ArtifactRef:
    """Clips of one level each, a block each."""
    refs = []
    for number in range(blocks):
        block = Manifest(kind="block", key=f"{number}", version=1, parameters={}, inputs={})
        with store.writing(block) as attempt:
            create_clip_array(attempt.folder, (1, 2, 4, 4, 3), one_shard=True)[:] = number
        refs.append(block.ref)
    videos = [
        {"path": str(row), "label": 0, "group": None, "duration_seconds": None, "block": row, "row": 0}
        for row in range(blocks)
    ]
    plain = {"classes": ["any"], "flips": False, "views": 1, "mean": [0.5] * 3, "std": [0.2] * 3, "rejected": []}
    whole = Manifest(kind="clips", key="c", version=1, parameters={}, inputs={"blocks": refs})
    with store.writing(whole) as attempt:
        (attempt.folder / TABLE).write_text(json.dumps(plain | {"videos": videos}))
    return whole.ref


def large(store: Store, name: str) -> ArtifactRef:
    return make(store, name, files={"data": os.urandom(400_000)})


def test_a_mirror_keeps_to_its_limit_and_to_what_is_read(host, monkeypatch):
    a = host("a")
    refs = [large(a, name) for name in "pqrst"]
    monkeypatch.setenv(mirror.VARIABLE, "0.001")
    b = host("b")
    held = b.folder(refs[0])
    here = subprocess.run(
        [sys.executable, "-c", READER, b.location, *(ref.key for ref in refs[1:4])],
        env=os.environ | {"XDG_CACHE_HOME": str(b.root.parents[2])}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert here.stdout.split() == ["400000"] * 3
    assert "holds 0.0 GB, more than VIDISTILL_MIRROR_GB=0.001" in here.stderr
    assert (held / "data").stat().st_size == 400_000  # a process that lives asked for it
    c = host("b")
    c.folder(refs[4])  # the other process has ended: what it read may go when something comes
    assert (held / "data").exists()
    mirrored = sorted(place.name for place in (b.root / "thing").iterdir())
    assert mirrored == ["p", "t"]
    for ref in refs:
        assert (c.folder(ref) / "data").stat().st_size == 400_000


def test_what_a_process_without_a_limit_reads_stays_too(host):
    a = host("a")
    refs, b = [large(a, name) for name in "pqr"], host("b")
    held = b.folder(refs[0])
    env = os.environ | {"XDG_CACHE_HOME": str(b.root.parents[2]), mirror.VARIABLE: "0.0005"}
    command = [sys.executable, "-c", READER, b.location, *(ref.key for ref in refs[1:])]
    subprocess.run(command, env=env, capture_output=True, check=True)
    assert (held / "data").stat().st_size == 400_000


def test_what_ended_processes_said_they_read_does_not_pile_up(host):
    ref, b = large(host("a"), "p"), host("b")
    env = os.environ | {"XDG_CACHE_HOME": str(b.root.parents[2])}
    for _ in range(3):
        subprocess.run([sys.executable, "-c", READER, b.location, ref.key], env=env, capture_output=True, check=True)
    (mark,) = b._mirror._marks(b.folder(ref)).iterdir()
    assert mark.name.startswith(f"{os.getpid()}-")


def test_a_mark_that_was_cut_short_is_nobody_s(host):
    ref, b = large(host("a"), "p"), host("b")
    place = b.folder(ref)
    (b._mirror._marks(place) / "1-killed").write_text("")
    with b._mirror.held(place):
        assert "1-killed" not in {mark.name for mark in b._mirror._users(place)}


def test_a_mirror_on_a_full_disk_is_one_sentence(host, monkeypatch):
    ref, b = large(host("a"), "p"), host("b")

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mirror, "this_process", full)
    with pytest.raises(StoreError, match=r"^The store \S+/mirror/\S+ cannot be written: its disk is full"):
        b.folder(ref)


def test_what_a_worker_that_goes_on_read_for_its_jobs_may_go_when_they_have_ended(host, monkeypatch):
    a = host("a")
    refs = [large(a, name) for name in "pq"]
    monkeypatch.setenv(mirror.VARIABLE, "0.0005")
    b, job = host("b"), Job(stage="thing", module="nowhere", version=1, parameters={})
    with answering() as caller, calling(job, caller):
        b.folder(refs[0])
        with calling(job, caller):
            b.folder(refs[1])
        b._mirror.trim()
        assert len(list((b.root / "thing").iterdir())) == 2
    b._mirror.trim()
    b._mirror.trim()
    assert len(list((b.root / "thing").iterdir())) == len(list((b.root / ".used").iterdir())) == 1


def test_what_lies_in_a_mirror_is_measured_once_a_process(host, monkeypatch):
    monkeypatch.setenv(mirror.VARIABLE, "1")
    large(host("a"), "p")
    measured = []
    monkeypatch.setattr(mirror, "size_of", lambda place: measured.append(place) or 0)
    host("a")._mirror.trim()
    assert not measured


def test_what_another_job_removes_while_a_mirror_is_trimmed_is_passed_over(host, monkeypatch):
    monkeypatch.setenv(mirror.VARIABLE, "1")
    a = host("a")
    ref = large(a, "p")
    found = Path.glob

    def with_the_past(folder, pattern):
        gone = [folder / "checkpoint" / "gone"] if pattern == "[!.]*/*/" else [folder / "1.2"] if pattern == "*" else []
        return [*found(folder, pattern), *gone]

    monkeypatch.setattr(Path, "glob", with_the_past)
    a._mirror.trim()
    assert not list(a._mirror._users(a.folder(ref)))[1:]


def test_what_is_not_in_the_store_yet_stays_in_the_mirror(host, monkeypatch):
    """Another process trims while one uploads, and all else is in use: the only copy must not go."""
    monkeypatch.setenv(mirror.VARIABLE, "0.0001")
    a = host("a")
    publish = a._publish

    def trimmed(ref):
        a._mirror.trim()
        publish(ref)

    monkeypatch.setattr(a, "_publish", trimmed)
    ref = large(a, "p")
    monkeypatch.setenv(mirror.VARIABLE, "1")
    assert (host("b").folder(ref) / "data").stat().st_size == 400_000


def test_what_could_not_be_uploaded_stays_in_the_mirror(host, stumbling: Stumbling, monkeypatch):
    """It is the only copy: the next run uploads it, and makes nothing again."""
    monkeypatch.setenv(mirror.VARIABLE, "0.0005")
    a = host("a")
    stumbling.fault = lambda method, path: "503" if method == "PUT" and "/thing/p/" in path else None
    with pytest.raises(StoreError):
        large(a, "p")
    stumbling.fault = lambda method, path: None
    large(a, "q")
    with a.writing(Manifest(kind="thing", key="p", version=1, parameters={}, inputs={})) as attempt:
        assert attempt is None, "it is uploaded, not made again"
    assert (host("b").folder(ArtifactRef(kind="thing", key="p")) / "data").stat().st_size == 400_000


READER = """
import sys
from vidistill.storage.opening import open_store
from vidistill.storage.store import ArtifactRef
store = open_store(sys.argv[1])
for key in sys.argv[2:]:
    print((store.folder(ArtifactRef(kind="thing", key=key)) / "data").stat().st_size)
"""


@pytest.mark.parametrize("told", ["0", "-1", "much", "nan"])
def test_a_limit_that_is_none_is_said(host, monkeypatch, told):
    monkeypatch.setenv(mirror.VARIABLE, told)
    with pytest.raises(RequestError, match="VIDISTILL_MIRROR_GB takes gigabytes, such as 50; got"):
        host("a")
