"""What `vidistill plan benchmark miniucf` says of a scaled-down run on an empty store, and what that takes.

    python tests/benchmarks/price.py DIR --split 1

Every method of the papers' grid on the videos of DIR at 8×32², one seed, a few iterations; nothing has been measured on
this machine when it is priced. Some twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from vidistill.flows.costs import cost_of
from vidistill.flows.estimates import GAIN
from vidistill.flows.look import Look
from vidistill.storage.opening import open_store

STATIC = "static.iterations=4"
EXPERTS = ("iterations=3", "experts=2", "expert.epochs=10")
PIXELS = (*EXPERTS, "batch_syn=10")
OF_METHODS = {
    "static_dc": ("iterations=4",), "dm": ("iterations=15",), "idtd": ("iterations=15",), "frepo": ("iterations=15",),
    "mtt": PIXELS, "sfvd": PIXELS, "sfvd_t": PIXELS, "dm_vdsd": ("iterations=15", STATIC),
    "mtt_vdsd": (*EXPERTS, STATIC), "frepo_vdsd": ("iterations=15", STATIC), "optdistill": ("detector=motion",),
    "vst_unet": ("epochs=2",),
}  # fmt: skip
SETTINGS = (
    "seeds=1", "decode.frames=8", "decode.size=32", "decode.views=1", "protocol=vidistill", "student.epochs=2",
    "student.least_steps=12", "student.optimiser.batch_size=16", "teacher.epochs=10", "teacher.least_steps=30",
    "pool.clips_a_class=10", "pool.autoencoder.steps=60", "pool.latte.steps=60",
    *(f"{method}.{setting}" for method, settings in OF_METHODS.items() for setting in settings),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--split", default="1")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        given = ["miniucf", "--data", asked.data, "--split", asked.split, *settings, "--store", store]
        vidistill = str(Path(sys.executable).with_name("vidistill"))
        planned = subprocess.run([vidistill, "plan", "benchmark", *given], check=True, capture_output=True, text=True)
        print(planned.stdout.splitlines()[-1], flush=True)
        begin = time.monotonic()
        subprocess.run([vidistill, "benchmark", *given, "--out", str(Path(folder) / "out")], check=True)
        print(f"It took {(time.monotonic() - begin) / 60:.1f} min.")
        compare(store)


def compare(location: str) -> None:
    """Seconds and megabytes by stage: planned where nothing was measured, and taken."""
    known = {ref: found.manifest for ref, found in open_store(location).survey().items() if found.manifest}
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
    for manifest in known.values():
        cost, threads = cost_of(manifest, Look(known.get)), max(1, manifest.record.get("threads", 1))
        found = (cost.seconds / threads**GAIN, manifest.seconds, cost.bytes / 1e6, manifest.bytes / 1e6)
        for name in (manifest.kind, "all"):
            sums[name] = [whole + one for whole, one in zip(sums[name], found, strict=True)]
    print(f"{'stage':14}{'planned s':>11}{'took s':>9}{'planned MB':>12}{'is MB':>8}")
    for name, (planned, took, planned_mb, is_mb) in sums.items():
        print(f"{name:14}{planned:11.0f}{took:9.0f}{planned_mb:12.1f}{is_mb:8.1f}")


if __name__ == "__main__":
    main()
