"""A benchmark that is killed on its way, and goes on: nothing that was finished may be lost or made again.

    python tests/benchmarks/killed.py STORE 13,17,19 ucf101_10 --data DIR --split 1

`vidistill benchmark` runs with these arguments and gets SIGKILL, its server and all, after so many minutes, time after
time; the last run ends by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def finished(store: Path) -> dict[Path, bytes]:
    """Whole artifacts with their manifests, which change when they are made anew; checkpoints come and go."""
    manifests = store.glob("[!.]*/*/manifest.json")
    return {path: path.read_bytes() for path in manifests if not path.parts[-3].endswith("-checkpoint")}


def attempt(command: list[str], store: Path, seconds: float | None) -> str:
    """Run for so long at most; what became of it."""
    before, begin = len(finished(store)), time.monotonic()
    run = subprocess.Popen(command, start_new_session=True)
    try:
        ended = f"Ended with {run.wait(timeout=seconds)}"
        whole = now = finished(store)
    except subprocess.TimeoutExpired:
        whole = finished(store)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        ended, now = "Killed", finished(store)
    lost = [path for path, manifest in whole.items() if now.get(path) != manifest]
    taken = (time.monotonic() - begin) / 60
    return f"{ended} after {taken:.1f} min: {len(whole) - before} artifacts more, {len(lost)} lost."


def main() -> None:
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    store, minutes, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    command = [str(Path(sys.executable).with_name("vidistill")), "benchmark", *arguments, "--store", str(store)]
    for stop in [*(60 * float(one) for one in minutes.split(",")), None]:
        said = attempt(command, store, stop)
        print(said, flush=True)
        if said.startswith("Ended"):
            break


if __name__ == "__main__":
    main()
