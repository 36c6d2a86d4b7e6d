"""What a run costs beside its work, and what of it grows with the videos: a task run, the database, memory, a plan.

    python tests/benchmarks/run_cost.py [--videos 100 1000] [--classes 20] [--seeds 100]

Two methods, two budgets and two seeds on tiny sprites, few files under many names: an empty Prefect flow, a first run,
the same again, and its plan. CPU seconds are those of all processes that a command starts, the Prefect server of the
run included. A task run alone is the difference between cached runs of one seed and of many.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from cached_run import EMPTY
from flow_running import BIN, environment
from scale_speed import lay

from vidistill.tasks.videos.sprites import SpritesParameters, render_sprites

TABLE = shlex.split("--method random,herding --ipc 1,2 --seeds 2")
TINY = shlex.split(
    "--frames 4 --size 32 --set front=rgb --set decode.views=1 --set teacher.epochs=1"
    " --set teacher.precision=fp32 --set student.epochs=1 --set student.least_steps=3 --set student.precision=fp32"
)


@dataclass
class Cost:
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def cost(command: list[str], env: dict[str, str]) -> Cost:
    """Of a command and all that it waits for; the peak is that of its largest process."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{shlex.join(command)} failed")
    return Cost(time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def database(home: Path) -> tuple[int, int]:
    """Its bytes and its task runs."""
    path = home / "prefect" / "prefect.db"
    with closing(sqlite3.connect(path)) as opened:
        (runs,) = opened.execute("select count(*) from task_run").fetchone()
    return path.stat().st_size, runs  # its log is in it once the last connection is closed


def prepared(folder: Path, source: list[Path], videos: int, classes: int) -> tuple[dict[str, str], list[str]]:
    """A user's environment, and the arguments that name their videos, tiny clips and a store."""
    lay(folder / "data", source, videos, classes)
    env = environment(folder / "home", PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="180")
    return env, ["--data", str(folder / "data"), *TINY, "--store", str(folder / "store")]


def measure_task_run(folder: Path, source: list[Path], seeds: int) -> None:
    """What a stage that is cached takes: a set and a score a seed, random clips of two classes."""
    env, asked = prepared(folder, source, 20, 2)
    run = [str(BIN / "vidistill"), "run", *asked, "--method", "random", "--ipc", "1", "--out", str(folder / "out")]
    found = []
    for number in (seeds, seeds, 1):  # the first makes what the others find
        made = cost([*run, "--seeds", str(number)], env)
        found.append((made, *database(folder / "home")))
    (_, *at_first), (many, *after_many), (one, *after_one) = found
    task_runs = 2 * (seeds - 1)
    changes = zip(at_first, after_many, after_one, strict=True)
    size, recorded = (2 * there - before - after for before, there, after in changes)
    print(
        f"A task run: {1000 * (many.cpu_seconds - one.cpu_seconds) / task_runs:.0f} ms of CPU, "
        f"{size / task_runs / 1000:.0f} kB of the database; the mean of {task_runs}, {recorded} of them recorded."
    )


def measure(folder: Path, source: list[Path], videos: int, classes: int) -> None:
    env, tiny = prepared(folder, source, videos, classes)
    asked = [*tiny, *TABLE]
    run = [str(BIN / "vidistill"), "run", *asked, "--out", str(folder / "out")]
    commands = {"an empty flow": [sys.executable, "-c", EMPTY], "first run": run, "cached run": run,
                "plan": [str(BIN / "vidistill"), "plan", *asked]}  # fmt: skip
    bytes_before, runs_before = 0, 0
    for name, command in commands.items():
        made = cost(command, env)
        size, runs = database(folder / "home")
        print(
            f"| {videos} | {name} | {made.seconds:.1f} | {made.cpu_seconds:.1f} | {made.peak_bytes / 1e6:.0f} |"
            f" {runs - runs_before} | {(size - bytes_before) / 1e6:.2f} |", flush=True,
        )  # fmt: skip
        bytes_before, runs_before = size, runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        render_sprites(Path(folder, "sprites"), SpritesParameters(size=32, frames=12, train_per_class=1))
        source = sorted(Path(folder, "sprites").rglob("*.mp4"))
        print("| videos | command | seconds | CPU seconds | peak, MB | task runs | database, MB |")
        print("|---|---|---|---|---|---|---|")
        for videos in given.videos:
            measure(Path(folder, str(videos)), source, videos, given.classes)
        measure_task_run(Path(folder, "task runs"), source, given.seeds)


if __name__ == "__main__":
    main()
