"""The table of a set: whose pixels its mean and deviation are."""

from __future__ import annotations

import numpy as np
from method_contract import Bench

from vidistill.storage.clips import Clips
from vidistill.tasks.stage import run_job
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
