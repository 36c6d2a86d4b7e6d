"""What a fully cached run costs beyond an empty Prefect flow, in one go.

    python tests/benchmarks/cached_run.py [--rounds 3] [-- vidistill arguments, by default: demo]

Runs the command once to fill the store, then an empty flow and the cached command in turn; prints seconds and the
median difference.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EMPTY = """
import os
os.environ.update(PREFECT_SERVER_ANALYTICS_ENABLED="false", DO_NOT_TRACK="1", PREFECT_LOGGING_LEVEL="CRITICAL")
from prefect import flow
flow(lambda: None, name="empty")()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("command", nargs="*", default=["demo"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        vidistill = [str(Path(sys.executable).parent / "vidistill"), *arguments.command, "--out", out]
        print(f"first run (fills the store): {seconds(vidistill):.1f} s")
        empty, cached = [], []
        for _ in range(arguments.rounds):
            empty.append(seconds([sys.executable, "-c", EMPTY]))
            cached.append(seconds(vidistill))
            print(f"empty flow {empty[-1]:.1f} s, cached run {cached[-1]:.1f} s")
    print(
        f"beyond an empty flow: {statistics.median(c - e for c, e in zip(cached, empty, strict=True)):.1f} s (median)"
    )


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
