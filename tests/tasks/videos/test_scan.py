from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vidistill.storage.errors import RequestError
from vidistill.tasks.videos.decoder import Decoder, PassingError
from vidistill.tasks.videos.layouts import IndexParameters, Listing, list_videos
from vidistill.tasks.videos.scan import Video, scan

FRAMES, HEIGHT, WIDTH = 6, 32, 48


def render(path: Path, seed: int) -> None:
    """A small MPEG-4 file of noise, different for every seed."""
    import av

    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for _ in range(FRAMES):
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def root(tmp_path):
    """Two classes of three videos, one of them garbage."""
    folder = tmp_path / "data"
    for seed, name in enumerate(["b/0.mp4", "b/1.mp4", "b/2.mp4", "a/ä 0.mp4", "a/1.mp4"]):
        render(folder / name, seed)
    (folder / "a/garbage.mp4").write_bytes(b"no video at all " * 40)
    (folder / "a/notes.txt").write_text("x")
    return folder


def listed(root: Path) -> Listing:
    return list_videos(root, IndexParameters())


def paths(videos: list[Video]) -> list[str]:
    return [video.path for video in videos]


def memo_rows(memo: Path) -> set[str]:
    with sqlite3.connect(memo) as database:
        return {Path(path).name for (path,) in database.execute("SELECT path FROM files_1")}


def test_every_video_is_hashed_and_probed(root, tmp_path):
    videos, rejected = scan(root, listed(root), memo=tmp_path / "memo.sqlite")
    assert paths(videos) == ["a/1.mp4", "a/ä 0.mp4", "b/0.mp4", "b/1.mp4", "b/2.mp4"]
    assert [video.label for video in videos] == [0, 0, 1, 1, 1]
    for video in videos:
        content = (root / video.path).read_bytes()
        assert (video.bytes, video.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert (video.width, video.height, video.frames, video.codec) == (WIDTH, HEIGHT, FRAMES, "mpeg4")
        assert video.duration_seconds == pytest.approx(FRAMES / 8)
    assert [(item.video, item.outcome) for item in rejected] == [
        ("a/garbage.mp4", "failed"),
        ("a/notes.txt", "filtered"),
    ]
    assert rejected[0].reason == "not a video file"
    assert {video.path: video.split for video in videos}.items() <= {
        e.path: e.split for e in listed(root).entries
    }.items()


def test_the_result_depends_on_neither_workers_nor_memo_nor_the_roots_spelling(root, tmp_path, monkeypatch):
    listing = listed(root)
    first = scan(root, listing, workers=1, memo=tmp_path / "memo.sqlite")
    assert scan(root, listing, workers=2, memo=tmp_path / "other.sqlite") == first
    monkeypatch.chdir(tmp_path)
    assert scan(Path("data"), listing, memo=tmp_path / "memo.sqlite") == first
    moved = shutil.move(root, tmp_path / "moved")
    assert scan(moved, listing, memo=tmp_path / "memo.sqlite") == first


def test_a_file_is_read_again_only_when_it_changed(root, tmp_path):
    memo = tmp_path / "memo.sqlite"
    listing = listed(root)
    before, _ = scan(root, listing, memo=memo)
    assert memo_rows(memo) == {"0.mp4", "1.mp4", "2.mp4", "ä 0.mp4"}
    changed, kept = root / "b/0.mp4", root / "b/1.mp4"
    kept_status = kept.stat()
    kept.write_bytes(bytes(kept_status.st_size))  # the memo cannot tell: same size, same time
    os.utime(kept, ns=(kept_status.st_atime_ns, kept_status.st_mtime_ns))
    render(changed, seed=99)
    after, rejected = scan(root, listing, memo=memo)
    assert paths(after) == paths(before)
    assert [new.path for new, old in zip(after, before, strict=True) if new != old] == ["b/0.mp4"]
    os.utime(kept)
    after, rejected = scan(root, listing, memo=memo)
    assert {"b/1.mp4"} == {item.video for item in rejected if item.outcome == "failed"} - {"a/garbage.mp4"}


def test_what_was_counted_otherwise_is_looked_at_again(root, tmp_path):
    memo = tmp_path / "memo.sqlite"
    before = scan(root, listed(root), memo=memo)
    other = (f"av {importlib.metadata.version('av')}", '"frames":', '"frames":9')
    with sqlite3.connect(memo) as database:
        database.execute("UPDATE files_1 SET reader = ?, content = replace(content, ?, ?)", other)
    assert scan(root, listed(root), memo=memo) == before


def test_progress_counts_every_file_once(root, tmp_path):
    memo = tmp_path / "memo.sqlite"
    calls: list[tuple[int, int]] = []
    scan(root, listed(root), memo=memo, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 6) for done in range(1, 7)]
    calls.clear()
    scan(root, listed(root), memo=memo, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(6, 6)]  # only the unreadable file is tried again


@pytest.mark.parametrize("kind", ["garbage", "folder", "readonly place"])
def test_a_memo_that_cannot_be_used_is_only_slower(root, tmp_path, kind, caplog):
    memo = tmp_path / "memo.sqlite"
    if kind == "garbage":
        memo.write_bytes(b"this is no database, whatever its name says " * 20)
    elif kind == "folder":
        memo.mkdir()
    else:
        memo = tmp_path / "file" / "memo.sqlite"
        (tmp_path / "file").touch()
    listing = listed(root)
    with caplog.at_level(logging.WARNING):
        videos, _ = scan(root, listing, memo=memo)
    assert len(videos) == 5
    assert len(caplog.records) == 1
    assert "files are hashed anew" in caplog.text


def test_a_memo_that_another_process_holds_is_only_slower(root, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("vidistill.tasks.videos.scan.MEMO_WAIT_SECONDS", 0.1)
    memo = tmp_path / "memo.sqlite"
    listing = listed(root)
    scan(root, listing, memo=memo)
    render(root / "b/0.mp4", seed=7)
    with sqlite3.connect(memo, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        videos, _ = scan(root, listing, memo=memo)
    assert len(videos) == 5
    assert "locked" in caplog.text


def test_two_processes_share_a_memo(root, tmp_path):
    memo = tmp_path / "memo.sqlite"
    code = (
        "import sys; from pathlib import Path\n"
        "from vidistill.tasks.videos.layouts import *; from vidistill.tasks.videos.scan import scan\n"
        "root, memo = map(Path, sys.argv[1:])\n"
        "videos, rejected = scan(root, list_videos(root, IndexParameters()), memo=memo)\n"
        "print(*(video.sha256 for video in videos))"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(root), str(memo)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert answers[0] == answers[1]
    assert answers[0][1] == ""
    assert len(answers[0][0].split()) == 5
    assert memo_rows(memo) == {"0.mp4", "1.mp4", "2.mp4", "ä 0.mp4"}


def test_files_that_go_or_are_emptied_after_the_listing_are_rejected(root, tmp_path):
    listing = listed(root)
    (root / "b/0.mp4").unlink()
    (root / "b/1.mp4").write_bytes(b"")
    videos, rejected = scan(root, listing, memo=tmp_path / "memo.sqlite")
    assert paths(videos) == ["a/1.mp4", "a/ä 0.mp4", "b/2.mp4"]
    outcomes = {item.video: (item.outcome, item.reason) for item in rejected}
    assert outcomes["b/0.mp4"] == ("failed", "cannot be read: No such file or directory")
    assert outcomes["b/1.mp4"] == ("failed", "an empty file")


@pytest.mark.parametrize("times", [1, 2])
def test_what_the_machine_may_have_failed_at_is_probed_again(root, tmp_path, monkeypatch, times):
    probe, asked = Decoder.probe, []

    def failing(decoder, path):
        asked.append(path.name)
        if path.name == "2.mp4" and asked.count(path.name) <= times:
            raise PassingError("the decoder crashed")
        return probe(decoder, path)

    monkeypatch.setattr(Decoder, "probe", failing)
    videos, rejected = scan(root, listed(root), memo=tmp_path / "memo.sqlite")
    assert ("b/2.mp4" in paths(videos)) == (times == 1)
    assert (("b/2.mp4", "the decoder crashed") in [(item.video, item.reason) for item in rejected]) == (times == 2)
    assert asked.count("2.mp4") == 2


def test_an_interrupted_scan_keeps_what_it_hashed(root, tmp_path):
    memo = tmp_path / "memo.sqlite"

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(root, listed(root), memo=memo, workers=1, progress=interrupt)
    with sqlite3.connect(memo) as database:
        assert database.execute("SELECT count(*) FROM files_1").fetchone()[0] >= 2


def test_a_table_is_scanned_from_its_folder(root, tmp_path):
    table = root / "table.csv"
    table.write_text("path,label,split\na/1.mp4,x,train\nb/0.mp4,y,train\nb/1.mp4,x,test\nb/2.mp4,y,test\n")
    videos, _ = scan(table, listed(table), memo=tmp_path / "memo.sqlite")
    assert paths(videos) == ["a/1.mp4", "b/0.mp4", "b/1.mp4", "b/2.mp4"]
    with pytest.raises(RequestError, match="does not exist"):
        scan(root / "nowhere", listed(table), memo=tmp_path / "memo.sqlite")


def test_odd_files_end_as_videos_or_with_a_reason(data_root, tmp_path):
    table = tmp_path / "odd" / "table.csv"
    table.parent.mkdir()
    names = sorted(path.name for path in (data_root / "odd").iterdir() if path.is_file())
    for name in names:
        shutil.copyfile(data_root / "odd" / name, table.parent / name)
    rows = [f'"{name}",{"ab"[number % 2]},{"train" if number % 4 else "test"}' for number, name in enumerate(names)]
    table.write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")
    videos, rejected = scan(table, listed(table), memo=tmp_path / "memo.sqlite")
    rejected_names = {item.video for item in rejected}
    assert set(paths(videos)) | rejected_names == set(names)
    assert not set(paths(videos)) & rejected_names
    assert {"audio_only.mp4", "garbage.mp4", "no_moov.mp4", "one_byte.avi", "zero_length.mp4"} <= rejected_names
    assert {"v_space and ünïcode (HQ)!.mp4", "vp9.webm", "vfr.mp4", "one_frame.mp4"} <= set(paths(videos))


def test_listing_and_scanning_load_no_heavy_library():
    code = (
        "import sys, vidistill.tasks.videos.layouts, vidistill.tasks.videos.scan\n"
        "print(*{'av', 'cv2', 'pandas', 'prefect', 'pyarrow', 'sklearn', 'torch', 'torchvision'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
