"""Clips read from object storage against a local folder, in one run: an epoch, batch by batch.

    python tests/benchmarks/store_speed.py [--blocks 16] [--latency 30]

Blocks of 32 clips of 16×112×112, as decoding makes them, in a folder and in a bucket of an S3 endpoint on this machine
(moto, in a process of its own) that answers every request so many milliseconds late. Seconds of the wall clock.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import boto3
import numpy as np
import s3fs

sys.path.append(str(Path(__file__).resolve().parent.parent))

from object_storage import SETTINGS
from stumbling import Stumbling

from vidistill.storage import objects
from vidistill.storage.clips import TABLE, Clips, ClipTable, ClipVideo, create_clip_array
from vidistill.storage.opening import open_store
from vidistill.storage.store import ArtifactRef, Manifest, Store

CLIPS, SHAPE_THWC = 32, (16, 112, 112, 3)
STUMBLES = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--latency", type=float, default=30, help="milliseconds")
    given = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=endpoint, args=(there, given.latency / 1000))
    server.start()
    plain, stumbling = here.recv()
    os.environ |= SETTINGS | {"AWS_ENDPOINT_URL": plain}
    boto3.client("s3").create_bucket(Bucket="clips")
    with tempfile.TemporaryDirectory() as folder:
        try:
            compare(Path(folder), given.blocks, stumbling)
        finally:
            server.terminate()


def endpoint(told: Connection, latency_seconds: float) -> None:
    """An S3 endpoint that is as far away as one in a data centre, once plain and once stumbling; says where."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    behind = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    behind.start()
    host, port = behind.get_host_and_port()
    proxies = [Stumbling(f"http://{host}:{port}") for _ in range(2)]
    draw = random.Random(0)
    proxies[0].fault = lambda method, path: "slow"
    proxies[1].fault = lambda method, path: "503" if draw.random() < STUMBLES else "slow"
    for proxy in proxies:
        proxy.slow_seconds = latency_seconds
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
    told.send([proxy.url for proxy in proxies])
    threading.Event().wait()


def compare(folder: Path, blocks: int, stumbling: str) -> None:
    local = Store(folder / "store")
    ref = made(local, blocks)
    upload(local, mirrored(folder, "upload"))
    far = mirrored(folder, "side by side")
    ways = {"a local folder": local, "the bucket": far, "the bucket's mirror, full": far}
    told = {way: seconds(store, ref) for way, store in ways.items()}
    objects.SIDE_BY_SIDE = 1
    told["the bucket, one request at a time"] = seconds(mirrored(folder, "one by one"), ref)
    objects.SIDE_BY_SIDE = 16
    os.environ["AWS_ENDPOINT_URL"] = stumbling
    s3fs.S3FileSystem.clear_instance_cache()  # it holds the endpoint that it first saw
    told[f"the bucket, {STUMBLES:.0%} of its answers 503"] = seconds(mirrored(folder, "stumbling"), ref)
    for way, taken in told.items():
        rate = blocks * CLIPS / taken
        print(f"{way}: {taken:.2f} s, {rate:.0f} clips a second, {taken / told['a local folder']:.1f} times as long")


def mirrored(folder: Path, host: str) -> Store:
    """The bucket as a host with a mirror of its own sees it."""
    os.environ["XDG_CACHE_HOME"] = str(folder / host)
    return open_store("s3://clips/store")


def made(store: Store, blocks: int) -> ArtifactRef:
    """Clips of coarse noise that moves, which zstd packs about as well as it does real frames."""
    draw, refs = np.random.default_rng(0), []
    for number in range(blocks):
        block = Manifest(kind="block", key=f"{number:024d}", version=1, parameters={}, inputs={})
        with store.writing(block) as attempt:
            assert attempt is not None
            coarse = draw.integers(0, 256, (CLIPS, 16, 56, 56, 3), dtype=np.uint8)
            clips_NTHWC = coarse.repeat(2, axis=2).repeat(2, axis=3)
            create_clip_array(attempt.folder, (CLIPS, *SHAPE_THWC), one_shard=True)[:] = clips_NTHWC
        refs.append(block.ref)
    videos = tuple(
        ClipVideo(path=f"{block}/{row}", label=0, group=None, duration_seconds=None, block=block, row=row)
        for block in range(blocks) for row in range(CLIPS)
    )  # fmt: skip
    table = ClipTable(
        classes=("any",), flips=False, views=1, mean=(0.5,) * 3, std=(0.2,) * 3, videos=videos, rejected=()
    )
    whole = Manifest(kind="clips", key="c", version=1, parameters={}, inputs={"blocks": refs})
    with store.writing(whole) as attempt:
        assert attempt is not None
        (attempt.folder / TABLE).write_text(table.model_dump_json())
    return whole.ref


def upload(source: Store, target: Store) -> None:
    for ref in source.refs():
        with target.writing(source.manifest(ref)) as attempt:
            assert attempt is not None
            shutil.copytree(source.folder(ref), attempt.folder, dirs_exist_ok=True)


def seconds(store: Store, ref: ArtifactRef) -> float:
    """An epoch of all clips, in an order of its own and in batches of 32."""
    begin = time.perf_counter()
    clips = Clips(store, ref)
    order = np.random.default_rng(1).permutation(len(clips))
    for first in range(0, len(order), 32):
        clips.read(order[first : first + 32].tolist())
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
