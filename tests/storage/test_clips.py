from __future__ import annotations

import shutil

import numpy as np
import pytest
import tiny

from vidistill.storage import clips as clips_module
from vidistill.storage import store as store_module
from vidistill.storage.clips import (
    TABLE,
    Clips,
    ClipTable,
    ClipVideo,
    channel_statistics,
    create_clip_array,
    open_clip_array,
)
from vidistill.storage.errors import ArtifactDamaged, ArtifactNotFound
from vidistill.storage.pool import Pool
from vidistill.storage.store import ArtifactRef, Manifest, Store

VIEWS, T, SIZE = 2, 3, 8
LABELS = (0, 0, 1, 1, 1)
BLOCK_OF = (0, 0, 0, 1, 1)


@pytest.fixture
def blocks_NVTHWC():
    """Five videos with two views each, in path order."""
    return np.random.default_rng(0).integers(0, 256, (len(LABELS), VIEWS, T, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def ref(store, blocks_NVTHWC):
    """A clips artifact over two blocks of three and two videos."""
    made = []
    for block in (0, 1):
        videos = [number for number, of in enumerate(BLOCK_OF) if of == block]
        manifest = Manifest(kind="block", key=f"b{block}", version=1, parameters={}, inputs={})
        with store.writing(manifest) as attempt:
            rows_NTHWC = blocks_NVTHWC[videos].reshape(-1, T, SIZE, SIZE, 3)
            create_clip_array(attempt.folder, rows_NTHWC.shape)[:] = rows_NTHWC
        made.append(manifest.ref)
    videos = tuple(
        ClipVideo(
            path=f"{label}/{number}.avi", label=label, group=None, duration_seconds=1.0,
            block=BLOCK_OF[number], row=BLOCK_OF[:number].count(BLOCK_OF[number]) * VIEWS,
        )
        for number, label in enumerate(LABELS)
    )  # fmt: skip
    table = ClipTable(
        classes=("walk", "run"), flips=True, views=VIEWS, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2),
        videos=videos, rejected=(),
    )  # fmt: skip
    manifest = Manifest(kind="clips", key="c", version=1, parameters={}, inputs={"blocks": made})
    with store.writing(manifest) as attempt:
        (attempt.folder / TABLE).write_text(table.model_dump_json())
    return manifest.ref


def test_a_set_knows_its_rows(store, ref):
    clips = Clips(store, ref)
    assert len(clips) == 5
    assert clips.shape_THWC == (T, SIZE, SIZE, 3)
    assert clips.classes == ("walk", "run")
    assert clips.labels_N.dtype == np.int64
    assert clips.labels_N.tolist() == list(LABELS)
    assert clips.rows_of(1).tolist() == [2, 3, 4]


@pytest.mark.parametrize("preloaded", [False, True])
def test_clips_are_read_across_blocks_in_the_order_asked(store, ref, blocks_NVTHWC, preloaded):
    clips = Clips(store, ref).preload() if preloaded else Clips(store, ref)
    rows = [4, 0, 3, 3]
    np.testing.assert_array_equal(clips.read(rows), blocks_NVTHWC[rows, 0])
    np.testing.assert_array_equal(clips.read(np.array(rows), 1), blocks_NVTHWC[rows, 1])
    np.testing.assert_array_equal(clips.read(rows, np.array([0, 1, 1, 0])), blocks_NVTHWC[rows, [0, 1, 1, 0]])
    assert clips.read(rows).dtype == np.uint8
    assert clips.read([]).shape == (0, T, SIZE, SIZE, 3)


def test_a_set_that_is_too_large_is_not_held_in_memory(store, ref, blocks_NVTHWC, monkeypatch):
    monkeypatch.setattr(clips_module, "PRELOAD_BYTES", blocks_NVTHWC.nbytes - 1)
    clips = Clips(store, ref).preload()
    clips.read([3])
    chunks = store.root / "block" / "b1" / "clips" / "c"
    shutil.copyfile(chunks / "2/0/0/0/0", chunks / "0/0/0/0/0")  # of the fifth video, over the fourth
    np.testing.assert_array_equal(clips.read([3]), blocks_NVTHWC[[4], 0])


def test_a_set_in_memory_needs_its_files_no_more(store, ref, blocks_NVTHWC):
    clips = Clips(store, ref).preload()
    store.discard(ArtifactRef(kind="block", key="b1"))
    np.testing.assert_array_equal(clips.read([3, 4]), blocks_NVTHWC[[3, 4], 0])


def test_a_block_is_opened_when_it_is_read(store, ref, blocks_NVTHWC):
    clips = Clips(store, ref)
    store.discard(ArtifactRef(kind="block", key="b1"))
    np.testing.assert_array_equal(clips.read([0, 2]), blocks_NVTHWC[[0, 2], 0])
    with pytest.raises(ArtifactNotFound, match="block/b1"):
        clips.read([3])


def test_a_damaged_block_is_named(store, ref):
    chunk = store.root / "block" / "b1" / "clips" / "c" / "1" / "0" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(ArtifactDamaged, match=r"block/b1 .*clips/c/1/0/0/0/0 has"):
        Clips(store, ref).read([4])


def test_a_large_block_is_checked_by_content_before_it_is_read(store, ref, monkeypatch):
    monkeypatch.setattr(store_module, "FULL_CHECK_BYTES", 0)
    chunk = store.root / "block" / "b1" / "clips" / "c" / "1" / "0" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[20] ^= 1
    chunk.write_bytes(content)
    clips = Clips(store, ref)
    clips.read([0])
    with pytest.raises(ArtifactDamaged, match=r"block/b1 in .* was damaged \(clips/c/1/.* checksum\): run again"):
        clips.read([4])
    assert store.problem(ArtifactRef(kind="block", key="b1")) == "no artifact"  # so that the next run makes it again


def test_a_large_part_of_a_pool_is_checked_by_content_before_its_latents_are_read(tmp_path, monkeypatch):
    store = Store(tmp_path)
    pool = Pool(store, tiny.tiny_pool(store, np.zeros((2, T, SIZE, SIZE, 3), dtype=np.uint8)))
    monkeypatch.setattr(store_module, "FULL_CHECK_BYTES", 0)
    chunk = next(path for path in (store.root / "pool-part" / "p" / "latents" / "c" / "1").rglob("*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[20] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=r"pool-part/p in .* was damaged \(latents/c/1/.* checksum\): run again"):
        pool.latents([0])
    assert store.problem(ArtifactRef(kind="pool-part", key="p")) == "no artifact"


def test_a_clip_is_not_black_where_its_block_is_removed_while_it_is_read(store, ref, blocks_NVTHWC):
    clips = Clips(store, ref)
    np.testing.assert_array_equal(clips.read([0])[0], blocks_NVTHWC[0, 0])
    store.discard(ArtifactRef(kind="block", key="b0"))
    with pytest.raises(ArtifactDamaged, match=r"b0 was removed, .*: run the same command again"):
        clips.read([1])
    np.testing.assert_array_equal(clips.read([3])[0], blocks_NVTHWC[3, 0])


@pytest.mark.parametrize("one_shard", [False, True])
def test_an_array_of_which_a_part_is_gone_is_not_read_as_zeros(tmp_path, one_shard):
    clips_NTHWC = np.full((2, T, SIZE, SIZE, 3), 7, dtype=np.uint8)
    create_clip_array(tmp_path, clips_NTHWC.shape, one_shard=one_shard)[:] = clips_NTHWC
    array = open_clip_array(tmp_path)
    next(path for path in (tmp_path / "clips" / "c" / "0").rglob("*") if path.is_file()).unlink()
    with pytest.raises(ArtifactDamaged):
        array[0]


def test_an_array_keeps_one_clip_a_chunk_black_ones_too(tmp_path):
    clips_NTHWC = np.zeros((2, T, SIZE, SIZE, 3), dtype=np.uint8)
    create_clip_array(tmp_path, clips_NTHWC.shape)[:] = clips_NTHWC
    assert len([path for path in (tmp_path / "clips" / "c").rglob("*") if path.is_file()]) == 2
    array = open_clip_array(tmp_path)
    assert (array.dtype, array.shape, array.chunks) == (np.uint8, clips_NTHWC.shape, (1, T, SIZE, SIZE, 3))
    np.testing.assert_array_equal(array[...], clips_NTHWC)


def test_a_chunk_carries_a_checksum_of_its_own(tmp_path):
    clips_NTHWC = np.random.default_rng(1).integers(0, 256, (1, T, SIZE, SIZE, 3), dtype=np.uint8)
    create_clip_array(tmp_path, clips_NTHWC.shape)[:] = clips_NTHWC
    chunk = next(path for path in (tmp_path / "clips" / "c").rglob("*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"(?i)zstd|decompress|checksum"):
        open_clip_array(tmp_path)[...]


def test_channel_statistics_are_those_of_the_pixels(blocks_NVTHWC):
    pixels_NP3 = blocks_NVTHWC.reshape(5, -1, 3).astype(np.float64)
    mean, std = channel_statistics(pixels_NP3.sum(1), (pixels_NP3**2).sum(1), 5 * pixels_NP3.shape[1])
    np.testing.assert_allclose(mean, (pixels_NP3 / 255).mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(std, (pixels_NP3 / 255).std((0, 1)), rtol=1e-9)


def test_black_clips_can_be_normalised():
    assert channel_statistics([[0, 0, 0]], [[0, 0, 0]], 100)[1] == pytest.approx((1e-3, 1e-3, 1e-3))
