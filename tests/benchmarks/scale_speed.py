"""What doubles when the videos double: index, blocks, clips, opening a set, and plans.

    python tests/benchmarks/scale_speed.py [--videos 250 500 1000] [--classes 50] [--rows 10000 20000]

Tiny sprites, a few files under many names; CPU seconds of this process and of the decoders that it starts. `--rows` are
those of a synthetic index, whose videos are said to be known: nothing of them is read, and a plan is made of them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from vidistill.flows.parameters import Experiment
from vidistill.flows.planning import describe, plan_of
from vidistill.storage.clips import Clips
from vidistill.storage.store import Store
from vidistill.tasks.stage import Runtime, run_job
from vidistill.tasks.videos.decode import DecodeParameters, block_jobs, clips_job
from vidistill.tasks.videos.decoder import Probe
from vidistill.tasks.videos.index import index_job, survey
from vidistill.tasks.videos.layouts import IndexParameters
from vidistill.tasks.videos.scan import Content, Memo, identify
from vidistill.tasks.videos.sprites import SpritesParameters, render_sprites

DECODE = DecodeParameters(frames=4, interval=1, size=32, views=1)


def seconds(function: Callable[[], object]) -> float:
    before = os.times()
    function()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def lay(folder: Path, source: list[Path], videos: int, classes: int) -> None:
    """Four fifths of each class for training; names of one file each, linked."""
    for number in range(videos):
        side = "test" if number // classes % 5 == 1 else "train"
        path = folder / side / f"class{number % classes:02}" / f"{number:06}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(source[number % len(source)], path)


def work(folder: Path, source: list[Path], videos: int, classes: int) -> list[float]:
    data, store = folder / "data", Store(folder / "store")
    lay(data, source, videos, classes)
    runtime, index = Runtime(store=str(store.root), data=str(data)), IndexParameters()
    told = [seconds(lambda: survey(data, index)), seconds(lambda: survey(data, index))]
    table = survey(data, index)
    made = index_job(table, index)
    run_job(made, runtime)
    blocks = block_jobs(table, DECODE, "train")
    told.append(seconds(lambda: [run_job(job, runtime) for job in blocks]))
    clips = clips_job(made.ref, DECODE, "train", blocks)
    told.append(seconds(lambda: run_job(clips, runtime)))
    told.append(seconds(lambda: Clips(store, clips.ref).read([0])))
    told.append(seconds(lambda: Clips(store, clips.ref).preload()))
    return [*told, plan(runtime)]


def plan(runtime: Runtime) -> float:
    cells = tuple({"method": name} for name in ("random", "herding", "k_center"))
    experiment = Experiment.model_validate(
        {"data": runtime.data, "cells": cells, "ipc": (1, 2), "seeds": 5, "decode": DECODE, "front": "rgb"}
    )
    with open(os.devnull, "w") as nowhere:
        return seconds(lambda: describe(plan_of(experiment, runtime), Console(file=nowhere)))


def rows(folder: Path, source: Path, videos: int) -> float:
    """A plan of a data set whose files the memo knows."""
    lay(folder / "data", [source], videos, 100)
    probe = Probe(width=32, height=32, rotation=0, frames=12, fps=25.0, duration_seconds=0.5, codec="h264")
    memo = Memo(Path(os.environ["XDG_CACHE_HOME"]) / "vidistill" / "files.sqlite")
    for path in (folder / "data").rglob("*.mp4"):
        identity = identify(folder / "data", path.relative_to(folder / "data").as_posix())
        memo.note(identity, Content(sha256=f"{int(path.stem):064}", probe=probe))
    memo.close()
    return plan(Runtime(store=str(folder / "store"), data=str(folder / "data")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="*", default=[250, 500, 1000])
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 20_000])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        render_sprites(Path(folder, "sprites"), SpritesParameters(size=32, frames=12, train_per_class=1))
        source = sorted(Path(folder, "sprites").rglob("*.mp4"))
        print("| videos | index | index again | blocks | clips | open, read one | load all | plan, some cached |")
        print("|---|---|---|---|---|---|---|---|")
        for videos in given.videos:
            told = work(Path(folder, str(videos)), source, videos, given.classes)
            print("|", " | ".join([str(videos), *(f"{one:.2f}" for one in told)]), "|", flush=True)
        for videos in given.rows:
            print(f"plan of {videos} rows: {rows(Path(folder, f'rows{videos}'), source[0], videos):.1f} s", flush=True)


if __name__ == "__main__":
    main()
