"""What comes from outside: wrong documents and streams are one sentence, paths stay inside, nothing is unpickled."""

from __future__ import annotations

import ast
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vidistill.flows.commands import request_of
from vidistill.flows.parameters import Experiment, checked
from vidistill.storage import coded, streams
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import ArtifactDamaged, RequestError, VidistillError
from vidistill.storage.leases import leases
from vidistill.storage.opening import open_store
from vidistill.storage.store import ArtifactRef, Manifest, Store
from vidistill.tasks.videos.layouts import IndexParameters, list_videos
from vidistill.tasks.videos.scan import Identity, Memo

ROOT = Path(__file__).resolve().parent.parent
quick = settings(max_examples=80, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PATHS = ["../../secret", "/etc/passwd", "a/../../b", "..", "", "a\0b"]


def changed(document: Any, draw: Callable[..., Any]) -> Any:
    """The document with one of its values, at any depth, replaced by something else, or gone."""
    if isinstance(document, dict | list) and document and draw(st.integers(0, 4)):
        copy = document.copy()
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        key = draw(st.sampled_from(keys))
        if draw(st.integers(0, 3)):
            copy[key] = changed(copy[key], draw)
        else:
            del copy[key]
        return copy
    return draw(JSON | st.sampled_from(PATHS))


def one_sentence(error: VidistillError) -> None:
    assert str(error).strip()
    assert "Traceback" not in str(error)


# --- manifests and leases


KEY = "5f" * 12


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, ArtifactRef, dict[str, Any]]:
    store = Store(tmp_path_factory.mktemp("safe") / "store")
    needs = {"clips": [ArtifactRef(kind="clips", key="c")]}
    manifest = Manifest(kind="thing", key=KEY, version=1, parameters={"rows": [1]}, inputs=needs)
    with store.writing(manifest) as attempt:
        (attempt.folder / "a").mkdir()
        (attempt.folder / "a" / "b").write_bytes(b"content")
    return store, manifest.ref, json.loads((store.folder(manifest.ref) / "manifest.json").read_text())


@quick
@given(data=st.data())
def test_a_wrong_manifest_is_damage(made, data) -> None:
    store, ref, document = made
    path = store.root / "thing" / KEY / "manifest.json"
    path.write_text(json.dumps(changed(document, data.draw)))
    problem = store.problem(ref, thorough=True)
    assert store.survey()[ref].problem in {problem, None} or problem
    try:
        assert store.folder(ref) == path.parent
    except VidistillError as error:
        one_sentence(error)


@pytest.mark.parametrize("name", PATHS)
def test_names_in_a_manifest_stay_inside(made, name) -> None:
    store, ref, document = made
    (store.root / "secret").write_text("secret")
    record = {"bytes": 6, "sha256": document["files"]["a/b"]["sha256"]}
    path = store.root / "thing" / KEY / "manifest.json"
    for wrong in ({"files": {name: record}}, {"inputs": {"x": [{"kind": name, "key": KEY}]}}, {"key": name}):
        path.write_text(json.dumps(document | wrong))
        assert store.problem(ref) == "manifest.json cannot be read"


@quick
@given(content=st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_wrong_lease_is_named(tmp_path, content) -> None:
    store = Store(tmp_path / "store")
    store.write_note(".leases", "odd.json", content)
    with pytest.raises(VidistillError, match=r"\.leases/odd\.json"):
        leases(store)


# --- lists of videos


LISTS = {
    "ucf101": {"trainlist01.txt": "A/a.mp4 1\nB/b.mp4 2\n", "testlist01.txt": "A/c.mp4\nB/d.mp4\n",
               "classInd.txt": "1 A\n2 B\n"},
    "hmdb51": {"A_test_split1.txt": "a.mp4 1\nc.mp4 2\n", "B_test_split1.txt": "b.mp4 1\nd.mp4 2\n"},
    "kinetics": {"train.csv": "label,youtube_id,time_start,time_end,split\nA,a,0,10,train\nB,b,0,10,train\n"
                              "A,c,0,10,test\nB,d,0,10,test\n"},
    "ssv2": {"labels.json": '{"A": "0", "B": "1"}', "train.json": '[{"id": "a", "template": "A"}, {"id": "b", '
             '"template": "[B]"}]', "validation.json": '[{"id": "c", "template": "A"}, {"id": "d", "template": "B"}]'},
    "csv": {"all.csv": "path,label,split\nA/a.mp4,A,train\nB/b.mp4,B,train\nA/c.mp4,A,test\nB/d.mp4,B,test\n"},
}  # fmt: skip


def lay(folder: Path, layout: str) -> None:
    for name in ("A/a.mp4", "B/b.mp4", "A/c.mp4", "B/d.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"video")
    for name, text in LISTS[layout].items():
        (folder / name).write_text(text)


def mutated(content: bytes, draw: Callable[..., Any]) -> bytes:
    """Bytes with a part replaced by others, among them what means something to a reader of lists."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 8)))
    odd = [b"\0", b'"', b"\xff", b"9" * 5000, b"../../", b"inf", b"nan", b"{", b"[", b"null", b",", b"\n", b"-1"]
    return content[:start] + draw(st.sampled_from(odd) | st.binary(max_size=6)) + content[end:]


@pytest.mark.parametrize("layout", LISTS)
@quick
@given(data=st.data())
def test_wrong_lists_are_a_wrong_request(tmp_path_factory, layout, data) -> None:
    folder = tmp_path_factory.mktemp("lists")
    lay(folder, layout)
    name = data.draw(st.sampled_from(sorted(LISTS[layout])))
    (folder / name).write_bytes(mutated(LISTS[layout][name].encode(), data.draw))
    try:
        listing = list_videos(folder, IndexParameters(layout=layout))
    except RequestError as error:
        one_sentence(error)
    else:
        assert all((folder / entry.path).resolve().is_relative_to(folder) for entry in listing.entries)


@pytest.mark.parametrize("layout", LISTS)
def test_the_lists_are_right_to_begin_with(tmp_path, layout) -> None:
    lay(tmp_path, layout)
    assert len(list_videos(tmp_path, IndexParameters(layout=layout)).entries) == 4


@pytest.mark.parametrize("layout", ["csv", "ucf101"])
@pytest.mark.parametrize("outside", ["../secret.mp4", "/etc/passwd", "A/../../secret.mp4"])
def test_lists_name_nothing_outside_the_folder(tmp_path, layout, outside) -> None:
    folder = tmp_path / "data"
    lay(folder, layout)
    (tmp_path / "secret.mp4").write_bytes(b"video")
    for name, text in LISTS[layout].items():
        (folder / name).write_text(text.replace("A/a.mp4", outside))
    try:
        found = list_videos(folder, IndexParameters(layout=layout)).entries
    except RequestError:
        return
    assert "secret" not in str(found)


# --- coded streams and sets


@pytest.fixture(scope="module")
def stream() -> bytes:
    clips = np.random.default_rng(0).integers(0, 255, (2, 3, 16, 16, 3)).astype(np.uint8)
    return streams.encode(clips, crf=40, preset=12).to_bytes()


def resealed(data: bytes) -> bytes:
    """The stream with every checksum made right again: as somebody would send it who means ill."""
    head = streams.HEADER
    count, size = head.unpack_from(data)[-2:]
    place, clips = head.size + size, []
    index = place
    for _ in range(min(count, 4)):
        length, index = streams.leb128_at(data, index)
        index += 4
        clips.append(length)
    body, out = index + 4, bytearray(data[:place])
    for length in clips:
        clip = data[body : body + length]
        out += streams.leb128(len(clip)) + struct.pack("<I", zlib.crc32(clip))
        body += length
    return bytes(out) + struct.pack("<I", zlib.crc32(bytes(out))) + data[index + 4 :]


@quick
@given(data=st.data())
def test_a_wrong_stream_is_damage(stream, data) -> None:
    wrong = mutated(stream, data.draw)[: 20 * len(stream)]
    if data.draw(st.booleans()):
        try:
            wrong = resealed(wrong)
        except (struct.error, IndexError):
            return
    try:
        streams.decode(streams.Stream.from_bytes(wrong))
    except VidistillError as error:
        one_sentence(error)


@quick
@given(data=st.data())
def test_a_wrong_coded_file_is_damage(tmp_path, stream, data) -> None:
    stored = coded.stored_of(streams.Stream.from_bytes(stream))
    whole = coded.to_bytes(np.array([0, 1]), np.ones((2, 2), np.float32), 2, stored)
    (tmp_path / coded.FILE).write_bytes(mutated(whole, data.draw))
    try:
        coded.read(tmp_path / coded.FILE)
    except VidistillError as error:
        one_sentence(error)


def small_set() -> DistilledSet:
    clips = np.zeros((2, 2, 8, 8, 3), np.uint8)
    return DistilledSet(clips_NTHWC=clips, labels_N=np.array([0, 1]), classes=("a", "b"), facts={"ipc": 1})


@quick
@given(data=st.data())
def test_a_wrong_set_is_damage(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("set")
    small_set().save(folder)
    path = folder / "set.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), data.draw)))
    try:
        DistilledSet.load(folder)
    except VidistillError as error:
        one_sentence(error)


def test_an_exported_set_reads_nothing_outside_its_folder(tmp_path) -> None:
    np.save(tmp_path / "secret.npy", np.ones((2, 2), np.float32))
    np.savez(tmp_path / "out.npz", a=1)
    folder = tmp_path / "set"
    folder.mkdir()
    np.savez(folder / "clips.npz", videos=np.zeros((2, 2, 8, 8, 3), np.uint8))
    files = [{"file": "x", "variant": 0, "label": label, "sources": []} for label in (0, 1)]
    facts = {"files": files, "form": "clips", "shape": [2, 2, 8, 8, 3], "video_shape": [2, 8, 8, 3], "format": "npz",
             "clips_a_file": 1, "classes": ["a", "b"], "logits": "../secret.npy", "facts": {}}  # fmt: skip
    (folder / "export.json").write_text(json.dumps(facts))
    with pytest.raises(ArtifactDamaged, match="lies outside its folder"):
        DistilledSet.load(folder)
    (folder / "logits.npy").write_bytes(b"\x80\x04K\x01.")  # a pickle
    (folder / "export.json").write_text(json.dumps(facts | {"logits": "logits.npy"}))
    with pytest.raises(ArtifactDamaged, match="cannot be read"):
        DistilledSet.load(folder)


# --- parameters and presets


PRESET = {
    "data": "sprites", "cells": [{"method": "tsgf", "options": {"iterations": 4}}, {"method": "random"}],
    "ipc": [1, 5], "decode": {"frames": 8}, "teacher": {"optimiser": {"lr": 0.1}}, "front": "rgb", "seeds": 2,
}  # fmt: skip
SETTINGS = ["teacher.epochs=4", "tsgf.iterations=3", "tsgf.store=coded", "ipc=[1]", "seeds=1"]


@quick
@given(data=st.data())
@example(data=None)
def test_wrong_parameters_are_a_wrong_request(tmp_path_factory, data) -> None:
    document = {**PRESET, "teacher": 3} if data is None else changed(PRESET, data.draw)
    setting = SETTINGS if data is None else data.draw(st.lists(st.sampled_from(SETTINGS) | st.text(max_size=12)))
    path = tmp_path_factory.mktemp("preset") / "preset.yaml"
    path.write_text(yaml.safe_dump(document))
    try:
        checked(Experiment, request_of(str(path), settings=setting), "The experiment")
    except RequestError as error:
        one_sentence(error)


@quick
@given(content=st.binary(max_size=30) | st.text(max_size=30).map(str.encode))
def test_what_is_no_preset_is_a_wrong_request(tmp_path, content) -> None:
    (tmp_path / "preset.yaml").write_bytes(content)
    try:
        checked(Experiment, request_of(str(tmp_path / "preset.yaml")), "The experiment")
    except RequestError as error:
        one_sentence(error)


# --- what is remembered, where it listens, what is unpickled


def test_a_memo_that_somebody_else_wrote_is_a_slow_one(tmp_path) -> None:
    (tmp_path / "memo").write_bytes(b"SQLite format 3\0" + bytes(200))
    assert Memo(tmp_path / "memo").recall(Identity("a", 1, 1)) is None


@pytest.mark.parametrize("address", ["s3://key:secret@bucket/a", "ftp://me:secret@host/a"])
def test_a_password_in_an_address_is_refused_and_not_repeated(address) -> None:
    with pytest.raises(RequestError, match="holds a password in its address") as error:
        open_store(address)
    assert "secret" not in str(error.value)


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("room", ["flows", "models", "storage", "tasks", "deployments"])
def test_nothing_is_unpickled(room) -> None:
    for path in (ROOT / room).rglob("*.py"):
        tree = ast.parse(path.read_text())
        for call in calls(tree):
            name = ast.unparse(call.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert name not in {"pickle.load", "pickle.loads", "joblib.load", "yaml.load", "eval", "exec"}, path
            assert name != "torch.load" or keywords.get("weights_only") == "True", path
            assert "allow_pickle" not in keywords, path


def test_servers_listen_to_this_machine_alone() -> None:
    compose = yaml.safe_load((ROOT / "deployments" / "compose.yaml").read_text())
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert all(str(port).startswith("127.0.0.1:") for port in ports), ports
    for path in (ROOT / "flows").rglob("*.py"):
        assert "0.0.0.0" not in path.read_text(), path
