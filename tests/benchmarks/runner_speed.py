"""One experiment on threads, processes, a Dask cluster of two processes and a Ray of two: the same bytes, in what time.

    python tests/benchmarks/runner_speed.py [--runners threads processes dask:ADDRESS ray]

Sprites, two methods, two budgets and two seeds, on one Prefect server; each runner has a store of its own, and what
is in it is compared with the first one's. Seconds of the wall clock, the start of processes and clusters included.
"""

from __future__ import annotations

import argparse
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from engines import engine, until
from faults import whole
from flow_running import BIN, background, environment

REQUEST = shlex.split(
    "run --data sprites --set sprites.size=48 --set sprites.frames=12 --set sprites.train_per_class=4"
    " --method random,tsgf --ipc 1,2 --seeds 2 --frames 4 --size 48 --set front=rgb --set teacher.epochs=2"
    " --set teacher.precision=fp32 --set tsgf.iterations=10 --set tsgf.precision=fp32 --set student.least_steps=30"
    " --set student.epochs=1 --set student.precision=fp32"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runners", nargs="*", default=["threads", "processes", "dask:ADDRESS", "ray"])
    runners = parser.parse_args().runners
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        folder = Path(name)
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", port]
        with background(command, folder, environment(folder / "server")):
            until(lambda: socket.socket().connect_ex(("127.0.0.1", int(port))) == 0)
            compare(folder, {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}, runners)


def compare(folder: Path, variables: dict[str, str], runners: list[str]) -> None:
    print("| runner | seconds | of the first's |\n|---|---|---|")
    made, first = None, 0.0
    for number, runner in enumerate(runners):
        place = folder / str(number)
        place.mkdir()
        with engine(runner, place) as address:
            command = [str(BIN / "vidistill"), *REQUEST, "--store", "store", "--runner", address]
            begin = time.perf_counter()
            subprocess.run(command, cwd=place, env=environment(place / "home", **variables), check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip
            seconds = time.perf_counter() - begin
        first, made = first or seconds, made or whole(place / "store")
        if whole(place / "store") != made:
            raise SystemExit(f"{runner} makes other bytes than {runners[0]}")
        print(f"| {runner} | {seconds:.0f} | {seconds / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
