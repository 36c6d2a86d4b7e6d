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

sys.path.append(str(Path(__file__).resolve().parent.parent))

from faults import manifests

from vidistill.storage.store import Store


def attempt(command: list[str], store: Store, seconds: float | None) -> str:
    """Run for so long at most; what became of it."""
    before, begin = len(manifests(store)), time.monotonic()
    run = subprocess.Popen(command, start_new_session=True)
    try:
        ended = f"Ended with {run.wait(timeout=seconds)}"
        whole = now = manifests(store)
    except subprocess.TimeoutExpired:
        whole = manifests(store)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        ended, now = "Killed", manifests(store)
    lost = [ref for ref, manifest in whole.items() if now.get(ref) != manifest]
    taken = (time.monotonic() - begin) / 60
    return f"{ended} after {taken:.1f} min: {len(whole) - before} artifacts more, {len(lost)} lost."


def main() -> None:
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    store, minutes, arguments = Store(Path(sys.argv[1])), sys.argv[2], sys.argv[3:]
    command = [str(Path(sys.executable).with_name("vidistill")), "benchmark", *arguments, "--store", sys.argv[1]]
    for stop in [*(60 * float(one) for one in minutes.split(",")), None]:
        said = attempt(command, store, stop)
        print(said, flush=True)
        if said.startswith("Ended"):
            break


if __name__ == "__main__":
    main()
