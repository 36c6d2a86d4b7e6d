"""How long a pool of many parts takes to open, and its clips of one class to read, at first and again.

    python tests/benchmarks/pool_opening.py --parts 1000

Parts have ten clips of 8×32×32 and their latents. Seconds of CPU time, since the files are in the page cache.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from vidistill.storage.clips import TABLE, ClipTable, ClipVideo, create_clip_array
from vidistill.storage.pool import Pool, create_latent_array
from vidistill.storage.store import ArtifactRef, Manifest, Store

CLIPS, PARTS_A_CLASS = 10, 10
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=1000)
    parts = parser.parse_args().parts
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        ref = made(store, parts)
        for when in ("first", "again"):
            opened, pool = timed(lambda: Pool(store, ref))
            read, _ = timed(lambda pool=pool: (pool.read(pool.rows_of(0)), pool.latents(pool.rows_of(0))))
            print(f"{when}: {parts} parts opened in {opened:.2f} s, {len(pool.rows_of(0))} clips read in {read:.2f} s")


def made(store: Store, parts: int) -> ArtifactRef:
    """A pool of noise."""
    random, refs = np.random.default_rng(0), []
    for number in range(parts):
        part = Manifest(kind="pool-part", key=f"{number:024d}", version=1, parameters={}, inputs={})
        with store.writing(part) as attempt:
            assert attempt is not None
            shape_NTHWC = (CLIPS, 8, 32, 32, 3)
            create_clip_array(attempt.folder, shape_NTHWC)[:] = random.integers(0, 256, shape_NTHWC, dtype=np.uint8)
            create_latent_array(attempt.folder, (CLIPS, 4, 8, 4, 4))[:] = random.normal(size=(CLIPS, 4, 8, 4, 4))
        refs.append(part.ref)
    videos = tuple(
        ClipVideo(path=f"{block}/{row}", label=block // PARTS_A_CLASS, group=None, duration_seconds=None, block=block,
                  row=row)
        for block in range(parts) for row in range(CLIPS)
    )  # fmt: skip
    classes = tuple(map(str, range(videos[-1].label + 1)))
    table = ClipTable(
        classes=classes, flips=False, views=1, mean=(0.5,) * 3, std=(0.2,) * 3, videos=videos, rejected=()
    )
    whole = Manifest(kind="pool", key="p", version=1, parameters={}, inputs={"blocks": refs, "latents": refs})
    with store.writing(whole) as attempt:
        assert attempt is not None
        (attempt.folder / TABLE).write_text(table.model_dump_json())
    return whole.ref


def timed(work: Callable[[], T]) -> tuple[float, T]:
    begin = time.process_time()
    found = work()
    return time.process_time() - begin, found


if __name__ == "__main__":
    main()
