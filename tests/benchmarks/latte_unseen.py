"""Whether Lattes of sprites know their clips by heart: their loss on clips of theirs and on clips of other scenes.

    python tests/benchmarks/latte_unseen.py --store STORE

Of each Latte in the store that was trained on sprites: the loss, averaged weights and true classes, at five steps of
the diffusion, on 160 of its training clips and on 160 of 20 scenes that were rendered from another seed, each pair with
one noise. Other scenes are made as the training clips of `pool_sprites` are; half a minute a Latte.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from vidistill.flows.execution import data_runtime, find_videos
from vidistill.flows.parameters import PoolRequest, load_preset
from vidistill.models.compute import keep_freed_memory
from vidistill.models.diffusion import diffusion_loss, noised
from vidistill.storage.clips import Clips
from vidistill.storage.opening import open_store
from vidistill.storage.pool import open_latent_array
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.generate.autoencoder import latents_job
from vidistill.tasks.generate.diffusion import load_latte
from vidistill.tasks.learning.training import Device
from vidistill.tasks.stage import Runtime, run_job
from vidistill.tasks.videos.decode import block_jobs, clips_job
from vidistill.tasks.videos.index import index_job
from vidistill.tasks.videos.sprites import CLASSES, SpritesParameters
from vidistill.tasks.videos.sprites_stage import sprites_job

STEPS = (100, 300, 450, 600, 800)
SCENES = SpritesParameters(seed=1, train_per_class=20, test_per_class=1)
AT_ONCE = 32


def other_scenes(runtime: Runtime) -> ArtifactRef:
    """The clips of other scenes, at the size that is generated."""
    request = PoolRequest.model_validate(load_preset("pool_sprites") | {"sprites": SCENES})
    decode = request.decode.model_copy(update={"size": request.pool.size})
    run_job(sprites_job(request.sprites), runtime)
    runtime = data_runtime(request, runtime)
    table = find_videos(request, runtime, 1)
    blocks, indexed = block_jobs(table, decode, "train"), index_job(table, request.index)
    joined = clips_job(indexed.ref, decode, "train", blocks)
    for job in (indexed, *blocks, joined):
        run_job(job, runtime)
    return joined.ref


def batch_of(store: Store, clips: ArtifactRef, latents: ArtifactRef) -> tuple[Tensor, Tensor]:
    """z_NCTHW and labels_N of as many clips as the other scenes have, evenly chosen."""
    labels_M = Clips(store, clips).labels_N
    rows = np.linspace(0, len(labels_M) - 1, len(CLASSES) * SCENES.train_per_class).astype(int)
    array = open_latent_array(store.folder(latents))
    z_NCTHW = np.stack([array[row][0] for row in rows]).astype(np.float32)
    return torch.from_numpy(z_NCTHW), torch.from_numpy(labels_M[rows])


def losses(store: Store, latte: ArtifactRef, batch: tuple[Tensor, Tensor], device: Device) -> list[float]:
    network, random, found = load_latte(store, latte, device), torch.Generator().manual_seed(0), []
    for step in STEPS:
        of_parts = []
        for z_BCTHW, labels_B in zip(*(tensor.split(AT_ONCE) for tensor in batch), strict=True):
            noise_BCTHW, steps_B = torch.randn(z_BCTHW.shape, generator=random), torch.full_like(labels_B, step)
            with torch.inference_mode(), device.autocast():
                output = network(noised(z_BCTHW, noise_BCTHW, steps_B), steps_B, labels_B)
            of_parts.append(float(diffusion_loss(output, z_BCTHW, noise_BCTHW, steps_B, velocity=network.velocity)))
        found.append(float(np.mean(of_parts)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True)
    runtime = Runtime(store=parser.parse_args().store, threads=1)
    keep_freed_memory()
    store, device = open_store(runtime.store), Device.on(runtime, 1, "auto")
    others = other_scenes(runtime)
    for entry in store.survey("latte").values():
        if (manifest := entry.manifest) is None:
            continue
        (clips,), (latents,) = manifest.inputs["clips"], manifest.inputs["latents"]
        if (classes := Clips(store, clips).classes) != Clips(store, others).classes:
            print(f"{manifest.ref}: not of sprites, but of {', '.join(classes[:3])} …", flush=True)
            continue
        codec, precision = store.manifest(latents).inputs["autoencoder"][0], store.manifest(latents).parameters
        job = latents_job(others, codec, precision["precision"])
        run_job(job, runtime)
        own = manifest.parameters
        for name, batch in (("its own", batch_of(store, clips, latents)), ("others", batch_of(store, others, job.ref))):
            by_step = losses(store, manifest.ref, batch, device)
            shown = ", ".join(f"{loss:.3f} at {step}" for step, loss in zip(STEPS, by_step, strict=True))
            print(f"Latte {own['size']}, {own['steps']} steps of {len(Clips(store, clips))} clips, {name}:"
                  f" {np.mean(by_step):.3f} ({shown})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
