"""What is said of a pool: what the teacher knows of it, how real it is, and whether it is copied."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import tiny
import torch
from PIL import Image

from vidistill.models.autoencoder import FrameAutoencoder, to_clips, to_frames
from vidistill.storage.clips import Clips
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.generate import quality
from vidistill.tasks.generate.quality import (
    Quality,
    first_half,
    frechet_distance,
    load_quality,
    nearest,
    quality_job,
    thumbnail,
)
from vidistill.tasks.stage import Runtime, run_job

COUNT = 40
ROWS = [3, 8, 0, 5, 10, 1]  # the training clips that are in the pool,
VIEWS, MIRRORED = [0, 1, 0, 1, 0, 1], [False, False, True, True, False, True]  # as what the generator learned from


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clips(folder: Path) -> Clips:
    return tiny.tiny_clips(folder, labels=(0, 1) * (COUNT // 2))


@pytest.fixture(scope="module")
def codec(clips: Clips) -> FrameAutoencoder:
    return tiny.tiny_autoencoder(clips, steps=300)


@pytest.fixture(scope="module")
def pooled_NTHWC(clips: Clips, codec: FrameAutoencoder, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Half of it: training clips, encoded and decoded. The other half: generated anew."""
    others = tiny.tiny_clips(tmp_path_factory.mktemp("others"), labels=(0, 1) * 3, seed=4)
    seen_NTHWC = clips.read(ROWS, VIEWS)
    seen_NTHWC[MIRRORED] = seen_NTHWC[MIRRORED][:, :, :, ::-1]
    with torch.inference_mode():
        frames_XCHW = codec.decode(codec.encode(to_frames(torch.from_numpy(seen_NTHWC))))
    return np.concatenate([to_clips(frames_XCHW, tiny.FRAMES).numpy(), others.read(range(6))])


def measured(folder: Path, pooled_NTHWC: np.ndarray, codec: FrameAutoencoder, copy: Path) -> Quality:
    shutil.copytree(folder, copy)
    store = Store(copy)
    with pytest.MonkeyPatch.context() as patch:
        tiny.networks(patch, tiny.TinyTeacher)
        refs = ArtifactRef(kind="clips", key="c"), tiny.kept_teacher(store, tiny.tiny_teacher())
        job = quality_job(tiny.tiny_pool(store, pooled_NTHWC, tiny.kept_autoencoder(store, codec)), *refs)
        job = job.model_copy(update={"parameters": job.parameters | {"precision": "fp32"}})
        run_job(job, Runtime(store=str(store.root), threads=1))
    return load_quality(store.folder(job.ref))


@pytest.fixture(scope="module")
def found(
    folder: Path, pooled_NTHWC: np.ndarray, codec: FrameAutoencoder, tmp_path_factory: pytest.TempPathFactory
) -> Quality:
    return measured(folder, pooled_NTHWC, codec, tmp_path_factory.mktemp("measured") / "store")


def features(clips_NTHWC: np.ndarray) -> torch.Tensor:
    x_NCTHW = torch.from_numpy((clips_NTHWC / 255 - tiny.MEAN) / tiny.STD).permute(0, 4, 1, 2, 3)
    return tiny.tiny_teacher().double().embed(x_NCTHW)


def frechet(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    cov_a, cov_b = np.cov(a_ND.T), np.cov(b_MD.T)
    cross = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return float(((a_ND.mean(0) - b_MD.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * cross))


def test_reconstructions_of_training_clips_count_as_copies(found: Quality, clips: Clips) -> None:
    assert found.copied == 0.5
    assert [one.train_row for one in found.nearest[:6]] == ROWS
    assert min(one.correlation for one in found.nearest[:6]) > 0.95
    assert max(one.correlation for one in found.nearest[6:]) < 0.9
    assert found.control == 1
    assert [(one.view, one.mirrored) for one in found.nearest[:6]] == [*zip(VIEWS, MIRRORED, strict=True)]
    first, turned = found.nearest[0], found.nearest[3]
    np.testing.assert_array_equal(first.shown(clips), clips.read([ROWS[0]], VIEWS[0])[0])
    np.testing.assert_array_equal(turned.shown(clips), clips.read([ROWS[3]], VIEWS[3])[0][:, :, ::-1])


def test_an_autoencoder_that_blurs_hides_copies_and_the_control_says_so(
    folder: Path, clips: Clips, pooled_NTHWC: np.ndarray, tmp_path: Path
) -> None:
    blurring = tiny.tiny_autoencoder(clips, steps=0)
    torch.nn.init.zeros_(blurring.decoder[-1].weight)
    assert measured(folder, pooled_NTHWC, blurring, tmp_path / "store").control == 0


def test_the_frechet_distance_is_that_of_the_teachers_features(
    clips: Clips, pooled_NTHWC: np.ndarray, found: Quality
) -> None:
    made_ND, real_MD = features(pooled_NTHWC).numpy(), features(clips.read(range(COUNT))).numpy()
    evenly = np.linspace(0, 19, 12).astype(int)  # of half of the training clips, as many as the pool has
    assert found.fvd == pytest.approx(frechet(made_ND, real_MD[::2]), rel=1e-3)
    assert found.fvd_real == pytest.approx(frechet(real_MD[::2], real_MD[1::2][evenly]), rel=1e-3)


def test_the_nearest_clip_is_the_one_that_correlates_most(
    clips: Clips, pooled_NTHWC: np.ndarray, found: Quality
) -> None:
    views = [clips.read(range(COUNT), view) for view in range(tiny.VIEWS)]  # no larger than thumbnails are
    looks = [*views, *(view_NTHWC[:, :, :, ::-1] for view_NTHWC in views)]

    def alike_to_all(clip_THWC: np.ndarray) -> np.ndarray:
        """With each training clip, in the look that is most alike."""
        each = [[np.corrcoef(clip_THWC.ravel(), real_THWC.ravel())[0, 1] for real_THWC in look] for look in looks]
        return np.max(each, axis=0)

    for one in found.nearest:
        alike_N = alike_to_all(pooled_NTHWC[one.row])
        assert (one.train_row, one.correlation) == (np.argmax(alike_N), pytest.approx(alike_N.max(), rel=1e-3))
    alike_NN = np.stack([alike_to_all(clip_THWC) for clip_THWC in views[0]]) - 2 * np.eye(COUNT)
    assert found.nearest_real == pytest.approx(np.median(alike_NN.max(1)), rel=1e-3)


def test_a_thumbnail_is_the_clip_in_small_whatever_the_contrast() -> None:
    clip_THWC = np.random.default_rng(0).integers(0, 101, (3, 28, 28, 3), dtype=np.uint8)
    small = [Image.fromarray(frame_HWC).resize((14, 14), Image.Resampling.BILINEAR) for frame_HWC in clip_THWC]
    assert np.corrcoef(thumbnail(clip_THWC), np.ravel(small))[0, 1] > 0.999
    assert thumbnail(clip_THWC) @ thumbnail(2 * clip_THWC + 50) == pytest.approx(1, abs=1e-3)
    assert not thumbnail(np.full_like(clip_THWC, 9)).any()


def test_clips_of_a_group_are_not_each_others_neighbours() -> None:
    """As scenes that were cut into several clips are."""
    clips_NP = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0.2, 0.8]], dtype=np.float32)
    groups_N = np.array(["a", "a", "b", "b"])
    rows_N, _, alike_N = nearest(clips_NP, [(0, 0, clips_NP)], groups_N, groups_N)
    assert rows_N.tolist() == [3, 3, 1, 1]
    assert alike_N == pytest.approx([0.2, 0.26, 0.1, 0.26])
    looks = [(0, 0, clips_NP), (1, 0, 2 * clips_NP[[2, 3, 0, 1]])]
    halves = [(look, first, b_MP[first : first + 2]) for look, _, b_MP in looks for first in (0, 2)]
    for order in (looks, looks[::-1], halves, halves[::-1]):
        rows_N, look_N, alike_N = nearest(clips_NP, order, groups_N, groups_N)
        assert look_N.tolist() == [1] * 4
        assert rows_N.tolist() == [2, 2, 0, 0]
        assert alike_N == pytest.approx([2, 1.8, 2, 1.6])


def test_few_thumbnails_are_held_and_the_nearest_clip_stays(
    folder: Path, clips: Clips, pooled_NTHWC: np.ndarray, codec: FrameAutoencoder, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(quality, "AT_ONCE", 8)
    at_once = measured(folder, pooled_NTHWC, codec, tmp_path / "at once")
    sizes: list[tuple[int, int]] = []

    def noted(a_NP: np.ndarray, looks: Iterable[quality.Look], *groups: np.ndarray) -> quality.Nearest:
        looks = list(looks)
        sizes.append((len(a_NP), max(len(b_RP) for *_, b_RP in looks)))
        return nearest(a_NP, looks, *groups)

    monkeypatch.setattr(quality, "PRELOAD_BYTES", 17 * 4 * clips.read([0]).size)  # no larger than thumbnails are
    monkeypatch.setattr(quality, "nearest", noted)
    assert measured(folder, pooled_NTHWC, codec, tmp_path / "few") == at_once
    assert sizes[:2] == [(16, 8), (16, 8)]
    assert sum(size for size, _ in sizes) == 12 + 2 * COUNT


def test_halves_of_the_training_clips_have_no_common_group() -> None:
    assert first_half(np.array(["b", "b", "a", "c", "a", "d"])).tolist() == [True, True, False, True, False, False]
    assert first_half(np.array(["x", "z", "y", "w"])).tolist() == [True, False, True, False]


def test_a_single_clip_has_no_frechet_distance() -> None:
    rows_ND = np.random.default_rng(0).normal(size=(5, 3))
    assert frechet_distance(rows_ND, rows_ND[:1]) is frechet_distance(rows_ND[:1], rows_ND) is None
    assert frechet_distance(rows_ND, rows_ND[:2]) > 0  # type: ignore[operator]


def test_accuracy_is_the_share_of_clips_whose_class_the_teacher_names(pooled_NTHWC: np.ndarray, found: Quality) -> None:
    right = tiny.tiny_teacher().double().head(features(pooled_NTHWC)).argmax(1).numpy() == np.arange(12) // 6
    assert 0 < right.mean() < 1
    assert found.accuracy == right.mean()
    assert list(found.accuracy_by_class.values()) == [right[:6].mean(), right[6:].mean()]
