"""What a set of the papers' size takes: 50 classes, ten clips each, 16×112² pixels, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CLASSES, IPC, FRAMES, SIZE = 50, 10, 16, 112
SET_BYTES = 4 * 3 * CLASSES * IPC * FRAMES * SIZE**2
"""Of the clips as float32."""
BOUND_BYTES = 11e9
OPTIONS = {
    "dm": {"batch_real": 1, "iterations": 1},
    "dc": {"network": "r2plus1d_small_in", "batch_real": 1, "iterations": 1, "outer": 2, "inner": 1},
    "idtd": {"batch_real": 1, "iterations": 1},
    "frepo": {"network": "r2plus1d_small_in", "batch_real": CLASSES, "iterations": 2, "pool": 1},
}
PROGRAM = f"""
import json, resource, sys
from pathlib import Path
import numpy as np
import torch
import tiny
from vidistill.storage.clips import TABLE, Clips, ClipTable, ClipVideo, create_clip_array
from vidistill.storage.store import Manifest, Store
from vidistill.tasks.methods import find_method

torch.set_num_threads(1)
store, name, options = Store(Path("store")), sys.argv[1], json.loads(sys.argv[2])
block = Manifest(kind="block", key="b", version=1, parameters={{}}, inputs={{}})
with store.writing(block) as attempt:
    array = create_clip_array(attempt.folder, ({CLASSES * IPC}, {FRAMES}, {SIZE}, {SIZE}, 3))
    for row in range({CLASSES * IPC}):
        array[row] = np.random.default_rng(row).integers(256, size=array.shape[1:], dtype=np.uint8)
classes = tuple(f"class {{label}}" for label in range({CLASSES}))
videos = tuple(
    ClipVideo(path=f"{{row}}.avi", label=row // {IPC}, group=None, duration_seconds=None, block=0, row=row)
    for row in range({CLASSES * IPC})
)
table = ClipTable(classes=classes, flips=True, views=1, mean=tiny.MEAN, std=tiny.STD, videos=videos, rejected=())
whole = Manifest(kind="clips", key="c", version=1, parameters={{}}, inputs={{"blocks": [block.ref]}})
with store.writing(whole) as attempt:
    (attempt.folder / TABLE).write_text(table.model_dump_json())
found = find_method(name).method
material = tiny.Tiny(Clips(store, whole.ref)).material({IPC}, 0, labels=tuple(range({CLASSES})))
made = found(found.Parameters(**options)).distil(material)
assert len(made) == {CLASSES * IPC}
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_set_of_the_papers_size_takes_less_than_11_gb(tmp_path: Path, name: str) -> None:
    """Seven sets of 1.2 GB (start, set, gradient, Adam's two moments, two while it steps) and what passes hold."""
    paths = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", PROGRAM, name, json.dumps(OPTIONS[name] | {"precision": "fp32"})]
    ended = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    peak = int(ended.stdout)
    print(f"{name}: {peak / 1e9:.2f} GB, {peak / SET_BYTES:.1f} sets")
    assert peak < BOUND_BYTES
