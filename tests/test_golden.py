"""A stage whose result moves must raise its version, or old artifacts would pass for new ones.

Names are compared exactly, numbers within what processors differ by (their sine moves a rendered pixel now and then).
When a value below moves on purpose: raise the stage's version, run `python tests/test_golden.py` and put what it prints
here.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from vidistill.flows.execution import data_runtime, find_videos
from vidistill.flows.experiment import Graph, build
from vidistill.flows.parameters import Experiment
from vidistill.storage.clips import open_clip_array
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.opening import open_store
from vidistill.storage.store import Manifest, Store
from vidistill.tasks.evaluate import load_score
from vidistill.tasks.index import load_index
from vidistill.tasks.sprites_stage import sprites_job
from vidistill.tasks.stage import Job, Runtime, run_job, stage_of

EXPERIMENT = {
    "data": "sprites",
    "cells": [
        {
            "method": "tsgf",
            "options": {"iterations": 3, "precision": "fp32", "group_classes": 4},
            "recipes": ["soft+tsgf"],
        }
    ],
    "seeds": 1,
    "sprites": {"size": 48, "frames": 12, "train_per_class": 2, "test_per_class": 1},
    "decode": {"frames": 4, "size": 48, "views": 2},
    "teacher": {"epochs": 2, "precision": "fp32"},
    "student": {"steps": 3, "precision": "fp32"},
}
GOLDEN: dict[str, tuple[int, object]] = {
    "sprites": (1, [24, 24.497395833333332]),
    "index": (1, "ed20ef63a0ca09f2"),
    "block": (1, [4, 4, 48, 48, 3, 59.839066116898145, 45.401230173918904]),
    "clips": (1, [0.241288, 0.22182, 0.207793, 0.167597, 0.125827, 0.067188]),
    "teacher": (1, [2.092992, 2.012164]),
    "distilled": (1, [58.786865234375]),
    "joined": (1, [57.418009440104164]),
    "relabelled": (1, [57.23698820891204, 0.1240234375, -0.0093994140625, 0.018310546875]),
    "score": (1, [2.13473, 2.112054, 2.088037]),
}


def run_all(folder: Path) -> tuple[Store, list[Job]]:
    """Every job of the experiment, one after another, without Prefect."""
    experiment = Experiment.model_validate(EXPERIMENT)
    runtime = Runtime(store=str(folder), threads=1)
    first = sprites_job(experiment.sprites)
    run_job(first, runtime)
    runtime = data_runtime(experiment, runtime)
    graph: Graph = build(experiment, find_videos(experiment, runtime, 2))
    for job in graph.jobs.values():
        run_job(job, runtime)
    return open_store(str(folder)), [first, *graph.jobs.values()]


def measure(store: Store, manifest: Manifest) -> object:
    """A short description of an artifact's content."""
    folder = store.folder(manifest.ref)
    if manifest.kind == "sprites":
        boxes = json.loads((folder / "boxes.json").read_text())
        return [len(list(folder.rglob("*.mp4"))), float(np.mean([video["boxes"] for video in boxes.values()]))]
    if manifest.kind == "index":
        rows = [(video.path, video.label, video.split, video.group) for video in load_index(store, manifest.ref).videos]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
    if manifest.kind == "block":
        clips_NTHWC = np.asarray(open_clip_array(folder)[...])
        return [*clips_NTHWC.shape, float(clips_NTHWC.mean()), float(clips_NTHWC[-1, -1].std())]
    if manifest.kind == "clips":
        table = json.loads((folder / "table.json").read_text())
        return [round(value, 6) for value in (*table["mean"], *table["std"])]
    if manifest.kind == "teacher":
        return json.loads((folder / "curve.json").read_text())["loss"]
    if manifest.kind == "score":
        return list(load_score(folder).loss)
    made = DistilledSet.load(folder)
    logits = [] if made.logits_NK is None else made.logits_NK[0, :3].tolist()
    return [float(made.clips_NTHWC.mean()), *logits]


def measured(folder: Path) -> dict[str, tuple[int, object]]:
    store, jobs = run_all(folder)
    found: dict[str, tuple[int, object]] = {}
    for job in jobs:
        if job.stage not in found and job.stage != "report":
            found[job.stage] = (stage_of(job).version, measure(store, store.manifest(job.ref)))
    return found


def test_no_result_moved_without_a_new_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = measured(tmp_path / "store")
    assert found.keys() == GOLDEN.keys()
    for kind, (version, value) in found.items():
        recorded_version, recorded = GOLDEN[kind]
        exact = isinstance(value, str)
        same = value == recorded if exact else value == pytest.approx(recorded, rel=1e-2, abs=1e-2)
        assert version == recorded_version, f"{kind} has a new version: record its new value"
        assert same, f"the result of {kind} moved from {recorded} to {value}: raise its version"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for kind, value in measured(Path(scratch)).items():
            print(f'    "{kind}": {value},')
