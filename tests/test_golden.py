"""A stage whose result moves must raise its version, or old artifacts would pass for new ones.

Sets that select are known by their sources, exactly. Sets that are optimised are known by what was learnt: a few random
projections of their difference from the set that the same job makes in no iterations. Processors differ by far less
than a tenth of its size; a method that does nothing, or another thing, by all of it. Curves are known to a fifth of the
change within them, other numbers to a hundredth.

When a value below moves on purpose: raise the stage's version, run `python tests/test_golden.py` and put what it prints
here.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from vidistill.storage.store import Store
from vidistill.tasks.coded.search import load_search
from vidistill.tasks.generate.quality import Quality, load_quality
from vidistill.tasks.learning.evaluate import load_score
from vidistill.tasks.stage import Job, Runtime, run_job, stage_of
from vidistill.tasks.videos.index import load_index
from vidistill.tasks.videos.sprites_stage import sprites_job

EXPERTS = {"network": "r2plus1d_small_in", "epochs": 2, "batch_size": 8}
TRAJECTORIES = {
    "iterations": 2, "experts": 1, "max_start_epoch": 1, "syn_steps": 2, "expert": EXPERTS,
}  # fmt: skip
STATIC = {"iterations": 2, "batch_real": 2, "depth": 3, "lr": 0.1, "precision": "fp32"}
FRAMES = STATIC | {"iterations": 0}  # VDSD's images as they begin: two steps make levels of what processors round
BRIEF = {"epochs": 1, "least_steps": 3, "precision": "fp32"}
VDSD = {"lr_dynamic": 0.5, "lr_hallucinator": 1e-3}
FREPO = {"network": "r2plus1d_small_in", "lr_network": 1e-4, "iterations": 2, "batch_real": 4, "pool": 1}
IDTD = {"lr_selector": 0.01, "lr_fusor": 1e-3}
OPTIONS: dict[str, dict[str, object]] = {
    "tsgf": {"iterations": 3, "group_classes": 4, "lr": 0.2},
    "random": {},
    "dc": {"network": "r2plus1d_small_in", "iterations": 2, "batch_real": 2, "lr": 0.1},
    "static_dc": STATIC,
    "dm": {"network": "r2plus1d_small_in", "iterations": 2, "batch_real": 2, "lr": 0.1},
    "mtt": TRAJECTORIES | {"lr": 0.1},
    "frepo": FREPO | {"lr": 0.1},
    "dm_vdsd": {
        "network": "r2plus1d_small_in",
        "iterations": 2,
        "batch_real": 2,
        "static": FRAMES,
        **VDSD,
    },
    "mtt_vdsd": TRAJECTORIES | {"static": FRAMES, **VDSD},
    "frepo_vdsd": FREPO | {"static": FRAMES, **VDSD},
    "idtd": {"network": "r2plus1d_small_in", "iterations": 2, "batch_real": 2, "lr": 0.1, **IDTD},
    "sfvd": TRAJECTORIES | {"lr": 0.1},
    "sfvd_t": TRAJECTORIES | {"lr": 0.1},
    "optdistill": {"grid": 1, "fallback": "whole", "training": {"steps": 20}},
    "pool_random": {},
    "mae_score": {},
    "csta": {"iterations": 2},
    "dm_mmd": {},
    "vst_unet": {"epochs": 1, "widths": [4, 8], "features": 8},
    "tac_dt": {},
    "coded": {"preset": 8, "search": {"crfs": [30, 63], "scales": [1.0, 0.5], "student": BRIEF, "steps": 3}},
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
    "front": "rgb",
    "teacher": BRIEF,
    "student": BRIEF,
    "pool": {
        "clips_a_class": 3,
        "part_clips": 3,
        "autoencoder": {"width": 8, "steps": 10, "batch_frames": 4, "precision": "fp32"},
        "latte": {"steps": 2, "batch_size": 2, "precision": "fp32"},
        "sampler": {"steps": 2, "precision": "fp32"},
    },
}
RANDOM = "scene0001 scene0001 scene0001 scene0002 scene0002 ccw_scene0002 cw_scene0001 scene0002"
BOTH = (
    "scene0001 scene0002 scene0001 scene0002 scene0001 scene0002 scene0002 scene0001 scene0002 scene0001 "
    "ccw_scene0002 ccw_scene0001 cw_scene0001 cw_scene0002 scene0002 scene0001"
)
# fmt: off
GOLDEN: dict[str, tuple[int, Any]] = {
    "sprites": (2, [24, 24.497395833333332]),
    "index": (1, "d19e65eb1ca32d24"),
    "block": (1, [4, 4, 48, 48, 3, 59.839066116898145, 45.401230173918904]),
    "clips": (1, [0.241288, 0.22182, 0.207793, 0.167597, 0.125827, 0.067188]),
    "teacher": (2, [2.108548, 2.076772, 1.981305]),
    "distilled tsgf": (1, {
        "sources": "scene0001 scene0001 scene0001 scene0002",
        "change": [3.879, 1.377, -3.951, -3.181, -9.863, -1.774, -3.097, -0.3789]}),
    "joined": (2, {"sources": RANDOM}),
    "relabelled": (1, {
        "change": [-22.47, -2.364, 19.57, -4.699, -8.667, -22.01, 3.496, -1.807],
        "logits": [0.1611, 0.01221, 0.01117, -0.06348, 0.1172, 0.01697, 0.1074, 0.0752]}),
    "score": (2, [2.111382, 2.105566, 2.092642]),
    "distilled random": (1, {"sources": RANDOM}),
    "distilled dc": (1, {"sources": RANDOM, "change": [-8.79, 7.557, 7.795, -7.153, 0.4168, -2.683, 0.5613, -11.69]}),
    "distilled static_dc": (1, {"sources": RANDOM,
        "change": [-6.447, -1.093, 0.9143, 8.225, 2.641, 5.277, 0.4082, 7.132]}),
    "distilled dm": (1, {"sources": RANDOM, "change": [-1.244, 2.35, 2.35, 0.4486, 0.7123, -3.732, -5.713, 1.401]}),
    "expert": (2, [1, 3, 104384, 0.03703048825263977, 0.0431637316942215]),
    "distilled mtt": (1, {"sources": RANDOM,
        "change": [3.374, -1.508, 0.2828, -3.026, -8.367, 8.154, -4.204, -7.988]}),
    "distilled frepo": (1, {"sources": RANDOM,
        "change": [1.095, 1.32, -4.535, 7.227, 0.2573, 2.018, -3.374, -6.092],
        "logits": [-0.001652, -0.002355, -0.002355, -0.002355, 2.0, 2.41, -0.002355, -0.002355]}),
    "distilled dm_vdsd": (1, {"sources": RANDOM,
        "change": [5.335, -5.798, -4.161, -0.7846, -3.038, 17.22, 1.571, -0.9547]}),
    "distilled mtt_vdsd": (1, {"sources": RANDOM,
        "change": [2.262, -1.161, -10.3, 10.73, -2.926, 8.556, -2.705, -2.777]}),
    "distilled frepo_vdsd": (1, {"sources": RANDOM,
        "change": [0.8463, -1.629, -7.68, -2.075, -4.129, 4.852, 7.144, -4.134],
        "logits": [-0.002544, 2.363, -0.001276, -0.001276, 1.998, 2.343, -0.001276, -0.001276]}),
    "distilled idtd": (1, {"sources": RANDOM, "change": [-4.365, -8.979, -2.29, -6.976, 1.036, 9.107, -3.732, 1.227]}),
    "distilled sfvd": (1, {"sources": RANDOM, "change": [7.689, -8.101, -2.05, -1.616, 5.107, 4.771, -1.072, 6.392]}),
    "distilled sfvd_t": (1, {"sources": RANDOM,
        "change": [-2.237, -0.3572, -6.468, 3.015, -5.554, 0.4465, 5.388, -5.843]}),
    "detector": (2, [3.484296274664361]),
    "tracks": (4, "2 detections path reason shape target tracks"),
    "crops": (3, "2 border boxes crop length path reason sampling score scores shape whole"),
    "distilled optdistill": (1, {
        "sources": "scene0002 scene0002 scene0001 scene0002 scene0002 ccw_scene0001 cw_scene0001 scene0001",
        "mean": [60.14, 55.94, 52.89]}),
    "autoencoder": (1, [74.734]),
    "latents": (1, [16, 2, 4, 4, 6, 6, 0.8027478041153194]),
    "latte": (1, [0.994266, 0.942744]),
    "pool-part": (2, [3, 4, 48, 48, 3, 125.7502772955247, 3, 4, 4, 6, 6, 0.2049959902824075]),
    "pool": (1, "24 down/0 up/2"),
    "distilled pool_random": (1, {"sources": "2 1 0 1 1 1 2 2"}),
    "embeddings": (1, [24, 96, 0.1747820070417837]),
    "distilled mae_score": (1, {"sources": "2 2 2 2 2 1 2 1"}),
    "distilled csta": (1, {"sources": "0 2 2 1 0 0 2 2"}),
    "distilled dm_mmd": (1, {"sources": "2 0 1 0 1 2 1 0"}),
    "distilled vst_unet": (1, {"sources": "0 1 0 0 2 2 2 1"}),
    "distilled tac_dt": (1, {"sources": "2 0 1 0 1 2 1 0"}),
    "coded-search": (4, "30/8 30/8"),
    "distilled coded": (1, {"sources": BOTH, "mean": [61.88, 56.35, 52.89]}),
    "recoded": (2, {"sources": RANDOM, "mean": [62.52, 56.8, 53.15]}),
    "teacher-score": (1, [2.108548, 2.076772, 1.981305]),
    "expert-score": (2, [2.137069, 1.999145]),
    "pool-quality": (5, "24 8"),
}
# fmt: on


def run_all(folder: Path) -> tuple[Store, list[Job]]:
    """Every job of the experiment, one after another, without Prefect."""
    experiment = Experiment.model_validate(EXPERIMENT)
    runtime = Runtime(store=str(folder), threads=1)
    first = sprites_job(experiment.sprites)
    run_job(first, runtime)
    runtime = data_runtime(experiment, runtime)
    graph: Graph = build(experiment, find_videos(experiment, runtime))
    for job in graph.jobs.values():
        run_job(job, runtime)
    return open_store(str(folder)), [first, *graph.jobs.values()]


def measure(store: Store, job: Job) -> object:
    """A short description of an artifact's content."""
    folder = store.folder(job.ref)
    if job.stage in {"distilled", "joined", "recoded"}:
        return measure_set(store, job)
    if job.stage == "relabelled":
        made, begun = (DistilledSet.load(store.folder(ref)) for ref in (job.ref, job.inputs["distilled"][0]))
        return {"change": change(begun.clips_NTHWC, made.clips_NTHWC), "logits": _rounded(logits(made)[0])}
    if job.stage == "index":
        rows = [(video.path, video.label, video.split, video.group) for video in load_index(store, job.ref).videos]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
    return SHORT[job.stage](folder)


def measure_set(store: Store, job: Job) -> dict[str, object]:
    """Where its clips came from, and what was learnt where anything was."""
    made, options = DistilledSet.load(store.folder(job.ref)), job.parameters.get("options", {})
    found: dict[str, object] = {"sources": " ".join(map(_short, made.sources))}
    if "iterations" in options and "embedding" not in options:
        begun = without_iterations(store, job)
        found["change"] = change(begun.clips_NTHWC, made.clips_NTHWC)
        if made.logits_NK is not None:
            found["logits"] = _rounded(logits(made)[0] - logits(begun)[0])
    elif "detector" in options or made.form == "coded":
        found["mean"] = _rounded(made.clips_NTHWC.mean((0, 1, 2, 3)))
    return found


def without_iterations(store: Store, job: Job) -> DistilledSet:
    """The set that the same job makes without a step of its own."""
    parameters = job.parameters | {"options": job.parameters["options"] | {"iterations": 0}}
    ref, _ = run_job(job.model_copy(update={"parameters": parameters}), Runtime(store=store.location, threads=1))
    return DistilledSet.load(store.folder(ref))


def logits(made: DistilledSet) -> np.ndarray:
    assert made.logits_NK is not None
    return made.logits_NK


def _short(source: str) -> str:
    """The group and the number in a video's name, the number of a generated clip."""
    name = Path(source).stem
    return name.partition("_")[2] or name


def change(begun: np.ndarray, made: np.ndarray) -> list[float]:
    """Eight random projections of a difference, each as large as the difference is in levels a pixel."""
    moved = made.astype(np.float64) - begun
    signs = np.random.default_rng(0)
    return _rounded(np.array([(moved * signs.choice([-1, 1], moved.shape)).sum() for _ in range(8)]) / moved.size**0.5)


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def _sprites(folder: Path) -> list[float]:
    boxes = json.loads((folder / "boxes.json").read_text())
    return [len(list(folder.rglob("*.mp4"))), float(np.mean([video["boxes"] for video in boxes.values()]))]


def _block(folder: Path) -> list[float]:
    clips_NTHWC = np.asarray(open_clip_array(folder)[...])
    return [*clips_NTHWC.shape, float(clips_NTHWC.mean()), float(clips_NTHWC[-1, -1].std())]


def _clips(folder: Path) -> list[float]:
    table = json.loads((folder / "table.json").read_text())
    return [round(value, 6) for value in (*table["mean"], *table["std"])]


def _expert(folder: Path) -> list[float]:
    """Its first and last weights, and how far they moved."""
    weights_ESP = np.asarray(zarr.open_array(folder, path="trajectory", mode="r")[...])
    return [*weights_ESP.shape, float(np.abs(weights_ESP[0, -1]).mean()), float(np.abs(np.diff(weights_ESP)).mean())]


def _detector(folder: Path) -> list[float]:
    weights = load_file(folder / "weights.safetensors").values()
    return [float(np.mean([np.abs(weight).mean() for weight in weights]))]


def _outcomes(name: str) -> Callable[[Path], str]:
    def fields(folder: Path) -> str:
        outcomes = json.loads((folder / name).read_text())
        return " ".join([str(len(outcomes)), *sorted(outcomes[0])])

    return fields


def _loss(folder: Path) -> list[float]:
    return json.loads((folder / "curve.json").read_text())["loss"]


def _mean(array: zarr.Array) -> list[float]:
    values = np.asarray(array[...], dtype=np.float64)
    return [*values.shape, float(np.abs(values).mean())]


def _sizes(found: Quality) -> str:
    """Its numbers are computed in the precision of the CPU at hand."""
    return f"{len(found.nearest)} {len(found.accuracy_by_class)}"


def _ends(names: list[str]) -> str:
    return f"{len(names)} {names[0]} {names[-1]}"


SHORT: dict[str, Callable[[Path], object]] = {
    "sprites": _sprites,
    "block": _block,
    "clips": _clips,
    "teacher": _loss,
    "expert": _expert,
    "detector": _detector,
    "tracks": _outcomes("tracks.json"),
    "crops": _outcomes("crops.json"),
    "autoencoder": lambda folder: [json.loads((folder / "autoencoder.json").read_text())["error"]],
    "latents": lambda folder: _mean(open_latent_array(folder)),
    "latte": _loss,
    "pool-part": lambda folder: [*_mean(open_clip_array(folder)), *_mean(open_latent_array(folder))],
    "pool": lambda folder: _ends(
        [video["path"] for video in json.loads((folder / "table.json").read_text())["videos"]]
    ),
    "embeddings": lambda folder: _mean(zarr.open_array(folder, path="embeddings", mode="r")),
    "pool-quality": lambda folder: _sizes(load_quality(folder)),
    "score": lambda folder: list(load_score(folder).loss),
    "teacher-score": lambda folder: list(load_score(folder).loss),
    "expert-score": lambda folder: list(load_score(folder).loss),
    "coded-search": lambda folder: " ".join(f"{point.crf}/{point.clips}" for point in load_search(folder).points),
}


def measured(folder: Path) -> dict[str, tuple[int, object]]:
    store, jobs = run_all(folder)
    found: dict[str, tuple[int, object]] = {}
    for job in jobs:
        name = " ".join(filter(None, [job.stage, job.parameters.get("method")]))
        if name not in found and job.stage != "report":
            found[name] = (stage_of(job).version, measure(store, job))
    return found


CURVES = {"teacher", "score"}


def same(kind: str, found: object, recorded: object) -> bool:
    """Whether a measurement is the recorded one; see the top of this file."""
    if isinstance(recorded, dict):
        assert isinstance(found, dict)
        return found.keys() == recorded.keys() and all(same(name, found[name], recorded[name]) for name in recorded)
    if isinstance(recorded, str):
        return found == recorded
    found_N, recorded_N = np.array(found), np.array(recorded)
    if kind in {"change", "logits"}:
        return bool(np.linalg.norm(found_N - recorded_N) < 0.1 * np.linalg.norm(recorded_N))
    if kind in CURVES:
        return bool(np.linalg.norm(found_N - recorded_N) < 0.2 * np.linalg.norm(recorded_N - recorded_N[0]))
    return found == pytest.approx(recorded, rel=1e-2)


def test_no_result_moved_without_a_new_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = measured(tmp_path / "store")
    assert found.keys() == GOLDEN.keys()
    for kind, (version, value) in found.items():
        recorded_version, recorded = GOLDEN[kind]
        assert version == recorded_version, f"{kind} has a new version: record its new value"
        assert same(kind, value, recorded), f"the result of {kind} moved from {recorded} to {value}: raise its version"


def test_what_is_recorded_tells_methods_apart() -> None:
    """Everything that is optimised moved by levels, none as another did, and the pool's selections differ."""
    sets = {kind: value for kind, (_, value) in GOLDEN.items() if kind.startswith("distilled ")}
    changes = {kind: np.array(value["change"]) for kind, value in sets.items() if "change" in value}
    assert {name for name, options in OPTIONS.items() if "iterations" in options and name != "csta"} == {
        kind.removeprefix("distilled ") for kind in changes
    }
    for kind, moved in changes.items():
        assert np.abs(moved).mean() > 1, f"{kind} hardly moves: raise its rate"
        assert not same("change", np.zeros_like(moved), moved)
        assert not any(same("change", other, moved) for name, other in changes.items() if name != kind)
    chosen = [sets[f"distilled {name}"]["sources"] for name in ("pool_random", "mae_score", "csta", "dm_mmd")]
    assert len(set(chosen)) == len(chosen)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for kind, value in measured(Path(scratch)).items():
            print(f'    "{kind}": {value},')
