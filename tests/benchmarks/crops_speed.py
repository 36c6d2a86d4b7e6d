"""How fast OptDistill finds, follows, cuts and scores, how that grows with workers, and how well the boxes fit.

    python tests/benchmarks/crops_speed.py sprites                          # trained detector, and the boxes' IoU
    python tests/benchmarks/crops_speed.py DIR --layout ucf101 --detector hog --videos 2 8

The stages are those of a run, on the *test* videos, which a detector that is trained here has not seen, with as many
workers as the flow's task runner would have; every line is a process of its own, so that its peak memory is its own.
IoU is that of the kept tracks with the boxes that the data record, over all frames; CSRT alone is `--redetect 0`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.crops.cutting import CROPS
from vidistill.tasks.crops.optdistill import OptDistill, OptDistillParameters
from vidistill.tasks.crops.track import overlap
from vidistill.tasks.crops.tracking import open_detector
from vidistill.tasks.crops.training import BOXES, FACTS
from vidistill.tasks.learning.teacher import TeacherParameters, teacher_job
from vidistill.tasks.methods import Given
from vidistill.tasks.stage import Job, Runtime, Work, run_job
from vidistill.tasks.videos.decode import DecodeParameters, block_jobs, clips_job
from vidistill.tasks.videos.decoder import Decoder
from vidistill.tasks.videos.index import IndexParameters, IndexTable, index_job, survey
from vidistill.tasks.videos.sprites import SpritesParameters, render_sprites

DECODE = DecodeParameters(frames=8, interval=4, size=56, views=1)


def swapped(table: IndexTable) -> IndexTable:
    """Test videos where the method looks for training videos."""
    other = {"train": "test", "test": "train"}
    videos = tuple(video.model_copy(update={"split": other[video.split]}) for video in table.videos)
    return table.model_copy(update={"videos": videos})


def prepared(arguments: argparse.Namespace, folder: Path) -> tuple[Given, Runtime, list[Job]]:
    """Clips and a teacher of one epoch in a store, and what a method is given."""
    data = Path(arguments.data)
    if arguments.data == "sprites":
        data = folder / "data"
        if not data.exists():
            render_sprites(data, SpritesParameters(train_per_class=arguments.train))
    runtime = Runtime(store=str(folder / "store"), data=str(data), device="cpu", threads=1)
    parameters = IndexParameters(layout=arguments.layout)
    table = survey(data, parameters)
    index, blocks = index_job(table, parameters), block_jobs(table, DECODE, "train")
    clips = clips_job(index.ref, DECODE, "train", blocks)
    teacher = teacher_job(clips.ref, TeacherParameters(epochs=1))
    given = Given(index.ref, clips.ref, teacher, swapped(table), DECODE, data, lambda job: job.ref)
    return given, runtime, [index, *blocks, clips, teacher]


def jobs_of(given: Given, options: dict[str, Any]) -> list[Job]:
    jobs: list[Job] = []

    def add(job: Job) -> ArtifactRef:
        jobs.append(job)
        return job.ref

    OptDistill(OptDistillParameters(**options)).inputs(dataclasses.replace(given, add=add))
    return [job for job in jobs if job.stage in {"detector", "tracks", "crops"}]


def measure(arguments: argparse.Namespace, folder: Path, workers: int, videos: int, redetect: int, pipe: Any) -> None:
    """One line: seconds of detecting, of tracks (detecting included) and of crops, peak memory, IoU."""
    given, runtime, _ = prepared(arguments, folder)
    runtime = runtime.model_copy(update={"store": str(folder / f"{workers}-{videos}-{redetect}"), "threads": workers})
    shutil.copytree(folder / "store", runtime.store)
    jobs = jobs_of(given, {"detector": arguments.detector, "videos": videos, "redetect": redetect, "grid": 2})
    found: dict[str, Any] = {}
    for stage in ("detector", "tracks", "crops"):
        own = [job for job in jobs if job.stage == stage]
        begin, cpu = time.perf_counter(), os.times()
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda job: run_job(job, runtime), own))
        after = os.times()
        found[stage] = (time.perf_counter() - begin, sum(after[:4]) - sum(cpu[:4]))
    store = Store(Path(runtime.store))
    found["detect"] = detecting(next(job for job in jobs if job.stage == "tracks"), store, runtime)
    refs = [job.ref for job in jobs if job.stage == "crops"]
    peaks = [store.manifest(job.ref).peak_memory_bytes for job in jobs if job.stage != "detector"]
    outcomes = [one for ref in refs for one in json.loads((store.folder(ref) / CROPS).read_text())]
    pipe.send(found | {"peak": max(peaks), "outcomes": len(outcomes), "fit": fit(outcomes, given.root)})


def detecting(job: Job, store: Store, runtime: Runtime) -> float:
    """CPU seconds a video for its first frame and what is in it."""
    from vidistill.tasks.crops.tracking import TrackParameters

    with store.writing(job.manifest.model_copy(update={"key": "bench"})) as attempt:
        assert attempt is not None
        parameters = TrackParameters.model_validate(job.parameters)
        detector = open_detector(Work(job, runtime, store, attempt), parameters)
        assert detector is not None
        begin = time.process_time()
        with Decoder() as decoder:
            for video in parameters.videos:
                for frame_HWC in decoder.frames(Path(runtime.data) / video.path, limit=1):
                    detector.detect(frame_HWC)
        return (time.process_time() - begin) / len(parameters.videos)


def fit(outcomes: list[dict[str, Any]], root: Path | None) -> dict[str, float]:
    """How many videos gave a crop, and how well the kept boxes lie on those that the data record."""
    kept = [one for one in outcomes if one["crop"]]
    facts = {"cropped": len(kept) / len(outcomes)}
    assert root is not None
    if kept and (root / BOXES).is_file():
        recorded = json.loads((root / BOXES).read_text())
        means = [
            np.mean(
                [overlap(tuple(a), tuple(b)) for a, b in zip(one["boxes"], recorded[one["path"]]["boxes"], strict=True)]
            )
            for one in kept
        ]
        facts |= {"IoU": float(np.mean(means)), "least": float(np.min(means))}
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="`sprites`, or a folder of videos")
    parser.add_argument("--layout", default="auto")
    parser.add_argument("--detector", default="auto")
    parser.add_argument("--videos", type=int, nargs="+", default=[2, 8], help="test videos a class")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--redetect", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--train", type=int, default=40, help="training clips a class that sprites are rendered with")
    arguments = parser.parse_args()
    if arguments.data == "sprites" or arguments.layout == "auto":
        arguments.layout = IndexParameters().layout
    with tempfile.TemporaryDirectory() as folder:
        run_all(arguments, Path(folder))


def run_all(arguments: argparse.Namespace, folder: Path) -> None:
    given, runtime, jobs = prepared(arguments, folder)
    for job in [*jobs, *(job for job in jobs_of(given, {"detector": arguments.detector}) if job.stage == "detector")]:
        ref, _ = run_job(job, runtime)
        if job.stage == "detector":
            store = Store(folder / "store")
            print(f"detector: {store.manifest(ref).seconds:.0f} s, {(store.folder(ref) / FACTS).read_text()}")
    context = multiprocessing.get_context("spawn")
    print("redetect  workers  videos  detect CPU ms  tracks/s (CPU s each)  crops/s (CPU s each)  peak MB  fit")
    for redetect in arguments.redetect:
        for workers in arguments.workers:
            for videos in arguments.videos:
                receiver, sender = context.Pipe(duplex=False)
                child = context.Process(target=measure, args=(arguments, folder, workers, videos, redetect, sender))
                child.start()
                sender.close()
                found = receiver.recv()
                child.join()
                n = found["outcomes"]
                rates = [f"{n / found[stage][0]:8.2f} ({found[stage][1] / n:.2f})" for stage in ("tracks", "crops")]
                fitted = ", ".join(f"{name} {value:.3f}" for name, value in found["fit"].items())
                print(f"{redetect:8} {workers:8} {n:7} {1e3 * found['detect']:14.1f}  {rates[0]:>21} {rates[1]:>21}"
                      f" {found['peak'] / 1e6:8.0f}  {fitted}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
