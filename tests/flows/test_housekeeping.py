"""What `gc` takes and leaves, and what `ls` says: real runs that live, are killed and go on, real disks and servers."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flow_running import BIN, TINY, CommandLine, environment

from vidistill.flows.cli import main
from vidistill.flows.collecting import collect
from vidistill.flows.housekeeping import set_of, verify
from vidistill.flows.listing import list_artifacts
from vidistill.storage import manifests
from vidistill.storage.errors import RequestError, StoreError
from vidistill.storage.leases import LEASES, leased, leases
from vidistill.storage.manifests import read_manifest, write_manifest
from vidistill.storage.names import NAMES, Promoted, names, promote
from vidistill.storage.store import ArtifactRef, Manifest, Store

SLOW_TEACHER = shlex.split("--set teacher.epochs=120 --set teacher.checkpoint_epochs=2 --set tsgf.iterations=2")
ARGUMENTS = ("--method", "random,tsgf", *TINY, *SLOW_TEACHER, "--set", "tsgf.precision=fp32")


def start(folder: Path, videos: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    """A run in a process group of its own, which writes what it says to `said`."""
    command = [str(BIN / "vidistill"), "run", "--data", str(videos), *ARGUMENTS, "--store", "store", "--out", "out"]
    env = environment(folder / "home", **variables)
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, stdout=said, stderr=said)


def wait_for_a_checkpoint(folder: Path, run: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 200
    while not list(folder.glob("store/teacher-checkpoint/*/manifest.json")):
        assert run.poll() is None, (folder / "said").read_text()
        assert time.monotonic() < deadline, "the run makes no progress"
        time.sleep(0.05)


def make(store: Store, kind: str, key: str, *inputs: ArtifactRef, files: int = 1) -> ArtifactRef:
    manifest = Manifest(kind=kind, key=key, version=1, parameters={"rows": []}, inputs={"needs": list(inputs)})
    with store.writing(manifest) as attempt:
        assert attempt is not None
        for number in range(files):
            (attempt.folder / str(number)).write_bytes(bytes(1000))
    return manifest.ref


KEY = "0" * 24
"""Without a manifest it is by its key that a folder is an artifact's."""


def made(store: Store) -> dict[ArtifactRef, str]:
    """Every whole artifact with its manifest, which changes when it is made again."""
    return {ref: store.manifest(ref).model_dump_json() for ref in store.refs() if store.has(ref)}


@dataclass(frozen=True)
class Collected:
    """A run during which garbage was collected twice."""

    vidistill: CommandLine
    store: Store
    named: str
    removed: str
    code: int


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory, videos: Path, server: Any) -> Collected:
    folder = tmp_path_factory.mktemp("collected")
    vidistill, store = CommandLine(folder, server.variables), Store(folder / "store")
    make(store, "teacher", "of-nobody")
    run = start(folder, videos, server.variables)
    wait_for_a_checkpoint(folder, run)

    def gc(*more: str) -> Any:
        for _ in range(3):  # it takes nothing while a checkpoint that is being exchanged does not say what it is of
            done = vidistill("gc", "--store", "store", *more)
            if "Unreachable" in done.stdout:
                break
        return done

    named, removed = gc(), gc("--yes", "--keep-interrupted", "0")
    assert run.poll() is None, "the run had ended before: it proves nothing"
    assert (named.returncode, removed.returncode) == (0, 0), named.stderr + removed.stderr
    return Collected(vidistill, store, named.stdout, removed.stdout, run.wait(timeout=300))


# --- gc, and runs that live or were killed -----------------------------------------------------------------------


def test_a_run_loses_nothing_to_gc(collected: Collected) -> None:
    assert collected.code == 0, (collected.vidistill.folder / "said").read_text()
    verified = collected.vidistill("verify", "--store", "store")
    assert verified.returncode == 0, verified.stdout
    assert leases(collected.store) == []
    assert not collected.store.refs("teacher-checkpoint")


def test_gc_says_what_it_leaves_to_a_run_and_takes_the_rest(collected: Collected) -> None:
    for said in (collected.named, collected.removed):
        assert "Kept for the run that began " in said
        assert f"is at work on {os.uname().nodename} (vidistill run --data " in said
        assert "Unreachable: no report, no pool and no run needs them: 1 artifact, 1.0 kB" in said
        assert "of-nobody" in said
    assert collected.named.endswith("Nothing was removed: say --yes to do it.\n")
    assert collected.removed.endswith("Removed 1 artifact, 1.0 kB\n")
    assert ArtifactRef(kind="teacher", key="of-nobody") not in collected.store.refs()


@pytest.mark.slow  # most of a minute
def test_the_work_of_a_killed_run_is_kept_and_gone_on_with(tmp_path: Path, videos: Path, server: Any) -> None:
    vidistill, store = CommandLine(tmp_path, server.variables), Store(tmp_path / "store")
    run = start(tmp_path, videos, server.variables)
    wait_for_a_checkpoint(tmp_path, run)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    before = made(store)
    assert {"block", "clips", "index", "teacher-checkpoint"} <= {ref.kind for ref in before}
    kept = vidistill("gc", "--store", "store", "--yes")
    assert made(store) == before, kept.stdout
    assert "and was interrupted " in kept.stdout
    assert ", until " in kept.stdout

    shutil.copytree(store.root, tmp_path / "copy")
    late = vidistill("gc", "--store", "copy", "--yes", "--keep-interrupted", "0")
    assert "Of the run that began " in late.stdout
    assert f"Removed {len(before)} artifacts" in late.stdout
    assert Store(tmp_path / "copy").refs() == []
    assert leases(Store(tmp_path / "copy")) == []

    step = max(int(ref.key.rpartition("-")[2]) for ref in before if ref.kind == "teacher-checkpoint")
    assert start(tmp_path, videos, server.variables).wait(timeout=300) == 0, (tmp_path / "said").read_text()
    after = made(store)
    done = {ref: manifest for ref, manifest in before.items() if ref.kind != "teacher-checkpoint"}
    assert done.items() <= after.items(), "a committed artifact was made again"
    assert step > 0
    assert leases(store) == []


# --- gc, and what is in a store ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def gc(store: Store, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*, yes: bool = False, keep: str = "7d", **limits: str) -> str:
        collect(store.location, yes, keep, **limits)
        return capsys.readouterr().out

    return call


def interrupted(store: Store, *needs: ArtifactRef) -> None:
    with pytest.raises(ZeroDivisionError), leased(store, needs):
        _ = 1 / 0


def test_reports_and_pools_keep_what_they_rest_on(store: Store, gc: Callable[..., str]) -> None:
    kept = [make(store, "latte", "net"), clips := make(store, "clips", "c"), make(store, "sprites", "s")]
    teacher = make(store, "teacher", "t", clips)
    kept += [teacher, make(store, "report", "r", teacher), make(store, "pool", "p", clips)]
    make(store, "teacher", "old", clips)
    assert "May go: 1 artifact, 1.0 kB, of 7 artifacts, 7.0 kB" in gc()
    assert len(store.refs()) == 7
    gc(yes=True)
    assert set(store.refs()) == set(kept)


def test_a_checkpoint_goes_when_its_stage_is_finished(store: Store, gc: Callable[..., str]) -> None:
    teacher = make(store, "teacher", "done")
    make(store, "report", "r", teacher)
    old, going = make(store, "teacher-checkpoint", "done-00000002"), make(store, "teacher-checkpoint", "on-00000004")
    interrupted(store, teacher, ArtifactRef(kind="teacher", key="on"))
    said = gc(yes=True)
    assert "Checkpoints of finished stages: 1 artifact, 1.0 kB" in said
    assert old not in store.refs()
    assert going in store.refs()


def test_the_time_that_an_interrupted_run_is_kept(store: Store, gc: Callable[..., str]) -> None:
    block = make(store, "block", "b")
    interrupted(store, block)
    for keep in ("7d", "1h", "2 w"):
        assert "Kept for the run that began " in gc(yes=True, keep=keep)
    assert store.refs() == [block]
    assert len(leases(store)) == 1
    time.sleep(1.1)
    assert "Of the run that began " in gc(keep="1s")
    assert store.refs() == [block]
    gc(yes=True, keep="1s")
    assert store.refs() == leases(store) == []


def test_a_dead_host_s_clock_does_not_count_how_long_its_run_is_kept(store: Store, gc: Callable[..., str]) -> None:
    interrupted(store, block := make(store, "block", "b"))
    (lease,) = leases(store)
    slow = lease.model_copy(update={"renewed": lease.renewed - timedelta(days=8)})
    store.write_note(LEASES, f"{lease.id}.json", slow.model_dump_json().encode())
    assert f" and was interrupted {datetime.now():%Y-%m-%d} " in gc(yes=True)
    assert store.refs() == [block]


def test_runs_do_not_wait_for_what_gc_reads(
    store: Store, gc: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, "report", "r")
    waited: list[bool] = []
    read = manifests.file_digest

    def watched(path: Path) -> str:
        waited.append(any(lease.collecting for lease in leases(store)))
        return read(path)

    monkeypatch.setattr(manifests, "file_digest", watched)
    gc(yes=True)
    assert waited == [False]


def test_a_live_run_goes_before_a_dead_one_that_needed_the_same(store: Store, gc: Callable[..., str]) -> None:
    block, other = make(store, "block", "b"), make(store, "block", "c")
    interrupted(store, block, other)
    with leased(store, [block]):
        said = gc(yes=True, keep="0")
    assert "is at work on" in said
    assert store.refs() == [block]


def test_what_a_needed_artifact_was_made_from_is_needed(store: Store, gc: Callable[..., str]) -> None:
    clips = make(store, "clips", "c")
    teacher = make(store, "teacher", "t", clips)
    with leased(store, [teacher]):
        gc(yes=True)
    assert set(store.refs()) == {clips, teacher}


def test_what_is_damaged_goes_and_what_it_was_made_from_stays(store: Store, gc: Callable[..., str]) -> None:
    clips = make(store, "clips", "c")
    teacher = make(store, "teacher", "t", clips)
    make(store, "report", "r", teacher)
    (store.folder(teacher) / "0").write_bytes(b"short")
    said = gc(yes=True)
    assert "Damaged: 1 artifact" in said
    assert "teacher/t  1.0 kB  0 has 5 bytes instead of 1000" in said
    assert [str(ref) for ref in store.refs()] == ["clips/c", "report/r"]


def test_what_was_damaged_beyond_its_manifest_may_have_been_made_from_all(store: Store, gc: Callable[..., str]) -> None:
    clips = make(store, "clips", "c")
    teacher = make(store, "teacher", KEY, clips)
    make(store, "report", "r", teacher)
    other = make(store, "teacher", "of-nobody")
    interrupted(store, run := make(store, "score", "s"))
    (store.folder(teacher) / "manifest.json").write_text("{")
    said = gc(yes=True, keep="0")
    assert "Nothing is removed as unreachable while a manifest cannot be read" in said
    assert {clips, other, run} < set(store.refs())
    assert teacher not in store.refs()
    make(store, "teacher", KEY, clips)
    assert "cannot be read" not in gc(yes=True)
    assert set(store.refs()) == {clips, teacher, ArtifactRef(kind="report", key="r")}


@pytest.mark.parametrize("used", [False, True])
def test_a_user_s_own_files_are_no_artifacts(store: Store, gc: Callable[..., str], used: bool, tmp_path: Path) -> None:
    if used:
        make(store, "report", "r")
    for name in ("videos/jump/a.mp4", "thesis/one/manifest.json", "thesis/one/x.tex"):
        (store.root / name).parent.mkdir(parents=True, exist_ok=True)
        (store.root / name).write_bytes(b"mine")
    before = sorted(path for path in store.root.rglob("*") if path.is_file())
    if used:
        assert "There is nothing to remove" in gc()
        gc(yes=True, keep="0")
        verify(store.location)
        assert "\n1 artifact, 1.0 kB, in " in CommandLine(tmp_path)("ls", "--store", "store").stdout
    else:
        with pytest.raises(RequestError, match="There is no store at"):
            gc(yes=True)
    assert {path for path in before if ".locks" not in path.parts} <= set(store.root.rglob("*"))


def test_damage_is_left_to_the_run_that_mends_it(store: Store, gc: Callable[..., str]) -> None:
    teacher = make(store, "teacher", "t")
    (store.folder(teacher) / "0").unlink()
    with leased(store, [teacher]):
        gc(yes=True)
        assert store.refs() == [teacher]
    gc(yes=True)
    assert store.refs() == []


def test_what_a_run_removes_while_verify_looks_is_not_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store, "teacher", "kept")
    going, audit = make(store, "teacher-checkpoint", "k-1"), Store.audit

    def removed_meanwhile(self: Store, ref: ArtifactRef) -> str | None:
        if ref == going and (manifest := store.root / going.kind / going.key / "manifest.json").exists():
            manifest.unlink()
            problem = audit(self, ref)
            shutil.rmtree(manifest.parent)
            return problem
        return audit(self, ref)

    monkeypatch.setattr(Store, "audit", removed_meanwhile)
    verify(store.location)


def test_many_of_a_kind_are_counted_and_some_named(store: Store, gc: Callable[..., str]) -> None:
    for number in range(7):
        make(store, "block", f"{number}" * 24)
    (line,) = [line for line in gc().splitlines() if line.startswith("  block")]
    said = "block 7 7.0 kB 000000000000, 111111111111, 222222222222, 333333333333 and 3 more"
    assert " ".join(line.split()) == said


def test_what_cannot_be_listed_is_not_taken_for_gone(
    store: Store, gc: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a user who may not read the reports, every artifact that they rest on went."""
    make(store, "report", "r")
    iterdir = Path.iterdir

    def closed(folder: Path) -> Any:
        if folder.name == "report":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", closed)
    for look in (gc, lambda: verify(str(store.root)), lambda: store.refs("report")):
        with pytest.raises(StoreError, match=r"report cannot be read \(Permission denied\)"):
            look()


def test_a_set_goes_by_the_name_that_ls_prints(store: Store) -> None:
    ref = make(store, "distilled", "abc")
    for key in ("distilled/abc", "abc", "a"):
        assert set_of(store, key) == ref
    for nothing in ("", "distilled/"):
        with pytest.raises(RequestError, match="Which set"):
            set_of(store, nothing)
    with pytest.raises(RequestError, match=r"no set 'folder/a': .* names are none \(the flow .refresh. gives"):
        set_of(store, "folder/a")  # which is a path, and not there


def test_a_store_with_nothing_to_remove(store: Store, gc: Callable[..., str]) -> None:
    make(store, "report", "r")
    said = f"May go: 0 artifacts, 0 B, of 1 artifact, 1.0 kB in {store.location}\nThere is nothing to remove.\n"
    assert gc() == said


def test_on_a_full_disk_room_is_made_from_what_no_run_needs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a checkpoint of what is finished, or a dead attempt, is gone not even a lease can be written."""
    teacher = make(store, "teacher", "t")
    finished = make(store, "teacher-checkpoint", "t-5")
    going = make(store, "teacher-checkpoint", "u-5")
    (store.root / ".staging" / "dead.0").mkdir(parents=True)

    def write_note(own: Store, *note: Any, written: Any = Store.write_note) -> None:
        assert own.refs("teacher-checkpoint") == [going]
        assert not list((own.root / ".staging").glob("dead.*"))
        written(own, *note)

    def check_writable(own: Store) -> None:
        raise StoreError("full") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "write_note", write_note)
    monkeypatch.setattr(Store, "check_writable", check_writable)
    collect(str(store.root), yes=True, keep_interrupted="7d")
    assert finished not in store.refs()
    assert teacher not in store.refs()  # as ever: nothing rests on it


def dated(store: Store, days: int, *inputs: ArtifactRef) -> ArtifactRef:
    """A report of so many days ago."""
    ref = make(store, "report", f"r{days}", *inputs)
    then = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")
    write_manifest(store.folder(ref), store.manifest(ref).model_copy(update={"created": then}))
    return ref


@pytest.mark.parametrize(
    ("limits", "gone"),
    [
        ({"older_than": "40d"}, {"r50", "t50"}),
        ({"older_than": "5d"}, {"r50", "t50", "r30", "t30", "shared"}),  # the newest stays, however old
        ({"max_size": "0.0085MB"}, {"r50", "t50"}),  # of ten artifacts of 1 kB
        ({"max_size": "0.0055MB"}, {"r50", "t50", "r30", "t30", "shared"}),
        ({"max_size": "0.000001MB"}, {"r50", "t50", "r30", "t30", "shared"}),
        ({"max_size": "1GB", "older_than": "60d"}, set()),
    ],
)
def test_old_reports_go_with_what_they_alone_rest_on(
    store: Store, gc: Callable[..., str], limits: dict[str, str], gone: set[str]
) -> None:
    make(store, "pool", "p", make(store, "latte", "net"))
    clips, shared = make(store, "clips", "all"), make(store, "teacher", "shared")
    dated(store, 10, clips, make(store, "teacher", "t10"))
    dated(store, 30, clips, shared, make(store, "teacher", "t30"))
    dated(store, 50, clips, shared, make(store, "teacher", "t50"))
    before = {ref.key for ref in store.refs()}
    said = gc(**limits)
    assert ("Nothing was removed: say --yes" in said) == bool(gone)
    assert ("Reports past --older-than or --max-size" in said) == bool(gone)
    assert {ref.key for ref in store.refs()} == before
    gc(yes=True, **limits)
    assert before - {ref.key for ref in store.refs()} == gone


def test_what_a_run_needs_counts_and_stays_whatever_the_limit(store: Store, gc: Callable[..., str]) -> None:
    old, _ = dated(store, 30), dated(store, 1)
    with leased(store, [old]):
        gc(yes=True, older_than="5d", max_size="0MB")
        assert store.has(old)
    gc(yes=True, older_than="5d")
    assert not store.has(old)


def test_what_a_name_stands_for_stays_however_old(store: Store, gc: Callable[..., str]) -> None:
    chosen = make(store, "distilled", "chosen")
    report, _ = dated(store, 50, chosen), dated(store, 1)
    index = make(store, "index", "i")
    promote(store, "latest", Promoted(sets=(chosen,), report=report, index=index, since=datetime.now(UTC)))
    gc(yes=True, older_than="5d", max_size="0MB")
    assert store.has(chosen)
    assert store.has(report)


def test_a_name_that_cannot_be_read_is_one_sentence_and_one_of_an_earlier_version_is_read(store: Store) -> None:
    ref = make(store, "distilled", "d")
    known = Promoted(sets=(ref,), report=ref, index=ref, since=datetime.now(UTC))
    promote(store, "latest", known)
    before = json.loads(store.notes(NAMES)["latest.json"]) | {"before": ref.model_dump()}
    store.write_note(NAMES, "latest.json", json.dumps(before).encode())
    assert names(store) == {"latest": known}
    store.write_note(NAMES, "latest.json", b'{"sets"')
    with pytest.raises(StoreError, match=r"name \.names/latest\.json in the store .* cannot be read: remove the file"):
        names(store)


@pytest.mark.parametrize("told", ["much", "-1GB", "1e9", "5KB"])
def test_a_size_that_is_none(store: Store, told: str) -> None:
    with pytest.raises(RequestError, match=r"^--max-size takes a size such as 50GB or 500MB; got"):
        collect(store.location, True, "7d", max_size=told)


@pytest.mark.parametrize("keep", ["", "7", "a week", "-1d", "7 days", "1.5h"])
def test_a_time_that_is_none(store: Store, keep: str) -> None:
    make(store, "report", "r")
    with pytest.raises(RequestError, match=r"^--keep-interrupted takes a time such as 7d, 12h or 0; got "):
        collect(store.location, yes=True, keep_interrupted=keep)


def read_only(store: Path) -> tuple[str, ...]:
    """A prefix that runs a command with the store read-only, for root too."""
    script = f'mount --bind "{store}" "{store}" && mount -o remount,ro,bind "{store}" && exec "$@"'
    prefix = ("unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh")
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"a file system may not be mounted here: {tried.stderr.strip()}")
    return prefix


def test_a_read_only_store_is_looked_at_and_nothing_else(store: Store, tmp_path: Path) -> None:
    block, vidistill = make(store, "block", "b"), CommandLine(tmp_path)
    prefix = read_only(store.root)
    named = vidistill("gc", "--store", "store", prefix=prefix)
    assert (named.returncode, named.stderr) == (0, "")
    assert vidistill("ls", "--store", "store", prefix=prefix).returncode == 0
    ended = vidistill("gc", "--store", "store", "--yes", prefix=prefix)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"vidistill: The store {store.root} cannot be written: its file system is read-only")
    assert ended.stderr.count("\n") == 1
    assert "emoved" not in ended.stdout
    assert store.refs() == [block]


def test_what_was_removed_before_a_failure_is_said(store: Store, tmp_path: Path) -> None:
    """A part of the store is on a read-only file system."""
    for key in ("a", "b"):
        make(store, "block", key)
    make(store, "teacher", "t")
    ended = CommandLine(tmp_path)("gc", "--store", "store", "--yes", prefix=read_only(store.root / "teacher"))
    assert ended.returncode == 1
    said = f"teacher/t cannot be removed from the store {store.root}: its file system is read-only.\n"
    assert ended.stderr == f"vidistill: {said}"
    assert ended.stdout.endswith("Removed before that failed: 2 artifacts, 2.0 kB\n")
    assert [str(ref) for ref in store.refs()] == ["teacher/t"]
    assert leases(store) == []


# --- object storage ----------------------------------------------------------------------------------------------


def test_gc_in_object_storage(host: Callable[[str], Store], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = host("a"), host("b")
    clips = make(a, "clips", "c" * len(KEY))
    teacher, old, going = make(a, "teacher", "t", clips), make(a, "teacher", "old"), make(a, "block", "b")
    make(a, "report", "r", teacher)
    interrupted(a, going)
    a._objects.pipe_file(f"{a._prefix}/block/{KEY}/0", bytes(500))  # type: ignore[attr-defined]
    collect(b.location, False, "7d")
    said = capsys.readouterr().out
    assert f"block/{KEY}  500 B  no manifest.json: its upload has not ended" in said
    assert "Kept for the run that began " in said
    assert len(b.survey()) == 6
    assert not b.root.exists(), "gc fetched what it only had to look at"
    collect(b.location, True, "7d")
    assert list(b.survey()) == [going, clips, ArtifactRef(kind="report", key="r"), teacher]
    assert old not in a.refs()
    collect(b.location, True, "0")
    assert going not in b.survey()


def test_an_endpoint_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install vidistill[s3]")
    wrong = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_MAX_ATTEMPTS": "1",
    }
    env = environment(tmp_path / "home", **wrong)
    commands = (["ls"], ["gc", "--yes"], ["verify"], ["report"], ["export", "0"])
    running = [
        subprocess.Popen(
            [str(BIN / "vidistill"), *command, "--store", "s3://bucket/store"],
            cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for command in commands
    ]  # fmt: skip
    for process in running:
        out, error = process.communicate(timeout=120)
        assert (process.returncode, out) == (1, ""), error
        assert error.startswith("vidistill: The store s3://bucket/store cannot be reached (")
        assert "127.0.0.1:9" in error
        assert error.count("\n") == 1


# --- ls ----------------------------------------------------------------------------------------------------------


def listed(collected: Collected, *arguments: str) -> list[dict[str, Any]]:
    done = collected.vidistill("ls", *arguments, "--json", "--store", "store")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["store"] == str(collected.store.root)
    return document["artifacts"]


def test_ls_says_what_each_artifact_is_of(collected: Collected) -> None:
    lines = collected.vidistill("ls", "--store", "store").stdout.splitlines()
    assert " ".join(lines[0].split()) == "artifact data set method ipc seed recipe network top-1 % size took made"
    assert lines[-1].startswith(f"{len(lines) - 2} artifacts, ")
    for line in lines[1:-1]:
        assert line.split()[1] == "videos", "every artifact is of the one data set"
    document = json.loads((collected.vidistill.folder / "out" / "report.json").read_text())
    rows = {
        (row["method"], row["recipe"]): f"{100 * row['top1_mean']:.1f}"
        for row in document["rows"]
        if row["method"] != "teacher"
    }
    scores = [line.split() for line in lines if line.startswith("score/")]
    assert {(cells[2], cells[5]): cells[7] for cells in scores} == rows
    assert {tuple(cells[3:5]) for cells in scores} == {("1", "0")}
    (report,) = [line.split() for line in lines if line.startswith("report/")]
    assert set(report[2].split(",")) >= {"random", "tsgf"}


def test_ls_as_json_is_the_manifests_and_what_they_say_together(collected: Collected) -> None:
    artifacts = {(one["kind"], one["key"]): one for one in listed(collected)}
    assert len(artifacts) == len(collected.store.refs())
    for ref in collected.store.refs():
        plain = collected.store.manifest(ref).model_dump(mode="json")
        one = artifacts[ref.kind, ref.key]
        assert one.items() >= {name: value for name, value in plain.items() if name != "files"}.items()
        assert (one["files"], one["bytes"], one["problem"]) == (
            len(plain["files"]), sum(file["bytes"] for file in plain["files"].values()), None
        )  # fmt: skip
    score = next(one for (kind, _), one in artifacts.items() if kind == "score" and one["method"] == "tsgf")
    assert (score["dataset"], score["ipc"], score["seed"]) == ("videos", 1, 0)
    assert score["student"] == score["parameters"]["network"]
    assert 0 <= score["top1"] <= 1


def test_ls_filters(collected: Collected) -> None:
    everything = listed(collected)
    tsgf = listed(collected, "--method", "tsgf")
    assert {one["kind"] for one in tsgf} == {"distilled", "relabelled", "score", "report"}
    assert len(listed(collected, "score", "--method", "tsgf", "--recipe", "soft+tsgf")) == 1
    assert listed(collected, "--dataset", "videos") == everything
    assert listed(collected, "--dataset", "others") == listed(collected, "--seed", "7") == []
    assert {one["kind"] for one in listed(collected, "--seed", "0")} >= {"score", "distilled", "teacher"}


def test_ls_names_damage_and_variants(store: Store, tmp_path: Path) -> None:
    def write(kind: str, key: str, parameters: dict[str, Any], **inputs: list[ArtifactRef]) -> ArtifactRef:
        with store.writing(Manifest(kind=kind, key=key, version=1, parameters=parameters, inputs=inputs)) as attempt:
            (attempt.folder / "score.json").write_text('{"top1": 0.5}')
        return ArtifactRef(kind=kind, key=key)

    index = write("index", "i", {})
    made_set = write("distilled", "d", {"method": "dm", "ipc": 5, "seed": 3}, clips=[index])
    scores = [write("score", f"s{n}", {"network": "c3d", "seed": 3}, distilled=[made_set]) for n in range(2)]
    rows = [
        {"method": "dm", "variant": variant, "recipe": "hard", "labels": "hard", "ipc": 5, "student": "c3d",
         "scores": [score.model_dump()], "sets": [made_set.model_dump()]}
        for variant, score in zip(("", "no mask lr 1"), scores, strict=True)
    ]  # fmt: skip
    rows[1]["training"] = "lr 1"  # of its students: the set is the same
    write("report", "r", {"dataset": "dances", "rows": rows}, index=[index], scores=scores)
    (store.folder(write("block", KEY, {})) / "manifest.json").unlink()
    lines = CommandLine(tmp_path)("ls", "--store", "store").stdout.splitlines()
    assert lines[1].endswith("damaged: no manifest.json")
    assert [line.split()[1:7] for line in lines if line.startswith("score")] == [
        ["dances", "dm", "5", "3", "c3d", "50.0"], ["dances", "dm", "no", "mask", "lr", "1"],
    ]  # fmt: skip
    assert [line.split()[1:6] for line in lines if line.startswith("distilled")] == [
        ["dances", "dm", "no", "mask", "5"]
    ]
    assert any(line.split()[:2] == ["index/i", "dances"] for line in lines)


def test_ls_tells_sets_of_other_splits_and_labels_apart(store: Store, capsys: Any) -> None:
    def write(kind: str, key: str, parameters: dict[str, Any], **inputs: list[ArtifactRef]) -> ArtifactRef:
        with store.writing(Manifest(kind=kind, key=key, version=1, parameters=parameters, inputs=inputs)):
            return ArtifactRef(kind=kind, key=key)

    for key, index in (("a", {"holdout": False, "split": 1}), ("b", {"holdout": True, "split": 1})):
        clips = write("clips", key, {"split": "train"}, index=[write("index", key, {"index": index})])
        for soft in ({}, {"soft": True}):
            asked = {"method": "coded", "kb": 2.0, "seed": 0} | soft
            write("distilled", key + "soft" * len(soft), asked, clips=[clips])
    list_artifacts("distilled", store.location, {}, as_json=False)
    lines = [" ".join(line.split()[1:-6]) for line in sorted(capsys.readouterr().out.splitlines()) if "coded" in line]
    assert lines == ["coded 2 kB 0", "coded 2 kB 0 soft", "validation coded 2 kB 0", "validation coded 2 kB 0 soft"]


def test_ls_says_that_there_is_nothing_of_a_name(store: Store, capsys: Any) -> None:
    with store.writing(Manifest(kind="score", key="s", version=1, parameters={"seed": 3}, inputs={})):
        pass
    for wanted, said in (
        ({"method": "randm"}, "of the method 'randm'; it has full"),
        ({"seed": 4}, "seed 4; it has 3"),
    ):
        with pytest.raises(RequestError, match=said):
            list_artifacts(None, store.location, wanted, as_json=False)
        list_artifacts(None, store.location, wanted, as_json=True)
    assert capsys.readouterr().out.count('"artifacts": []') == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"top1": null}', '{"top1": 0.', "\0"])
def test_ls_reaches_the_column_that_names_damage(store: Store, capsys: Any, content: str) -> None:
    """A score that does not parse, and an index that a report names and whose manifest does not."""
    index, score = make(store, "index", KEY), make(store, "score", "s")
    manifest = Manifest(kind="report", key="r", version=1, parameters={"dataset": "dances", "rows": []},
                        inputs={"index": [index]})  # fmt: skip
    with store.writing(manifest):
        pass
    (store.folder(score) / "score.json").write_text(content)
    (store.folder(score) / "0").unlink()
    (store.folder(index) / "manifest.json").write_text("{")
    list_artifacts(None, store.location, {}, as_json=False)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    (line,) = (line for line in lines.values() if line.startswith("index/"))
    assert line.split()[1] == "dances"
    assert line.endswith("damaged: manifest.json cannot be read")
    assert lines["score/s"].endswith("damaged: 0 is missing")


def test_ls_of_a_thousand_artifacts_is_quick(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    index = make(store, "index", "i")
    clips = make(store, "clips", "c", *(make(store, "block", f"{n:024}", files=2) for n in range(30)), index)
    block = store.folder(ArtifactRef(kind="block", key=f"{0:024}"))
    for number in range(30, 1000):
        key = f"{number:024}"
        shutil.copytree(block, block.with_name(key))
        write_manifest(block.with_name(key), read_manifest(block).model_copy(update={"key": key}))
    assert clips in store.refs()
    monkeypatch.setattr(sys, "argv", ["vidistill", "ls", "--store", str(store.root)])
    begin = time.perf_counter()
    main()
    assert time.perf_counter() - begin < 5  # 0.3 s on an idle core
    assert capsys.readouterr().out.splitlines()[-1].startswith("1002 artifacts, 2.0 MB, in ")
