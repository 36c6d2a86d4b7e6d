"""A stage whose result moves must raise its version (tests/test_golden.py); what is recorded is that of fp32 on a CPU.

When a value moves on purpose: raise the stage's version, run `python -m pytest tests/tasks/segment/test_golden.py` and
put here what it says.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from segments import write_layout

from vidistill.storage.store import Store
from vidistill.tasks.learning.loop import CURVE
from vidistill.tasks.segment.condense import METHODS, relabel_job, segment_set_job
from vidistill.tasks.segment.layout import survey_sequences
from vidistill.tasks.segment.learn import TCNParameters, segment_teacher_job
from vidistill.tasks.segment.score import SCORE, SegmentScoreTable, segment_score_job
from vidistill.tasks.segment.sequences import Sequences, sequences_job
from vidistill.tasks.segment.sets import SegmentSet
from vidistill.tasks.segment.sprites import ActionSpritesParameters, action_sprites_job
from vidistill.tasks.segment.tsgf import SegmentTSGFParameters
from vidistill.tasks.stage import Job, Runtime, run_job, stage_of

GOLDEN: dict[str, tuple[int, list[float]]] = {
    "action-sprites": (1, [0.04272, 0.05984]),
    "sequences": (1, [2.85, 3.835, 3.189, 2.267, 1.361, 1.096, 1.586, 2.979, 1.22, 1.406]),
    "segment-teacher": (1, [3.005, 2.644, 2.445, 2.457, 2.477, 2.509]),
    "segment-set mean": (1, [2.661, 3.793, 2.647, 2.211, 1.155]),
    "segment-set random": (1, [2.562, 3.553, 2.697, 2.219, 1.283]),
    "segment-set herding": (1, [2.772, 4.066, 2.771, 2.18, 1.361]),
    "segment-set tsgf": (1, [2.556, 3.68, 2.922, 2.293, 1.397]),
    "segment-relabelled": (1, [0.328, 0.2736, 0.3985]),
    "segment-score": (2, [2.335, 2.305, 2.301, 2.261, 2.27, 2.227]),
}
TCN = TCNParameters(stages=2, layers=2, width=4, epochs=2, lr=0.01)
TSGF = SegmentTSGFParameters(iterations=3, lr=0.2)


def test_no_result_moved_without_a_new_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, store = write_layout(tmp_path / "salads"), Store(tmp_path / "store")
    runtime = Runtime(store=str(store.root), data=str(root), device="cpu", threads=1)
    found: dict[str, tuple[int, list[float]]] = {}

    def note(name: str, job: Job, *values: float) -> None:
        found[name] = stage_of(job).version, [float(f"{value:.4g}") for value in values]

    def folder(job: Job) -> Path:
        return store.folder(run_job(job, runtime)[0])

    sprites = action_sprites_job(ActionSpritesParameters(train=1, test=1, actions=2, size=16, grid=1))
    features = [np.abs(np.load(path)).mean() for path in sorted(folder(sprites).glob("features/*.npy"))]
    note("action-sprites", sprites, *features)
    read = sequences_job(1, 1, survey_sequences(root, 1))
    folder(read)
    sequences = Sequences(store, read.ref)
    note("sequences", read, *sequences.mean_D, *sequences.std_D)
    teacher = segment_teacher_job(read.ref, TCN)
    note("segment-teacher", teacher, *json.loads((folder(teacher) / CURVE).read_text())["loss"])
    for method in METHODS:
        made = segment_set_job(read.ref, teacher.ref, method, 2, 0, TSGF)
        note(f"segment-set {method}", made, *SegmentSet.load(folder(made)).points_MD.mean(0))
    soft = relabel_job(made.ref, read.ref, teacher.ref, "tsgf")
    note("segment-relabelled", soft, *SegmentSet.load(folder(soft)).soft_MK.mean(0))
    scored = segment_score_job(soft.ref, read.ref, TCN, 0, "tsgf")
    note("segment-score", scored, *SegmentScoreTable.model_validate_json((folder(scored) / SCORE).read_text()).loss)
    print("".join(f'    "{name}": {value},\n' for name, value in found.items()))  # what pytest shows where this fails
    assert found.keys() == GOLDEN.keys()
    for name, (version, values) in found.items():
        assert version == GOLDEN[name][0], f"{name} has a new version: record {values}"
        assert values == pytest.approx(GOLDEN[name][1], rel=1e-2), f"the result of {name} moved: raise its version"
