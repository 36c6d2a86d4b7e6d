"""WebDataset shards and Hugging Face data sets as inputs: class folders with the very same videos."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import ClassVar

import pytest

from vidistill.flows.unpack import unpack
from vidistill.storage.errors import RequestError
from vidistill.storage.locks import locked, this_process
from vidistill.tasks.videos.layouts import IndexParameters, list_videos
from vidistill.tasks.videos.splits import group_of


def shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shards_become_class_folders(tmp_path: Path, videos: Path) -> None:
    real = sorted((videos / "train").rglob("*.mp4"))
    left, right = (next(path for path in real if path.parent.name == name).read_bytes() for name in ("left", "right"))
    shard(tmp_path / "shards" / "train-000.tar", {
        "a/1.cls": b"left\n", "a/1.mp4": left,
        "a/2.mp4": right, "a/2.cls": b"1", "a/2.json": json.dumps({"class": "right", "label": 1}).encode(),
        "a/3.txt": b"nothing to see",
    })  # fmt: skip
    shard(tmp_path / "shards" / "val-000.tar", {"1.mp4": right, "1.txt": b"left", "2.WMV": left, "2.txt": b"right"})
    assert unpack(tmp_path / "shards", tmp_path / "out") == {"train": 2, "test": 2}
    assert files(tmp_path / "out") == {
        "train/left/1.mp4": left, "train/right/2.mp4": right, "test/left/1.mp4": right, "test/right/2.wmv": left,
    }  # fmt: skip
    listing = list_videos(tmp_path / "out", IndexParameters())
    assert (listing.classes, len(listing.entries)) == (("left", "right"), 4)


def test_names_tell_groups_and_shards_their_side(tmp_path: Path) -> None:
    """UCF101's are in its names; `latest` holds no test."""
    videos = {f"{folder}v_Jump_g01_c0{clip}.mp4": b"x" for folder in ("a/", "b/") for clip in (1, 2)}
    labels = {name.replace(".mp4", ".cls"): b"Jump" for name in videos}
    members = dict(sorted((videos | labels).items()))
    shard(tmp_path / "shards" / "latest-train-000.tar", members)
    assert unpack(tmp_path / "shards", tmp_path / "out") == {"train": 4}
    names = sorted(files(tmp_path / "out"))
    clips = "v_Jump_g01_c01.mp4", "v_Jump_g01_c02.mp4"
    assert [PurePosixPath(name).name for name in names] == [f"2-{clips[0]}", f"3-{clips[1]}", *clips]
    assert {group_of(name, "Jump") for name in names} == {"Jump_g01"}


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"1.mp4": b"x"}, "1 of .* has no class"),
        ({"1.mp4": b"x", "1.json": b"{class"}, "1 of .* has no class"),
        ({"1.mp4": b"x", "1.json": b"[0]"}, "1 of .* has no class"),
        ({"1.mp4": b"x", "1.cls": b"\xff"}, "1 of .* has no class"),
        ({"1.mp4": b"x", "1.cls": b"../up"}, "names no folder"),
        ({"1.mp4": b"x", "1.cls": b".hidden"}, "the class '.hidden', which names no folder that is read"),
        ({"1.mp4": b"x", "1.json": b'{"class": null, "label": null}'}, "1 of .* has no class"),
        ({"1.png": b"x", "1.cls": b"0"}, r"1 of .* has a class and no video of a known kind: it has \.png, \.cls"),
        ({"1.png": b"x", "1.txt": b"a caption"}, "holds no videos"),
        ({"1.rgb.mp4": b"x", "1.depth.mp4": b"x", "1.cls": b"0"}, r"1 of .* has several videos \(\.rgb\.mp4 and \.dep"),
        ({"1.mp4": b"x", "1.MP4": b"y", "1.cls": b"0"}, "1 of .* stands there twice"),
    ],
)
def test_what_is_no_sample_is_said_and_nothing_is_left(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        unpack(shard(tmp_path / "one.tar", members), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*"))
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(RequestError, match="not an empty folder"):
        unpack(tmp_path / "one.tar", tmp_path / "out")


def test_videos_that_were_killed_on_their_way_are_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members, out = {"1.mp4": b"x", "1.cls": b"a", "2.mp4": b"y", "2.cls": b"b"}, tmp_path / "out"
    source = shard(tmp_path / "one.tar", members)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # as if killed
        patch.setattr("pathlib.Path.rename", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            unpack(source, out)
    assert [path.name for path in out.iterdir()] == [".part"]
    with pytest.raises(RequestError, match="is empty: name a folder that holds videos"):
        list_videos(out, IndexParameters())
    assert unpack(source, out) == {"train": 2}
    assert files(out) == {"train/a/1.mp4": b"x", "train/b/2.mp4": b"y"}
    assert [path.name for path in out.iterdir()] == ["train"]


def test_two_who_write_into_one_folder_do_not_remove_each_other_s_videos(tmp_path: Path) -> None:
    """Nor does what a dead one left keep anybody out."""
    source, out = shard(tmp_path / "one.tar", {"1.mp4": b"x", "1.cls": b"a"}), tmp_path / "out"
    lock = out / ".part.lock"
    with locked(lock):
        (out / ".part").mkdir()
        with pytest.raises(RequestError, match=r"Another `vidistill unpack` writes to .*out: name another --out"):
            unpack(source, out)
        assert {path.name for path in out.iterdir()} == {".part", ".part.lock"}
    lock.write_text(json.dumps(this_process() | {"start": "long ago"}))
    assert unpack(source, out) == {"train": 1}
    assert [path.name for path in out.iterdir()] == ["train"]


def test_what_is_no_tar_is_said(tmp_path: Path) -> None:
    (tmp_path / "one.tar").write_bytes(b"no tar")
    with pytest.raises(RequestError, match="is no shard of WebDataset"):
        unpack(tmp_path / "one.tar", tmp_path / "out")
    with pytest.raises(RequestError, match=r"nowhere\.tar is not there: give shards"):
        unpack(tmp_path / "nowhere.tar", tmp_path / "out")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="datasets is installed")
def test_without_datasets_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"pip install -e '\.\[readers\]'"):
        unpack(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(("label", "video", "lacks"), [(-1, True, "class"), (None, True, "class"), (0, False, "video")])
def test_a_row_without_a_class_or_a_video_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: int | None, video: bool, lacks: str
) -> None:
    """Hugging Face's -1 is no label, and Python's the last of the names."""
    (tmp_path / "dataset_info.json").touch()
    (tmp_path / "1.mp4").write_bytes(b"x")
    clip = {"path": str(tmp_path / "1.mp4"), "bytes": None}
    rows = [{"clip": clip, "label": 1}, {"clip": clip if video else None, "label": label}]

    class Video:
        def __init__(self, decode: bool = True) -> None: ...

    class Split(list[dict[str, object]]):
        features: ClassVar[dict[str, object]] = {"clip": Video(), "label": SimpleNamespace(names=["left", "right"])}

        def cast_column(self, *_: object) -> Split:
            return self

    datasets = SimpleNamespace(Video=Video, load_from_disk=lambda _: {"train": Split(rows)})
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    with pytest.raises(RequestError, match=f"Row 1 of train of .* has no {lacks}: filter such rows out first"):
        unpack(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["saved", "folder"])
def test_hugging_face_s_data_sets_become_class_folders(
    tmp_path: Path, videos: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="pip install -e '.[readers]' -c constraints.txt")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    sides = {}
    for split, name in (("train", "train"), ("validation", "test")):
        paths = [next((videos / name / label).glob(f"{label}*.mp4")) for label in ("left", "right")]
        sides[split] = paths
    if kind == "saved":
        features = datasets.Features({"clip": datasets.Video(), "label": datasets.ClassLabel(names=["left", "right"])})
        made = {split: datasets.Dataset.from_dict({"clip": list(map(str, paths)), "label": [0, 1]}, features=features)
                for split, paths in sides.items()}  # fmt: skip
        datasets.DatasetDict(made).save_to_disk(tmp_path / "source")
    else:
        for split, paths in sides.items():
            for path in paths:
                place = tmp_path / "source" / split / path.parent.name / path.name
                place.parent.mkdir(parents=True)
                place.write_bytes(path.read_bytes())
    assert unpack(tmp_path / "source", tmp_path / "out") == {"train": 2, "test": 2}
    listing = list_videos(tmp_path / "out", IndexParameters())
    assert listing.classes == ("left", "right")
    found = files(tmp_path / "out")
    for split, name in (("train", "train"), ("validation", "test")):
        for path in sides[split]:
            [content] = [data for place, data in found.items() if place.startswith(f"{name}/{path.parent.name}/")]
            assert content == path.read_bytes()
