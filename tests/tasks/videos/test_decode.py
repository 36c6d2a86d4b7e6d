"""The table of a set: whose pixels its mean and deviation are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from method_contract import Bench

from vidistill.storage.clips import OUTCOMES, Clips, open_clip_array
from vidistill.storage.errors import ArtifactDamaged, RunError
from vidistill.tasks.stage import run_job
from vidistill.tasks.videos import decode as module
from vidistill.tasks.videos.decode import ClipsParameters, DecodeParameters, block_jobs, clips_job
from vidistill.tasks.videos.decoder import Decoder, PassingError, Sampling, VideoError
from vidistill.tasks.videos.files import Rejected

DECODE = DecodeParameters(frames=4, interval=1, size=48, views=2, max_lost_share=0.5)


def pixels(clips: Clips) -> np.ndarray:
    """Of every centre clip, in 0…1: (N, 3)."""
    return clips.read(range(len(clips))).reshape(-1, 3) / 255


@pytest.fixture
def lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> str:
    """A training video that cannot be decoded."""
    clips, lost = Decoder.clips, bench.given.table.of_split("train")[0].path

    def failing(decoder: Decoder, path: Path, sampling: Sampling) -> np.ndarray:
        if path == Path(bench.runtime.data) / lost:
            raise VideoError("no frames")
        return clips(decoder, path, sampling)

    monkeypatch.setattr(Decoder, "clips", failing)
    return lost


def test_both_splits_are_normalised_by_the_centre_clips_of_the_training_split(bench: Bench, lost: str) -> None:
    """By those that there are: a lost video is no black one."""
    table, decode, made = bench.given.table, DECODE.model_copy(update={"size": 38}), {}
    for split in ("train", "test"):
        blocks = block_jobs(table, decode, split)
        job = clips_job(bench.given.index, decode, split, blocks, made["train"].ref if made else None)
        for one in (*blocks, job):
            run_job(one, bench.runtime)
        made[split] = job
    train, test = (Clips(bench.store, job.ref) for job in made.values())
    assert (train.table.views, test.table.views) == (2, 1)
    assert [one.video for one in train.table.rejected] == [lost]
    np.testing.assert_allclose(train.table.mean, pixels(train).mean(0), rtol=1e-6)
    np.testing.assert_allclose(train.table.std, pixels(train).std(0), rtol=1e-6)
    assert (test.table.mean, test.table.std) == (train.table.mean, train.table.std)
    others = train.read(range(len(train)), 1).reshape(-1, 3) / 255
    for other in (pixels(test), others):
        assert np.abs(other.mean(0) - train.table.mean).max() > 1e-4


def test_a_split_of_many_clips_has_a_file_a_block(bench: Bench, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clips and outcomes are those of a block with a file a clip, a failed video among them."""
    table, decode, failed = bench.given.table, DECODE.model_copy(update={"size": 39}), []
    plain = block_jobs(table, decode, "train")
    monkeypatch.setattr(module, "SHARDED_FROM_CLIPS", len(table.of_split("train")) * decode.views - 1)
    sharded = block_jobs(table, decode, "train")
    assert "sharded" not in plain[0].parameters
    assert not {job.ref for job in plain} & {job.ref for job in sharded}
    for one, other in zip(plain, sharded, strict=True):
        a, b = (bench.store.folder(run_job(job, bench.runtime)[0]) for job in (one, other))
        assert (a / OUTCOMES).read_text() == (b / OUTCOMES).read_text()
        for outcome in json.loads((b / OUTCOMES).read_text())["outcomes"]:
            if (row := outcome["row"]) is None:
                failed.append(outcome["path"])
            else:
                views = slice(row, row + decode.views)
                np.testing.assert_array_equal(open_clip_array(a)[views], open_clip_array(b)[views])
        assert open_clip_array(b).chunks[0] == 1
        assert len([path for path in (b / "clips" / "c").rglob("*") if path.is_file()]) == 1
    assert failed == [lost]
    monkeypatch.setattr(module, "SHARDED_FROM_CLIPS", len(table.of_split("train")) * decode.views)
    assert [job.ref for job in block_jobs(table, decode, "train")] == [job.ref for job in plain]


def test_lost_videos_are_a_share_of_all_there_are(bench: Bench) -> None:
    """Of which split those are that cannot be read nobody knows: a small test split does not answer for them."""
    lost = tuple(Rejected(video=f"{number}.mp4", outcome="failed", reason="no video") for number in range(40))
    train, test = (bench.given.table.of_split(split)[0] for split in ("train", "test"))
    table = bench.given.table.model_copy(update={"rejected": lost, "videos": (train,) * 1000 + (test,) * 250})
    labels = set(range(len(table.classes)))
    allowed = ClipsParameters(split="test", views=1, max_lost_share=0.1)
    module._check_losses(table, allowed, labels, [])
    with pytest.raises(RunError, match=r"40 of 1290 videos \(3%\) cannot be used"):
        module._check_losses(table, allowed.model_copy(update={"max_lost_share": 0.03}), labels, [])
    broken = [{"path": "a.mp4", "reason": "no frames"}] * 30  # of the test's 250 videos more than a tenth
    with pytest.raises(RunError, match=r"30 of 250 videos \(12%\) cannot be used"):
        module._check_losses(table, allowed, labels, broken)


def test_a_video_that_changed_since_it_was_indexed_is_not_filed_as_what_it_was(bench: Bench, tmp_path: Path) -> None:
    data = Path(shutil.copytree(bench.runtime.data, tmp_path / "videos"))
    job = block_jobs(bench.given.table, DECODE.model_copy(update={"size": 32}), "train")[0]
    with (data / job.parameters["videos"][0]["path"]).open("ab") as file:
        file.write(b"more of it")
    with pytest.raises(RunError, match="changed since it was indexed: run the same command again"):
        run_job(job, bench.runtime.model_copy(update={"data": str(data)}))
    assert not bench.store.has(job.ref)


@pytest.mark.parametrize("size", [33, 34])
def test_a_video_that_is_gone_or_another_of_its_size_is_no_broken_one(bench: Bench, tmp_path: Path, size: int) -> None:
    """The block is kept by what its videos hold: one that is there again must not be remembered as unreadable."""
    data = Path(shutil.copytree(bench.runtime.data, tmp_path / "videos"))
    job = block_jobs(bench.given.table, DECODE.model_copy(update={"size": size}), "train")[0]
    path = data / job.parameters["videos"][0]["path"]
    whole, elsewhere = path.read_bytes(), bench.runtime.model_copy(update={"data": str(data)})
    path.write_bytes(bytes(len(whole))) if size == 33 else path.unlink()
    with pytest.raises(RunError, match="changed since it was" if size == 33 else "can be read no longer .No such file"):
        run_job(job, elsewhere)
    assert not bench.store.has(job.ref)
    path.write_bytes(whole)
    outcomes = json.loads((bench.store.folder(run_job(job, elsewhere)[0]) / OUTCOMES).read_text())["outcomes"]
    assert outcomes[0]["row"] == 0


def test_another_video_of_the_same_size_is_not_filed_as_the_one_that_was_indexed(bench: Bench, tmp_path: Path) -> None:
    """It can be decoded, so that only its content tells."""
    data = Path(shutil.copytree(bench.runtime.data, tmp_path / "videos"))
    job = block_jobs(bench.given.table, DECODE.model_copy(update={"size": 36}), "train")[0]
    larger, smaller = (
        data / pick(job.parameters["videos"], key=lambda one: one["bytes"])["path"] for pick in (max, min)
    )
    larger.write_bytes(smaller.read_bytes().ljust(larger.stat().st_size, b"\0"))
    with Decoder() as decoder:
        assert decoder.clips(larger, Sampling()).any()
    with pytest.raises(RunError, match=f"{larger.name} changed since it was indexed"):
        run_job(job, bench.runtime.model_copy(update={"data": str(data)}))
    assert not bench.store.has(job.ref)


def test_what_the_machine_may_have_failed_at_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once at once; and where a set has lost too many, what failed twice is decoded by the next run.

    A set that did without it still has its own clips.
    """
    decode = DECODE.model_copy(update={"size": 35, "max_lost_share": 0.01})
    blocks, clips, asked = block_jobs(bench.given.table, decode, "train"), Decoder.clips, []
    busy = {blocks[0].parameters["videos"][0]["path"]: 1, blocks[1].parameters["videos"][0]["path"]: 2}

    def failing(decoder: Decoder, path: Path, sampling: Sampling) -> np.ndarray:
        name = path.relative_to(bench.runtime.data).as_posix()
        asked.append(name)
        if asked.count(name) <= busy.get(name, 0):
            raise PassingError("the decoder crashed")
        return clips(decoder, path, sampling)

    monkeypatch.setattr(Decoder, "clips", failing)
    job, without = (
        clips_job(bench.given.index, decode.model_copy(update={"max_lost_share": share}), "train", blocks)
        for share in (0.01, 0.5)
    )
    for one in (*blocks, without):
        run_job(one, bench.runtime)
    kept = Clips(bench.store, without.ref)
    before_NTHWC = kept.read(range(len(kept)))
    with pytest.raises(RunError, match=r"1 of 6 videos .*the decoder crashed"):
        run_job(job, bench.runtime)
    assert [bench.store.has(block.ref) for block in blocks[:2]] == [True, False]
    for one in (*blocks, job):
        run_job(one, bench.runtime)
    assert len(Clips(bench.store, job.ref)) == len(bench.given.table.of_split("train")) == len(kept) + 1
    assert np.array_equal(Clips(bench.store, without.ref).read(range(len(kept))), before_NTHWC)
    assert {name: asked.count(name) for name in busy} == dict(zip(busy, (2, 3), strict=True))


def test_a_video_that_is_lost_when_its_block_is_made_again_is_no_black_clip(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = DECODE.model_copy(update={"size": 37})
    blocks = block_jobs(bench.given.table, decode, "train")
    job = clips_job(bench.given.index, decode, "train", blocks)
    for one in (*blocks, job):
        run_job(one, bench.runtime)
    before_NTHWC = Clips(bench.store, job.ref).read(range(6))
    with monkeypatch.context() as busy:
        busy.setattr(Decoder, "clips", raises(PassingError("the decoder crashed")))
        bench.store.discard(blocks[1].ref)
        run_job(blocks[1], bench.runtime)
    with pytest.raises(ArtifactDamaged, match=f"could not be decoded when {blocks[1].ref} was made again"):
        Clips(bench.store, job.ref).preload()
    run_job(blocks[1], bench.runtime)
    assert np.array_equal(Clips(bench.store, job.ref).read(range(6)), before_NTHWC)


def raises(error: Exception) -> Callable[..., np.ndarray]:
    def clips(*_: Any) -> np.ndarray:
        raise error

    return clips
