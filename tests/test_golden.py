"""A stage whose result moves must raise its version, or old artifacts would pass for new ones.

Names are compared exactly, numbers within what processors differ by (their sine moves a rendered pixel now and then).
When a value below moves on purpose: raise the stage's version, run `python tests/test_golden.py` and put what it prints
here.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from safetensors.numpy import load_file

from vidistill.flows.execution import data_runtime, find_videos
from vidistill.flows.experiment import Graph, build
from vidistill.flows.parameters import Experiment
from vidistill.storage.clips import open_clip_array
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.opening import open_store
from vidistill.storage.pool import open_latent_array
from vidistill.storage.store import Manifest, Store
from vidistill.tasks.coded.search import load_grid
from vidistill.tasks.generate.quality import Quality, load_quality
from vidistill.tasks.learning.evaluate import load_score
from vidistill.tasks.stage import Job, Runtime, run_job, stage_of
from vidistill.tasks.videos.index import load_index
from vidistill.tasks.videos.sprites_stage import sprites_job

EXPERTS = {"epochs": 2, "batch_size": 8, "precision": "fp32"}
TRAJECTORIES = {"iterations": 1, "experts": 1, "max_start_epoch": 1, "syn_steps": 2, "expert": EXPERTS}
STATIC = {"iterations": 1, "batch_real": 2, "depth": 3}
OPTIONS: dict[str, dict[str, object]] = {
    "tsgf": {"iterations": 3, "group_classes": 4},
    "random": {},
    "dc": {"iterations": 1, "batch_real": 2},
    "static_dc": STATIC,
    "dm": {"iterations": 2, "batch_real": 2},
    "mtt": TRAJECTORIES,
    "frepo": {"iterations": 1, "batch_real": 4, "pool": 1},
    "dm_vdsd": {"iterations": 1, "batch_real": 2, "static": STATIC},
    "mtt_vdsd": TRAJECTORIES | {"static": STATIC},
    "frepo_vdsd": {"iterations": 1, "batch_real": 4, "pool": 1, "static": STATIC},
    "idtd": {"iterations": 2, "batch_real": 2},
    "sfvd": TRAJECTORIES,
    "sfvd_t": TRAJECTORIES,
    "optdistill": {"grid": 1, "fallback": "whole", "training": {"steps": 20}},
    "pool_random": {},
    "mae_score": {},
    "csta": {"iterations": 2},
    "dm_mmd": {},
    "vst_unet": {"epochs": 1, "widths": [4, 8], "features": 8},
    "tac_dt": {},
    "coded": {"preset": 8, "search": {"crfs": [30, 63], "scales": [1.0], "steps": 2, "precision": "fp32"}},
}
EXPERIMENT = {
    "data": "sprites",
    "cells": [
        {
            "method": name,
            "options": options | ({"precision": "fp32"} if "random" not in name else {}),
            "recipes": ["soft+tsgf"] if name == "tsgf" else ["hard"],
            **({"kb": [1.5]} if name == "coded" else {}),
        }
        for name, options in OPTIONS.items()
    ]
    + [{"method": "random", "recipes": ["hard"], "store": {"crf": 40, "preset": 8}}],
    "seeds": 1,
    "sprites": {"size": 48, "frames": 12, "train_per_class": 2, "test_per_class": 1},
    "decode": {"frames": 4, "size": 48, "views": 2},
    "teacher": {"epochs": 2, "precision": "fp32"},
    "student": {"steps": 3, "precision": "fp32"},
    "pool": {
        "clips_a_class": 2,
        "part_clips": 2,
        "autoencoder": {"width": 8, "steps": 10, "batch_frames": 4, "precision": "fp32"},
        "latte": {"steps": 2, "batch_size": 2, "precision": "fp32"},
        "sampler": {"steps": 2, "precision": "fp32"},
    },
}
GOLDEN: dict[str, tuple[int, object]] = {
    "sprites": (1, [24, 24.497395833333332]),
    "index": (1, "ed20ef63a0ca09f2"),
    "block": (1, [4, 4, 48, 48, 3, 59.839066116898145, 45.401230173918904]),
    "clips": (1, [0.241288, 0.22182, 0.207793, 0.167597, 0.125827, 0.067188]),
    "teacher": (1, [2.092992, 2.012164]),
    "distilled tsgf": (1, [58.786865234375]),
    "joined": (1, [57.418009440104164]),
    "relabelled": (1, [57.23698820891204, 0.1240234375, -0.0093994140625, 0.018310546875]),
    "score": (1, [2.13473, 2.112054, 2.088037]),
    "distilled random": (1, [57.424601236979164]),
    "distilled dc": (1, [57.424601236979164]),
    "distilled static_dc": (1, [56.194498697916664]),
    "distilled dm": (1, [57.423769350405095]),
    "expert": (1, [1, 3, 3642248, 0.004312883131206036, 0.0057484740391373634]),
    "distilled mtt": (1, [59.87838179976852]),
    "distilled frepo": (1, [57.424601236979164, -0.003075854852795601, -7.023321628570557, -9.214310646057129]),
    "distilled dm_vdsd": (1, [58.45875831886574]),
    "distilled mtt_vdsd": (1, [58.448531539351855]),
    "distilled frepo_vdsd": (1, [58.639205367476855, -0.003075854852795601, -7.02329683303833, -9.214310646057129]),
    "distilled idtd": (1, [57.44759566695602]),
    "distilled sfvd": (1, [55.23631004050926]),
    "distilled sfvd_t": (1, [56.77610948350694]),
    "detector": (1, [3.4848798602038333]),
    "tracks": (2, "2 detections path reason shape target tracks"),
    "crops": (2, "2 border boxes crop length path reason sampling score scores shape whole"),
    "distilled optdistill": (1, [54.98952003761574]),
    "autoencoder": (1, [74.734]),
    "latents": (1, [16, 2, 4, 4, 6, 6, 0.8027478041153194]),
    "latte": (1, [0.994266, 0.942744]),
    "pool-part": (1, [2, 4, 48, 48, 3, 125.76575159143519, 2, 4, 4, 6, 6, 0.20693038466076055]),
    "pool": (1, "16 down/0 up/1"),
    "distilled pool_random": (1, [125.69950358072917]),
    "embeddings": (1, [16, 128, 0.3882877535570515]),
    "distilled mae_score": (1, [125.67900481047454]),
    "distilled csta": (1, [125.69802969473379]),
    "distilled dm_mmd": (1, [125.69848180700231]),
    "distilled vst_unet": (1, [125.68511284722223]),
    "distilled tac_dt": (1, [125.69967086226852]),
    "coded-search": (1, "30/8"),
    "distilled coded": (1, [57.49083116319444]),
    "recoded": (1, [57.492318612557874]),
    "pool-quality": (1, "16 8"),
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
    if manifest.kind == "expert":
        weights_ESP = np.asarray(zarr.open_array(folder, path="trajectory", mode="r")[...])
        return [
            *weights_ESP.shape,
            float(np.abs(weights_ESP[0, -1]).mean()),
            float(np.abs(np.diff(weights_ESP)).mean()),
        ]
    if manifest.kind == "detector":
        weights = load_file(folder / "weights.safetensors").values()
        return [float(np.mean([np.abs(weight).mean() for weight in weights]))]
    if manifest.kind in {"tracks", "crops"}:
        outcomes = json.loads((folder / f"{manifest.kind}.json").read_text())
        return " ".join([str(len(outcomes)), *sorted(outcomes[0])])
    if manifest.kind in SHORT:
        return SHORT[manifest.kind](folder)
    made = DistilledSet.load(folder)
    logits = [] if made.logits_NK is None else made.logits_NK[0, :3].tolist()
    return [float(made.clips_NTHWC.mean()), *logits]


def _mean(array: zarr.Array) -> list[float]:
    values = np.asarray(array[...], dtype=np.float64)
    return [*values.shape, float(np.abs(values).mean())]


def _sizes(found: Quality) -> str:
    """Its numbers are computed in the precision of the CPU at hand."""
    return f"{len(found.nearest)} {len(found.accuracy_by_class)}"


def _ends(names: list[str]) -> str:
    return f"{len(names)} {names[0]} {names[-1]}"


SHORT: dict[str, Callable[[Path], object]] = {
    "autoencoder": lambda folder: [json.loads((folder / "autoencoder.json").read_text())["error"]],
    "latents": lambda folder: _mean(open_latent_array(folder)),
    "latte": lambda folder: json.loads((folder / "curve.json").read_text())["loss"],
    "pool-part": lambda folder: [*_mean(open_clip_array(folder)), *_mean(open_latent_array(folder))],
    "pool": lambda folder: _ends(
        [video["path"] for video in json.loads((folder / "table.json").read_text())["videos"]]
    ),
    "embeddings": lambda folder: _mean(zarr.open_array(folder, path="embeddings", mode="r")),
    "pool-quality": lambda folder: _sizes(load_quality(folder)),
    "score": lambda folder: list(load_score(folder).loss),
    "coded-search": lambda folder: " ".join(f"{point.crf}/{point.clips}" for point in load_grid(folder)),
}
"""What is measured where one line says it."""


def measured(folder: Path) -> dict[str, tuple[int, object]]:
    store, jobs = run_all(folder)
    found: dict[str, tuple[int, object]] = {}
    for job in jobs:
        name = " ".join(filter(None, [job.stage, job.parameters.get("method")]))
        if name not in found and job.stage != "report":
            found[name] = (stage_of(job).version, measure(store, store.manifest(job.ref)))
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
