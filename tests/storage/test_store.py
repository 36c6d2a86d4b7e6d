from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidistill.storage import manifests
from vidistill.storage import store as store_module
from vidistill.storage.clips import create_clip_array
from vidistill.storage.errors import ArtifactDamaged, ArtifactNotFound, RequestError, StoreError
from vidistill.storage.opening import default_location, open_store
from vidistill.storage.store import ArtifactRef, Manifest, Store

KEY = "0123456789abcdef01234567"
FILES = {"clips/zarr.json": b"{}", "clips/c/0/0": bytes(range(256)) * 40, "curve.json": b'{"loss": []}'}


def manifest_of(key: str = KEY, kind: str = "thing") -> Manifest:
    return Manifest(kind=kind, key=key, version=1, parameters={"lr": 0.1}, inputs={})


def make(store: Store, key: str = KEY, kind: str = "thing", files: dict[str, bytes] = FILES) -> ArtifactRef:
    with store.writing(manifest_of(key, kind)) as attempt:
        assert attempt is not None
        for name, content in files.items():
            (attempt.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (attempt.folder / name).write_bytes(content)
    return ArtifactRef(kind=kind, key=key)


def remains(root: Path) -> list[str]:
    """Every file and folder under the store, its two work folders apart."""
    found = [path.relative_to(root).as_posix() for path in root.rglob("*")]
    return sorted(name for name in found if name not in {".staging", ".locks"})


def test_a_file_url_is_a_path(tmp_path):
    assert open_store(f"file://{tmp_path}/store").root == tmp_path / "store"


def test_what_is_made_anew_takes_the_place_of_what_nfs_keeps_open(store, monkeypatch):
    ref = make(store)
    folder = store.folder(ref)
    (folder / "clips" / ".nfs0001").touch()
    (folder / "curve.json").write_bytes(b"damaged")
    kept = store_module.remove_folder
    monkeypatch.setattr(store_module, "remove_folder", lambda folder: folder.name == ref.key or kept(folder))
    make(store)
    assert (store.folder(ref) / "curve.json").read_bytes() == FILES["curve.json"]
    assert not list(folder.rglob(".nfs*"))
    make(store, "another")


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte, made by root only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip() if done else 'no mount'}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


# --- whole or absent ---------------------------------------------------------------------------------------------


def test_an_artifact_is_its_files_and_a_manifest(store):
    ref = make(store)
    assert store.has(ref)
    assert {name: (store.folder(ref) / name).read_bytes() for name in FILES} == FILES
    manifest = store.manifest(ref)
    assert manifest.ref == ref
    assert {name: file.bytes for name, file in manifest.files.items()} == {n: len(c) for n, c in FILES.items()}
    assert manifest.bytes == sum(map(len, FILES.values()))
    assert manifest.parameters == {"lr": 0.1}
    assert manifest.created
    assert list((store.root / ".staging").iterdir()) == list((store.root / ".locks").iterdir()) == []


def test_what_the_writer_notes_is_in_the_manifest(store):
    with store.writing(manifest_of()) as attempt:
        attempt.note(seconds=1.5, record={"device": "cpu"})
    manifest = store.manifest(manifest_of().ref)
    assert (manifest.seconds, manifest.record) == (1.5, {"device": "cpu"})


def test_an_artifact_is_not_seen_before_its_commit(store):
    with store.writing(manifest_of()) as attempt:
        (attempt.folder / "half").write_bytes(b"half")
        assert store.problem(manifest_of().ref) == "no artifact"
        assert store.refs() == []
    assert store.has(manifest_of().ref)


def test_a_commit_moves_what_is_on_the_disk_already_and_then_says_so(store, monkeypatch):
    """Files and manifest are flushed where they were written, then moved as one, then their new folder is flushed."""
    flushed: list[Path] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with store.writing(manifest_of()) as attempt:
        (attempt.folder / "half").write_bytes(b"half")
        written, node = attempt.folder, (attempt.folder / "half").stat().st_ino
    place = store.folder(manifest_of().ref)
    assert flushed == [written / "half", written / "manifest.json", place.parent]
    assert (place / "half").stat().st_ino == node


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_an_exception_while_writing_leaves_nothing(store, error):
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise error

    with pytest.raises(error), store.writing(manifest_of()) as attempt:
        fail(attempt.folder)
    assert remains(store.root) == []


def test_what_is_there_is_not_made_again(store):
    make(store)
    with store.writing(manifest_of()) as attempt:
        assert attempt is None


def test_what_is_damaged_is_made_again(store):
    ref = make(store)
    (store.folder(ref) / "curve.json").unlink()
    (store.root / str(ref) / "stray").touch()
    assert make(store) == ref
    assert store.problem(ref, thorough=True) is None
    assert not (store.folder(ref) / "stray").exists()


KILLED = """
import sys, time
from pathlib import Path
from vidistill.storage.store import Manifest, Store
manifest = Manifest(kind="thing", key=sys.argv[2], version=1, parameters={}, inputs={})
with Store(Path(sys.argv[1])).writing(manifest) as attempt:
    (attempt.folder / "half.bin").write_bytes(bytes(1000))
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def killed(store):
    """The store after a real process was killed while it wrote."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(store.root), KEY], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    assert store.sweep() == []  # it is alive
    process.kill()
    process.wait()
    return store


def test_a_killed_writer_leaves_no_artifact_and_the_next_sweeps_its_folder(killed):
    assert killed.problem(manifest_of().ref) == "no artifact"
    assert [path.name for path in (killed.root / ".staging").rglob("half.bin")] == ["half.bin"]
    begin = time.monotonic()
    make(killed)
    assert time.monotonic() - begin < 20  # nobody waits a minute for the dead
    assert remains(killed.root) == sorted(
        [
            "thing",
            f"thing/{KEY}",
            *(f"thing/{KEY}/{name}" for name in ["clips", "clips/c", "clips/c/0", "manifest.json", *FILES]),
        ]
    )


def test_sweep_removes_what_a_killed_writer_left(killed):
    left = [path.name for path in (killed.root / ".staging").iterdir()]
    assert killed.sweep() == left
    assert len(left) == 1
    assert list((killed.root / ".staging").iterdir()) == []


def test_sweep_leaves_a_living_writer_alone(store):
    with store.writing(manifest_of()) as attempt:
        (attempt.folder / "a").write_bytes(b"a")
        assert store.sweep() == []
    assert store.has(manifest_of().ref)


def test_sweep_removes_a_probe_that_was_left(store):
    store.check_writable()
    (store.root / ".staging" / "probe.0").touch()
    assert store.sweep() == ["probe.0"]


RACER = """
import os, sys, time
from pathlib import Path
from vidistill.storage.store import Manifest, Store
root, count = map(Path, sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
with Store(root).writing(Manifest(kind="thing", key="abc", version=1, parameters={}, inputs={})) as attempt:
    if attempt is not None:
        with count.open("a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(0.3)
        (attempt.folder / "a").write_bytes(b"a")
print(Store(root).has(Manifest(kind="thing", key="abc", version=1, parameters={}, inputs={}).ref))
"""


def test_two_processes_that_want_one_key_do_the_work_once(store, tmp_path):
    command = [sys.executable, "-c", RACER, str(store.root), str(tmp_path / "count")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=30)[0] for process in processes] == ["True\n"] * 2
    assert len((tmp_path / "count").read_text().splitlines()) == 1


# --- damage ------------------------------------------------------------------------------------------------------


def flip(path: Path, place: int = 5) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_every_damage_is_named(store):
    ref = make(store)
    place = store.folder(ref)
    whole = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}

    def problem_after(damage, *arguments) -> str | None:
        damage(*arguments)
        said = store.problem(ref)
        for path, content in whole.items():
            path.write_bytes(content)
        assert store.problem(ref) is None
        return said

    chunk, manifest = place / "clips/c/0/0", place / "manifest.json"
    assert problem_after(flip, chunk) == "clips/c/0/0 does not have its checksum"
    assert problem_after(chunk.unlink) == "clips/c/0/0 is missing"
    assert problem_after(chunk.write_bytes, bytes(7)) == "clips/c/0/0 has 7 bytes instead of 10240"
    assert problem_after(manifest.write_bytes, whole[manifest][:-20]) == "manifest.json cannot be read"
    assert problem_after(manifest.write_bytes, b"") == "manifest.json cannot be read"
    assert problem_after(manifest.write_bytes, b"\xff\xfe") == "manifest.json cannot be read"
    assert problem_after(manifest.write_bytes, b'{"kind": "thing"}') == "manifest.json cannot be read"
    assert problem_after(manifest.unlink) == "no manifest.json"
    told = json.loads(whole[manifest])
    for name, value in (("parameters", {"size": 4}), ("seconds", 1e9), ("record", {"a": 1})):
        edited = json.dumps(told | {name: value}).encode()
        assert problem_after(manifest.write_bytes, edited) == "manifest.json does not have its checksum"
    del told["checksum"]  # an older version's
    foreign = json.dumps(told | {"key": "another"}).encode()
    assert problem_after(manifest.write_bytes, foreign) == "manifest.json is that of thing/another"
    assert problem_after(manifest.write_text, json.dumps(told)) is None


def test_a_damaged_artifact_is_not_handed_out(store):
    ref = make(store)
    flip(store.folder(ref) / "curve.json")
    assert not store.has(ref)
    for door in (store.folder, store.manifest):
        with pytest.raises(ArtifactDamaged, match=rf"^{ref} in the store .*curve\.json.* run again to rebuild it\.$"):
            door(ref)


def test_an_absent_artifact_is_not_found(store):
    with pytest.raises(ArtifactNotFound, match="thing/nothing is not in the store"):
        store.folder(ArtifactRef(kind="thing", key="nothing"))


@settings(max_examples=25)
@given(
    st.dictionaries(
        st.from_regex(r"([A-Z]/)?[a-z]{1,3}", fullmatch=True), st.binary(min_size=1), min_size=1, max_size=4
    ),
    st.data(),
)
def test_one_wrong_bit_anywhere_is_noticed(files, data):
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        ref = make(store, files=files)
        name = data.draw(st.sampled_from(sorted(files)))
        flip(store.folder(ref) / name, data.draw(st.integers(0, len(files[name]) - 1)))
        assert store.problem(ref) == f"{name} does not have its checksum"


def test_a_large_artifact_is_read_through_only_on_demand(store, monkeypatch):
    ref = make(store)
    flip(store.folder(ref) / "clips/c/0/0")
    monkeypatch.setattr(store_module, "FULL_CHECK_BYTES", 100)
    assert store.problem(ref) is None
    assert store.problem(ref, thorough=True) == "clips/c/0/0 does not have its checksum"
    (store.folder(ref) / "clips/c/0/0").write_bytes(b"short")
    assert store.problem(ref) == "clips/c/0/0 has 5 bytes instead of 10240"


# --- a store that cannot be written ------------------------------------------------------------------------------


def assert_one_sentence(error: pytest.ExceptionInfo[StoreError], root: Path, cause: str) -> None:
    said = str(error.value).partition(" could not be made: ")[2] or str(error.value)
    assert said.startswith(f"The store {root} cannot be written: ")
    assert cause in said
    assert said.endswith(".")
    assert "\n" not in said


def fill_by_python(folder: Path) -> None:
    (folder / "big").write_bytes(bytes(2 << 20))


def fill_by_safetensors(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weights": np.zeros(2 << 20, dtype=np.uint8)}, folder / "big.safetensors")


def fill_by_zarr(folder: Path) -> None:
    shape_NTHWC = (8, 4, 256, 256, 3)
    noise_NTHWC = np.random.default_rng(0).integers(0, 256, shape_NTHWC, dtype=np.uint8)
    create_clip_array(folder, shape_NTHWC)[:] = noise_NTHWC


@pytest.mark.parametrize("fill", [fill_by_python, fill_by_safetensors, fill_by_zarr])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(small_disk, fill):
    root = small_disk / "store"
    store = Store(root)
    with pytest.raises(StoreError) as error, store.writing(manifest_of()) as attempt:
        fill(attempt.folder)
    assert_one_sentence(error, root, "its disk is full")
    assert str(error.value).startswith(f"{manifest_of().ref} could not be made: ")
    if fill is fill_by_zarr:  # its other chunks are still being written when it reports the first that failed
        time.sleep(0.5)
        store.sweep()
    assert remains(root) == []
    make(store)  # there is room


def test_a_disk_that_is_full_from_the_start(small_disk):
    root = small_disk / "store"
    store = Store(root)
    store.check_writable()
    with (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while shutil.disk_usage(small_disk).free:
            ballast.write(bytes(4096))
    for attempt in (store.check_writable, lambda: make(store)):
        with pytest.raises(StoreError) as error:
            attempt()
        assert_one_sentence(error, root, "its disk is full")
        assert remains(root) == []


def test_a_read_only_store_is_read_and_not_written(small_disk):
    root = small_disk / "store"
    store = Store(root)
    ref = make(store)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert store.problem(ref, thorough=True) is None
    for attempt in (store.check_writable, lambda: make(store, key="b")):
        with pytest.raises(StoreError) as error:
            attempt()
        assert_one_sentence(error, root, "its file system is read-only")


@pytest.mark.parametrize("below", ["", "store", "a/b/store"])
def test_a_store_whose_path_is_a_file(tmp_path, below):
    (tmp_path / "file").write_text("notes")
    root = tmp_path / "file" / below if below else tmp_path / "file"
    store = Store(root)
    assert store.problem(manifest_of().ref) == "no artifact"
    assert store.refs() == []
    for attempt, kind in ((store.check_writable, RequestError), (lambda: make(store), StoreError)):
        with pytest.raises(kind) as error:
            attempt()
        assert_one_sentence(error, root, "a part of the path is a file")
    assert (tmp_path / "file").read_text() == "notes"


def test_an_error_over_another_file_is_not_blamed_on_the_store(store, tmp_path):
    (tmp_path / "video.avi").write_bytes(b"")
    with pytest.raises(NotADirectoryError), store.writing(manifest_of()):
        (tmp_path / "video.avi" / "frame").read_bytes()
    assert remains(store.root) == []


# --- housekeeping ------------------------------------------------------------------------------------------------


def test_refs_are_sorted_and_by_kind(store):
    assert store.refs() == []
    made = [make(store, key, kind) for key, kind in [("b", "teacher"), ("a", "teacher"), ("c", "clips")]]
    flip(store.folder(made[0]) / "curve.json")  # damaged ones are listed too
    with store.writing(manifest_of("d")):
        assert [str(ref) for ref in store.refs()] == ["clips/c", "teacher/a", "teacher/b"]
    assert [str(ref) for ref in store.refs("teacher")] == ["teacher/a", "teacher/b"]
    assert store.refs("tea") == []


def test_discard_removes_and_may_be_said_twice(store):
    ref, other = make(store), make(store, key="b")
    store.discard(ref)
    store.discard(ref)
    assert store.problem(ref) == "no artifact"
    assert store.refs() == [other]


def test_a_ref_is_json_and_a_name():
    ref = ArtifactRef(kind="clips", key="ab")
    assert ArtifactRef.model_validate_json(ref.model_dump_json()) == ref
    assert str(ref) == "clips/ab"
    assert {ref: 1}[ArtifactRef(kind="clips", key="ab")] == 1


def test_a_location_is_a_path_or_an_url(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert open_store("~/store").root == open_store("store").root == tmp_path / "store"
    with pytest.raises(RequestError, match=r"The store gopher://host/a cannot be opened"):
        open_store("gopher://host/a")


def test_the_default_store_is_one_a_user(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDISTILL_STORE", "s3://bucket/store")
    assert default_location() == "s3://bucket/store"
    monkeypatch.delenv("VIDISTILL_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    here = default_location()
    monkeypatch.chdir(tmp_path)
    assert default_location() == here


def test_content_is_read_once_a_process_and_again_where_it_was_written(store, monkeypatch):
    ref, read = make(store), []
    real = manifests.file_digest
    monkeypatch.setattr(manifests, "file_digest", lambda path: read.append(path) or real(path))
    assert store.problem(ref) is None
    first = len(read)
    assert first == len(store.manifest(ref).files)
    assert store.problem(ref) is store.problem_once(ref) is None
    assert store.folder(ref)
    assert len(read) == first
    assert store.problem(ref, thorough=True) is None  # `verify` reads all
    assert len(read) == 2 * first
    name = next(name for name, file in store.manifest(ref).files.items() if file.bytes)
    path = store.folder(ref) / name
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    assert store.problem(ref) == f"{name} does not have its checksum"
