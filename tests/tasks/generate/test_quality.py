"""What is said of a pool: what the teacher knows of it, how real it is, and whether it is copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import tiny
import torch

from vidistill.models.autoencoder import FrameAutoencoder, to_clips, to_frames
from vidistill.storage.clips import Clips
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.generate.quality import Quality, load_quality, quality_job
from vidistill.tasks.stage import Runtime, run_job

ROWS = [3, 8, 0, 5, 10, 1]  # the training clips that are in the pool


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clips(folder: Path) -> Clips:
    return tiny.tiny_clips(folder, labels=(0, 1) * 6)


@pytest.fixture(scope="module")
def codec(clips: Clips) -> FrameAutoencoder:
    return tiny.tiny_autoencoder(clips, steps=300)


@pytest.fixture(scope="module")
def pooled_NTHWC(clips: Clips, codec: FrameAutoencoder, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Half of it: training clips, encoded and decoded. The other half: generated anew."""
    others = tiny.tiny_clips(tmp_path_factory.mktemp("others"), labels=(0, 1) * 3, seed=4)
    with torch.inference_mode():
        frames_XCHW = codec.decode(codec.encode(to_frames(torch.from_numpy(clips.read(ROWS)))))
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


def test_reconstructions_of_training_clips_count_as_copies(found: Quality) -> None:
    assert found.copied == 0.5
    assert [one.train_row for one in found.nearest[:6]] == ROWS
    assert 0 < max(one.levels for one in found.nearest[:6]) < 10
    assert min(one.levels for one in found.nearest[6:]) > 20
    assert found.control == 1


def test_an_autoencoder_that_blurs_hides_copies_and_the_control_says_so(
    folder: Path, clips: Clips, pooled_NTHWC: np.ndarray, tmp_path: Path
) -> None:
    blurring = tiny.tiny_autoencoder(clips, steps=0)
    assert measured(folder, pooled_NTHWC, blurring, tmp_path / "store").control < 0.5


def test_distances_are_those_of_the_teachers_features(clips: Clips, pooled_NTHWC: np.ndarray, found: Quality) -> None:
    made_ND, real_MD = features(pooled_NTHWC).numpy(), features(clips.read(range(12))).numpy()
    evenly = [0, 2, 4, 6, 8, 11]  # six of the twelve, as half of the training clips are
    assert found.fvd == pytest.approx(frechet(made_ND[evenly], real_MD[::2]), rel=1e-3)
    assert found.fvd_real == pytest.approx(frechet(real_MD[::2], real_MD[1::2]), rel=1e-3)
    for one in found.nearest:
        away = [float(np.linalg.norm(made_ND[one.row] - real_D)) for real_D in real_MD]
        assert (one.train_row, one.distance) == (int(np.argmin(away)), pytest.approx(min(away), rel=1e-3))
    among = [min(np.linalg.norm(real_MD[i] - real_MD[j]) for j in range(12) if j != i) for i in range(12)]
    assert found.nearest_real == pytest.approx(np.median(among), rel=1e-3)


def test_accuracy_is_the_share_of_clips_whose_class_the_teacher_names(pooled_NTHWC: np.ndarray, found: Quality) -> None:
    right = tiny.tiny_teacher().double().head(features(pooled_NTHWC)).argmax(1).numpy() == np.arange(12) // 6
    assert 0 < right.mean() < 1
    assert found.accuracy == right.mean()
    assert list(found.accuracy_by_class.values()) == [right[:6].mean(), right[6:].mean()]
