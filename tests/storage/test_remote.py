"""The store in object storage, over a real S3 endpoint on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from object_storage import FILES, contents, keys, make

from vidistill.flows.housekeeping import verify
from vidistill.storage import objects, remote
from vidistill.storage import store as store_module
from vidistill.storage.errors import ArtifactDamaged, ArtifactNotFound, StoreError
from vidistill.storage.opening import open_store
from vidistill.storage.store import ArtifactRef, Manifest
from vidistill.tasks.report.gather import _lineage

KEY = "0123456789abcdef01234567"


def test_what_one_host_makes_another_reads(host, s3, bucket):
    a, b = host("a"), host("b")
    a.check_writable()
    ref = make(a)
    assert keys(s3, bucket) == sorted(f"some/store/thing/k/{name}" for name in [*FILES, "manifest.json"])
    assert b.has(ref)
    assert contents(b, ref) == FILES
    assert b.manifest(ref) == a.manifest(ref)
    assert b.location == f"s3://{bucket}/some/store"
    with b.writing(a.manifest(ref)) as attempt:
        assert attempt is None


def test_what_nobody_made_is_not_found(host):
    a = host("a")
    ref = ArtifactRef(kind="thing", key="k")
    assert a.problem(ref) == "no artifact"
    with pytest.raises(ArtifactNotFound):
        a.folder(ref)


def test_an_error_while_writing_uploads_nothing(host, s3, bucket):
    with (
        pytest.raises(ZeroDivisionError),
        host("a").writing(Manifest(kind="t", key="k", version=1, parameters={}, inputs={})),
    ):
        _ = 1 / 0
    assert keys(s3, bucket) == []


def test_files_fetched_once_are_read_from_the_mirror(host, s3, bucket):
    a, b = host("a"), host("b")
    ref = make(a)
    chunk = b.folder(ref) / "clips/c/0/0"
    before = chunk.stat().st_mtime_ns
    assert b.problem(ref, thorough=True) is None
    assert chunk.stat().st_mtime_ns == before


UPLOADER = """
import sys
from vidistill.storage.opening import open_store
from vidistill.storage.store import Manifest
manifest = Manifest(kind="thing", key="many", version=1, parameters={}, inputs={})
with open_store(sys.argv[1]).writing(manifest) as attempt:
    for number in range(150):
        (attempt.folder / f"{number:03}").write_bytes(b"part")
    print("uploading", flush=True)
"""


def test_a_host_that_dies_while_uploading_has_published_nothing(host, s3, bucket, tmp_path):
    b = host("b")
    dying = subprocess.Popen(
        [sys.executable, "-c", UPLOADER, b.location],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "a")}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert dying.stdout.readline() == "uploading\n"
    while len(keys(s3, bucket)) < 3:
        time.sleep(0.005)
    dying.kill()
    dying.wait()
    assert 3 <= len(keys(s3, bucket)) <= 150
    assert "some/store/thing/many/manifest.json" not in keys(s3, bucket)  # it goes last
    ref = ArtifactRef(kind="thing", key="many")
    assert b.refs() == []
    assert b.problem(ref) == "no artifact"
    make(b, key="many")
    assert keys(s3, bucket) == sorted(f"some/store/thing/many/{name}" for name in [*FILES, "manifest.json"])
    make(host("a"), key="other")  # the dead host comes back, with a copy in its mirror that was never published
    assert contents(host("a"), ref) == FILES


def object_of(name: str, key: str = "k") -> str:
    return f"some/store/thing/{key}/{name}"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("clips/c/0/0", bytes(10240), "clips/c/0/0 does not have its checksum"),
        ("clips/c/0/0", b"short", "clips/c/0/0 has 5 bytes instead of 10240"),
        ("curve.json", None, "curve.json is missing"),
        ("manifest.json", b'{"kind": "th', "manifest.json cannot be read"),
    ],
)
def test_a_damaged_object_is_noticed_by_the_next_host_and_made_again(host, s3, bucket, name, content, problem):
    a, b = host("a"), host("b")
    ref = make(a)
    if content is None:
        s3.delete_object(Bucket=bucket, Key=object_of(name))
    else:
        s3.put_object(Bucket=bucket, Key=object_of(name), Body=content)
    assert b.problem(ref) == problem
    with pytest.raises(ArtifactDamaged, match=f"thing/k in the store s3://.*{problem}"):
        b.folder(ref)
    make(b)
    assert contents(b, ref) == contents(host("c"), ref) == FILES


def test_a_damaged_object_that_nobody_looked_into_is_made_again_by_the_next_run(host, s3, bucket, monkeypatch):
    """It is large, and its size is right: a glance finds nothing wrong, and a block is no job's own input."""
    monkeypatch.setattr(store_module, "FULL_CHECK_BYTES", 100)
    monkeypatch.setattr(remote, "FETCH_TO_CHECK_BYTES", 100)
    ref, b = make(host("a")), host("b")
    s3.put_object(Bucket=bucket, Key=object_of("clips/c/0/0"), Body=bytes(10240))
    assert b.has(ref)
    with pytest.raises(ArtifactDamaged, match="does not have its checksum"):
        b.folder(ref)
    assert b.problem(ref) == "no artifact"
    make(b)
    assert contents(host("c"), ref) == FILES


def test_verify_looks_at_the_objects_and_mends_them_from_a_whole_mirror(host, s3, bucket, caplog):
    a, damaged = host("a"), {"Bucket": bucket, "Key": object_of("clips/c/0/0", KEY), "Body": bytes(10240)}
    ref = make(a, KEY)
    s3.put_object(**damaged)
    verify(a.location)
    assert f"{ref} was damaged in {a.location} (clips/c/0/0 does not have its checksum)" in caplog.text
    b = host("b")
    assert contents(b, ref) == FILES
    s3.put_object(**damaged)
    host("c")
    with pytest.raises(ArtifactDamaged, match="1 of 1 artifacts"):
        verify(a.location)
    s3.delete_object(Bucket=bucket, Key=object_of("curve.json", KEY))
    assert host("c").audit(ref) in {"curve.json is missing", "clips/c/0/0 does not have its checksum"}
    s3.put_object(Bucket=bucket, Key=object_of("manifest.json", KEY), Body=b'{"kind": "th')
    assert b.audit(ref) == "manifest.json cannot be read"
    s3.delete_object(Bucket=bucket, Key=object_of("manifest.json", KEY))
    assert b.audit(ref) == "no artifact"


def test_a_manifest_that_was_changed_is_damage(host, s3, bucket):
    """Else gc would believe what it says of its inputs."""
    ref, place = make(host("a"), KEY), {"Bucket": bucket, "Key": object_of("manifest.json", KEY)}
    body = s3.get_object(**place)["Body"].read()
    s3.put_object(**place, Body=body.replace(b'"version": 1', b'"version": 2'))
    b, problem = host("b"), "manifest.json does not have its checksum"
    assert [b.problem(ref), b.audit(ref), b.survey()[ref].problem] == [problem] * 3
    with pytest.raises(ArtifactDamaged, match=problem):
        b.manifests([ref])


def test_objects_are_verified_part_by_part(host, s3, bucket, monkeypatch):
    monkeypatch.setattr(objects, "PART_BYTES", 1000)
    ref, whole, content = make(host("a"), KEY), [], objects.Objects.content
    monkeypatch.setattr(objects.Objects, "content", lambda self, path: whole.append(path) or content(self, path))
    b = host("b")
    assert b.audit(ref) is None
    s3.put_object(Bucket=bucket, Key=object_of("clips/c/0/0", KEY), Body=FILES["clips/c/0/0"][:-1] + b"?")
    assert b.audit(ref) == "clips/c/0/0 does not have its checksum"
    assert {path.rpartition("/")[2] for path in whole} == {"manifest.json"}


def test_objects_of_something_else_beside_artifacts_are_passed_over(host, s3, bucket):
    ref = make(a := host("a"), KEY)
    for name in ("project/.git/config", "project//file", "notes.txt"):
        s3.put_object(Bucket=bucket, Key=f"some/store/{name}", Body=b"mine")
    assert a.refs() == list(a.survey()) == [ref]
    verify(a.location)


def test_an_upload_that_never_ended_is_no_whole_artifact_nor_a_damaged_one(host, s3, bucket, capsys):
    a = host("a")
    make(a, KEY)
    s3.put_object(Bucket=bucket, Key=object_of("clips/c/0/0", "1" * len(KEY)), Body=b"half")
    verify(a.location)
    assert capsys.readouterr().out == f"1 artifacts in {a.location} are whole.\n"


def test_objects_of_something_else_are_no_store(host, s3, bucket):
    a = host("a")
    assert not a.exists()
    for name in ("readme.txt", "thesis/one/manifest.json"):
        s3.put_object(Bucket=bucket, Key=f"some/store/{name}", Body=b"mine")
        assert not a.exists()
    for name in (f"thing/{KEY}/empty", ".locks/k.thing"):
        s3.put_object(Bucket=bucket, Key=f"some/store/{name}", Body=b"")
        assert a.exists()
        s3.delete_object(Bucket=bucket, Key=f"some/store/{name}")


def test_a_damaged_mirror_is_fetched_again(host, monkeypatch):
    a, b = host("a"), host("b")
    ref = make(a)
    chunk = b.folder(ref) / "clips/c/0/0"
    chunk.write_bytes(bytes(10240))
    assert b.problem(ref) is None
    assert contents(b, ref) == FILES
    chunk.write_bytes(bytes(10240))
    monkeypatch.setattr(store_module, "FULL_CHECK_BYTES", 100)
    assert b.problem(ref, thorough=True) is None
    assert contents(b, ref) == FILES


def test_what_another_host_made_anew_replaces_the_mirror(host):
    a, b = host("a"), host("b")
    ref = make(a)
    assert contents(b, ref) == FILES
    a.discard(ref)
    make(a, files={"curve.json": b"new"})
    assert contents(b, ref) == {"curve.json": b"new"}


def test_one_address_has_one_mirror(host):
    a = host("a")
    assert open_store(f"{a.location}/").root == a.root


def test_discard_removes_everywhere(host, s3, bucket):
    a, b = host("a"), host("b")
    ref, other = make(a), make(a, key="other")
    assert b.has(ref)
    b.discard(ref)
    b.discard(ref)
    assert a.problem(ref) == b.problem(ref) == "no artifact"
    assert a.refs() == [other]
    assert {key.split("/")[3] for key in keys(s3, bucket)} == {"other"}
    make(a)
    assert b.has(ref)


def test_refs_are_those_of_every_host(host):
    a, b = host("a"), host("b")
    assert b.refs() == []
    make(a, "b", "teacher")
    make(b, "a", "teacher")
    make(a, "c", "clips")
    for store in (a, b, host("c")):
        assert [str(ref) for ref in store.refs()] == ["clips/c", "teacher/a", "teacher/b"]
        assert [str(ref) for ref in store.refs("teacher")] == ["teacher/a", "teacher/b"]


def test_threads_that_read_at_once_fetch_once_and_all_see_it_whole(host):
    a, b = host("a"), host("b")
    ref = make(a, files={f"{number}": b"part" for number in range(20)})
    seen = []

    def read():
        seen.append(len(contents(b, ref)))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [20] * 6


RACER = """
import sys
from pathlib import Path
from vidistill.storage.opening import open_store
from vidistill.storage.store import Manifest
manifest = Manifest(kind="thing", key="k", version=1, parameters={}, inputs={})
store = open_store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
store.has(manifest.ref)
with store.writing(manifest) as attempt:
    if attempt is not None:
        with Path(sys.argv[2]).open("a") as file:
            file.write("made\\n")
        for number in range(30):
            (attempt.folder / str(number)).write_bytes(b"part")
print(len(list(store.folder(manifest.ref).iterdir())))
"""


def test_processes_of_one_host_do_the_work_once(host, tmp_path):
    command = [sys.executable, "-c", RACER, host("a").location, str(tmp_path / "count")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0] for process in processes] == ["31\n"] * 2
    assert (tmp_path / "count").read_text() == "made\n"


def test_a_bucket_that_is_not_there_is_one_sentence(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        StoreError, match=r"^The store s3://no-such-bucket/a cannot be written \(.+\): check its access\.$"
    ):
        open_store("s3://no-such-bucket/a").check_writable()


def test_the_manifest_in_the_bucket_is_readable_json(host, s3, bucket):
    make(host("a"))
    body = s3.get_object(Bucket=bucket, Key=object_of("manifest.json"))["Body"].read()
    assert json.loads(body)["files"]["empty"]["bytes"] == 0


def test_where_a_report_comes_from_is_read_without_fetching_it(host, s3, bucket):
    a, b = host("a"), host("b")
    clips = make(a, "0" * 24)
    made = Manifest(kind="thing", key="1" * 24, version=1, parameters={}, inputs={"clips": [clips]})
    with a.writing(made) as attempt:
        (attempt.folder / "data").write_bytes(b"x")
    assert [ref.key[0] for ref in _lineage(b, [made.ref])] == ["1", "0"]
    assert not list(b.root.glob("thing/*"))
    a.discard(clips)
    with pytest.raises(ArtifactNotFound, match="run the experiment"):
        _lineage(b, [made.ref])
