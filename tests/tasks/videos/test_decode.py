"""The table of a set: whose pixels its mean and deviation are."""

from __future__ import annotations

import numpy as np
import pytest
from method_contract import Bench

from vidistill.storage.clips import OUTCOMES, Clips, open_clip_array
from vidistill.tasks.stage import run_job
from vidistill.tasks.videos import decode as module
from vidistill.tasks.videos.decode import DecodeParameters, block_jobs, clips_job

DECODE = DecodeParameters(frames=4, interval=1, size=48, views=2, max_lost_share=0.5)


def pixels(clips: Clips) -> np.ndarray:
    """Of every centre clip, in 0…1: (N, 3)."""
    return clips.read(range(len(clips))).reshape(-1, 3) / 255


def test_both_splits_are_normalised_by_the_centre_clips_of_the_training_split(bench: Bench) -> None:
    table, made = bench.given.table, {}
    for split in ("train", "test"):
        blocks = block_jobs(table, DECODE, split)
        job = clips_job(bench.given.index, DECODE, split, blocks, made["train"].ref if made else None)
        for one in (*blocks, job):
            run_job(one, bench.runtime)
        made[split] = job
    train, test = (Clips(bench.store, job.ref) for job in made.values())
    assert (train.table.views, test.table.views) == (2, 1)
    np.testing.assert_allclose(train.table.mean, pixels(train).mean(0), rtol=1e-6)
    np.testing.assert_allclose(train.table.std, pixels(train).std(0), rtol=1e-6)
    assert (test.table.mean, test.table.std) == (train.table.mean, train.table.std)
    others = train.read(range(len(train)), 1).reshape(-1, 3) / 255
    for other in (pixels(test), others):
        assert np.abs(other.mean(0) - train.table.mean).max() > 1e-4


def test_a_split_of_many_clips_has_a_file_a_block(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clips and outcomes are those of a block with a file a clip, a failed video among them."""
    table = bench.given.table
    plain = block_jobs(table, DECODE, "train")
    monkeypatch.setattr(module, "SHARDED_FROM_CLIPS", len(table.of_split("train")) * DECODE.views - 1)
    sharded = block_jobs(table, DECODE, "train")
    assert "sharded" not in plain[0].parameters
    assert not {job.ref for job in plain} & {job.ref for job in sharded}
    for one, other in zip(plain, sharded, strict=True):
        a, b = (bench.store.folder(run_job(job, bench.runtime)[0]) for job in (one, other))
        assert (a / OUTCOMES).read_text() == (b / OUTCOMES).read_text()
        np.testing.assert_array_equal(open_clip_array(a)[...], open_clip_array(b)[...])
        assert open_clip_array(b).chunks[0] == 1
        assert len([path for path in (b / "clips" / "c").rglob("*") if path.is_file()]) == 1
    monkeypatch.setattr(module, "SHARDED_FROM_CLIPS", len(table.of_split("train")) * DECODE.views)
    assert [job.ref for job in block_jobs(table, DECODE, "train")] == [job.ref for job in plain]
