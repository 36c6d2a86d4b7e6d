"""Seconds that each selection takes a class, out of a pool of so many clips a class.

    python tests/benchmarks/selection_speed.py                                    # 8 classes × 100 clips, 5 chosen
    python tests/benchmarks/selection_speed.py --classes 50 --frames 16 --latent 32 --dimensions 1408 --device cuda

The pool is one of noise, as are the embeddings: only the time of choosing is told, with the training of the heads and
of VST-UNet, whose time is shared out over the classes, and reading the chosen clips; the generator, the decoder and the
embeddings are made once for all of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import sklearn.cluster
import sklearn.decomposition
import sklearn.linear_model
import torch
import zarr

from vidistill.storage.clips import TABLE, Clips, ClipTable, ClipVideo, create_clip_array
from vidistill.storage.pool import LATENTS, Pool, create_latent_array
from vidistill.storage.store import Manifest, Store
from vidistill.tasks.learning.embedding import EMBEDDINGS
from vidistill.tasks.learning.training import Device
from vidistill.tasks.methods import Material, find_method

LOADED = (sklearn.cluster, sklearn.decomposition, sklearn.linear_model)  # here, so that no method's time has the import
SELECTORS = ("pool_random", "mae_score", "csta", "dm_mmd", "vst_unet", "tac_dt")
SIDE = 8 * 7


def noise_part(store: Store, kind: str, count: int, options: argparse.Namespace) -> Manifest:
    """Clips of noise with latents of noise."""
    part = Manifest(kind=kind, key="noise", version=1, parameters={}, inputs={})
    random = np.random.default_rng(0)
    with store.writing(part) as attempt:
        clips = create_clip_array(attempt.folder, (count, options.frames, SIDE, SIDE, 3))
        shape_CTHW = (4, options.frames, options.latent, options.latent)
        latents = create_latent_array(attempt.folder, (count, *shape_CTHW))
        for row in range(count):
            clips[row] = random.integers(0, 256, clips.shape[1:], dtype=np.uint8)
            latents[row] = random.standard_normal(shape_CTHW).astype(np.float16)
    return part


def noise_set(store: Store, kind: str, part: Manifest, a_class: int, options: argparse.Namespace) -> Manifest:
    """The table over a part: a pool or a training split, its clips class by class."""
    videos = tuple(
        ClipVideo(path=f"{row // a_class}/{row % a_class}", label=row // a_class, group=None, duration_seconds=None,
                  block=0, row=row)
        for row in range(options.classes * a_class)
    )  # fmt: skip
    names = tuple(f"class {label}" for label in range(options.classes))
    table = ClipTable(classes=names, flips=False, views=1, mean=(0.5,) * 3, std=(0.3,) * 3, videos=videos, rejected=())
    inputs = {"blocks": [part.ref], LATENTS: [part.ref]}
    made = Manifest(kind=kind, key="noise", version=1, parameters={}, inputs=inputs)
    with store.writing(made) as attempt:
        (attempt.folder / TABLE).write_text(table.model_dump_json())
    return made


def noise_embeddings(folder: Path, count: int, options: argparse.Namespace) -> Path:
    """Embeddings in which a class is a cloud of its own, so that heads have something to learn."""
    random = np.random.default_rng(1)
    middles_KD = random.normal(size=(options.classes, options.dimensions))
    emb_ND = middles_KD.repeat(count, axis=0) + random.normal(size=(options.classes * count, options.dimensions))
    zarr.create_array(folder, name=EMBEDDINGS, data=emb_ND.astype(np.float32))
    return folder


def noise_material(folder: Path, options: argparse.Namespace) -> Material:
    """What a selection is given: a pool, training clips and both their embeddings."""
    store = Store(folder / "store")
    part = noise_part(store, "part", options.classes * options.clips, options)
    real = noise_part(store, "block", options.classes * options.real, options)
    pool = Pool(store, noise_set(store, "pool", part, options.clips, options).ref)
    clips = Clips(store, noise_set(store, "clips", real, options.real, options).ref)
    places = {
        EMBEDDINGS: noise_embeddings(folder / "made", options.clips, options),
        "real": noise_embeddings(folder / "real", options.real, options),
    }
    device = Device(torch.device(options.device), "fp32", options.threads)
    return Material(
        clips, options.ipc, 0, tuple(range(options.classes)), device, lambda: None, lambda name: [places[name]],
        lambda *_: None, pool=lambda: pool,
    )  # fmt: skip


def seconds_of(name: str, material: Material, options: argparse.Namespace) -> float:
    found = find_method(name).method
    epochs = {"epochs": options.epochs} if name == "vst_unet" and options.epochs else {}
    method = found(found.Parameters(**epochs))
    began = time.perf_counter()
    method.distil(material)
    return time.perf_counter() - began


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--clips", type=int, default=100, help="generated clips a class")
    parser.add_argument("--real", type=int, default=60, help="real training clips a class, for the heads")
    parser.add_argument("--ipc", type=int, default=5)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--latent", type=int, default=7, help="height and width of the latents")
    parser.add_argument("--dimensions", type=int, default=128, help="of the embeddings")
    parser.add_argument("--epochs", type=int, help="of VST-UNet; its default where none is given")
    parser.add_argument("--methods", default=",".join(SELECTORS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        material = noise_material(Path(scratch), options)
        print(f"{options.classes} classes, {options.clips} clips each, {options.ipc} chosen; latents of 4 channels,")
        print(f"{options.frames} frames, {options.latent}×{options.latent}; embeddings of {options.dimensions}; "
              f"{options.device}, {options.threads} threads\n")  # fmt: skip
        print("| method | seconds a class | seconds in all |\n|---|---:|---:|")
        for name in options.methods.split(","):
            seconds = seconds_of(name, material, options)
            print(f"| {name} | {seconds / options.classes:.3f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
