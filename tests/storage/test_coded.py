from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from vidistill.storage import coded
from vidistill.storage.distilled import DistilledSet, materialised
from vidistill.storage.errors import ArtifactDamaged, StoreError
from vidistill.storage.streams import encode

CLASSES = ("walk", "run", "jump")


def made(n: int = 4, views: int = 1, logits: bool = True, size: int = 24) -> DistilledSet:
    time, y, x = np.mgrid[0:5, 0:size, 0:size]
    clips = np.stack(
        [np.stack([(3 * x + y + 9 * time + 40 * i + 60 * c) % 256 for c in range(3)], -1) for i in range(n)]
    )
    rng = np.random.default_rng(0)
    boxes = rng.integers(120, 256, (n, views - 1, 3), dtype=np.uint8)
    stored = coded.stored_of(encode(clips.astype(np.uint8), crf=40), boxes)
    blank = DistilledSet(
        clips_NTHWC=materialised("coded", stored, (n * views, 5, size, size, 3)),
        labels_N=(np.arange(n) % 3).repeat(views),
        classes=CLASSES,
        form="coded",
        stored=stored,
    )
    return blank.with_logits(rng.normal(0, 5, (n * views, 3)).astype(np.float32)) if logits else blank


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("logits", [False, True])
def test_a_coded_set_reads_back_as_it_was(tmp_path, views, logits):
    before = made(views=views, logits=logits)
    before.save(tmp_path)
    after = DistilledSet.load(tmp_path)
    assert after.clips_an_instance == views
    for name in ("clips_NTHWC", "labels_N", "logits_NK"):
        left, right = getattr(before, name), getattr(after, name)
        assert (left is None) == (right is None)
        if left is not None:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("logits", [False, True])
def test_its_bytes_are_those_of_its_one_file(tmp_path, logits):
    before = made(views=2, logits=logits)
    before.save(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    files = {path.name: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    assert set(files) == {"set.coded", "set.json", "manifest.json"}
    expected = coded.size_of(4, 2, 3, logits) + before.stored["stream"].size
    assert DistilledSet.training_bytes(tmp_path) == files["set.coded"] == expected
    assert DistilledSet.training_bytes(tmp_path, logits=False) == expected - logits * 4 * 2 * 3
    assert coded.size_of(4, 2, 3, True) - coded.size_of(4, 2, 3, False) == 4 * 2 * 3


def test_logits_are_within_half_a_step_and_stay_as_they_were_read():
    logits = np.random.default_rng(0).normal(0, 7, (50, 10)).astype(np.float32)
    read = coded.rounded(logits)
    assert np.abs(read - logits).max() <= np.abs(logits).max() / 127
    assert len(np.unique(read)) <= 255
    np.testing.assert_array_equal(coded.rounded(read), read)
    assert (coded.rounded(np.zeros((2, 3), np.float32)) == 0).all()


def test_views_are_parts_of_the_picture():
    clip = np.arange(16 * 16, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    np.testing.assert_array_equal(coded.part(clip, np.array([255, 9, 9], np.uint8)), clip)
    corner = coded.part(clip, np.array([128, 255, 255], np.uint8))
    assert corner.shape == clip.shape
    assert corner[0, 0, 0, 0] == clip[0, 8, 8, 0]
    assert corner[0, -1, -1, 0] == clip[0, 15, 15, 0]
    before = made(views=2)
    np.testing.assert_array_equal(
        before.clips_NTHWC[3], coded.part(before.clips_NTHWC[2], before.stored["boxes"][1, 0])
    )


@pytest.mark.parametrize(("kept", "frames"), [(4, 8), (3, 9), (1, 4), (8, 4), (12, 4), (5, 5)])
def test_frames_of_other_counts(kept, frames):
    """Of more frames each shift; of fewer what numpy's interpolation in time gives, rounded."""
    clips = np.random.default_rng(0).integers(0, 256, (2, kept, 3, 5, 3), dtype=np.uint8)
    found = coded.shifts(clips, frames)
    if kept >= frames:
        step = kept // frames
        places = [[first + step * t for t in range(frames)] for first in range(step)]
        np.testing.assert_array_equal(found, [clips[:, place] for place in places])
        return
    (made,) = found
    times = np.arange(frames) * kept / frames
    exact = np.apply_along_axis(lambda values: np.interp(times, np.arange(kept), values), 1, clips)
    assert made.shape == exact.shape
    assert np.abs(made - exact).max() <= 0.51


def test_a_set_that_was_cut_or_flipped_is_named(tmp_path):
    made(views=2).save(tmp_path)
    file = tmp_path / "set.coded"
    data = file.read_bytes()
    for place in (*range(60), len(data) // 2, len(data) - 1):
        flipped = data[:place] + bytes([data[place] ^ 8]) + data[place + 1 :]
        for broken in (data[:place], flipped):
            file.write_bytes(broken)
            with pytest.raises((ArtifactDamaged, StoreError), match=r"cut short|ends|changed|no stream|newer"):
                DistilledSet.load(tmp_path)


def test_a_newer_version_is_refused_in_one_sentence(tmp_path):
    made().save(tmp_path)
    data = (tmp_path / "set.coded").read_bytes()
    (tmp_path / "set.coded").write_bytes(data[:4] + b"\x07" + data[5:])
    with pytest.raises(
        StoreError, match=r"is of version 7, and this vidistill reads versions up to 1: install a newer"
    ):
        DistilledSet.load(tmp_path)


def test_it_loads_without_tasks_flows_and_networks(tmp_path):
    before = made(views=2)
    before.save(tmp_path)
    code = (
        "import json, sys; from pathlib import Path; from vidistill.storage.distilled import DistilledSet; "
        "made = DistilledSet.load(Path(sys.argv[1])); "
        "print(json.dumps([int(made.clips_NTHWC.sum()), float(made.logits_NK.sum()), *sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pixels, logits, *modules = json.loads(done.stdout)
    assert pixels == int(before.clips_NTHWC.sum())
    assert logits == pytest.approx(float(before.logits_NK.sum()))
    assert not {"torch", "prefect", "vidistill.tasks", "vidistill.flows", "vidistill.models"} & set(modules)


def test_hundreds_of_classes_have_two_bytes_a_label(tmp_path):
    stored = coded.stored_of(encode(np.zeros((2, 1, 16, 16, 3), np.uint8), crf=60))
    names = tuple(str(number) for number in range(400))
    DistilledSet(np.zeros((2, 1, 16, 16, 3), np.uint8), np.array([3, 399]), names, form="coded", stored=stored).save(
        tmp_path
    )
    assert DistilledSet.load(tmp_path).labels_N.tolist() == [3, 399]
