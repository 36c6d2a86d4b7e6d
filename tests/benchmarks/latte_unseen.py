"""Whether Lattes of sprites know their clips by heart: their loss on clips of theirs and on clips of other scenes.

    python tests/benchmarks/latte_unseen.py --store STORE

Of each Latte in the store that was trained on sprites: the loss, averaged weights and true classes, at five steps of
the diffusion, on 160 of its training clips and on 160 of 20 scenes that were rendered from another seed, each pair with
one noise; and that of a frame whose others are nearly clear, which tells how much is carried over from them. Other
scenes are made as the training clips of `pool_sprites` are; half a minute a Latte.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from network_choice import training_clips
from numpy.typing import NDArray
from torch import Tensor

from vidistill.flows.parameters import PoolRequest, load_preset
from vidistill.models.compute import keep_freed_memory
from vidistill.models.diffusion import diffusion_loss, noised
from vidistill.models.latte import Latte
from vidistill.storage.clips import Clips
from vidistill.storage.opening import open_store
from vidistill.storage.pool import open_latent_array
from vidistill.storage.store import ArtifactRef, Manifest, Store
from vidistill.tasks.generate.autoencoder import latents_job
from vidistill.tasks.generate.diffusion import load_latte
from vidistill.tasks.learning.training import Device
from vidistill.tasks.stage import Runtime, run_job
from vidistill.tasks.videos.sprites import CLASSES, SpritesParameters

STEPS = (100, 300, 450, 600, 800)
SCENES = SpritesParameters(seed=1, train_per_class=20, test_per_class=1)
AT_ONCE = 32


def other_scenes(runtime: Runtime) -> ArtifactRef:
    """The clips of other scenes, at the size that is generated."""
    request = PoolRequest.model_validate(load_preset("pool_sprites") | {"sprites": SCENES})
    decode = request.decode.model_copy(update={"size": request.pool.size})
    return training_clips(request.model_copy(update={"decode": decode}), runtime)


def batch_of(store: Store, labels_M: NDArray[np.int64], latents: ArtifactRef) -> tuple[Tensor, Tensor]:
    """z_NCTHW and labels_N of as many clips as the other scenes have, evenly chosen of M."""
    rows = np.linspace(0, len(labels_M) - 1, len(CLASSES) * SCENES.train_per_class).astype(int)
    array = open_latent_array(store.folder(latents))
    z_NCTHW = np.stack([array[row][0] for row in rows]).astype(np.float32)
    return torch.from_numpy(z_NCTHW), torch.from_numpy(labels_M[rows])


def losses(network: Latte, batch: tuple[Tensor, Tensor], device: Device) -> list[float]:
    """At each of STEPS, and last of the middle frame at 600 where the others are at 50."""
    frames = batch[0].shape[2]
    middle = slice(frames // 2, frames // 2 + 1)
    among_clear_T = torch.full((frames,), 50)
    among_clear_T[middle] = 600
    cases = [(torch.full((frames,), step), slice(None)) for step in STEPS] + [(among_clear_T, middle)]
    random, found = torch.Generator().manual_seed(0), []
    for steps_T, shown in cases:
        of_parts = []
        for z_BCTHW, labels_B in zip(*(tensor.split(AT_ONCE) for tensor in batch), strict=True):
            noise_BCTHW, steps_BT = torch.randn(z_BCTHW.shape, generator=random), steps_T.expand(len(labels_B), -1)
            with torch.inference_mode(), device.autocast():
                output = network(noised(z_BCTHW, noise_BCTHW, steps_BT), steps_BT, labels_B)
            parts = (tensor[:, :, shown] for tensor in (output, z_BCTHW, noise_BCTHW))
            of_parts.append(float(diffusion_loss(*parts, steps_BT[:, shown], velocity=network.velocity)))
        found.append(float(np.mean(of_parts)))
    return found


def examine(store: Store, latte: Manifest, others: ArtifactRef, runtime: Runtime, device: Device) -> None:
    own, unseen = Clips(store, latte.inputs["clips"][0]), Clips(store, others)
    if own.classes != unseen.classes:
        print(f"{latte.ref}: not of sprites, but of {', '.join(own.classes[:3])} …", flush=True)
        return
    latents = store.manifest(latte.inputs["latents"][0])
    job = latents_job(others, latents.inputs["autoencoder"][0], latents.parameters["precision"])
    run_job(job, runtime)
    network = load_latte(store, latte.ref, device)
    for name, clips, ref in (("its own", own, latents.ref), ("others", unseen, job.ref)):
        *by_step, of_frame = losses(network, batch_of(store, clips.labels_N, ref), device)
        shown = ", ".join(f"{loss:.3f} at {step}" for step, loss in zip(STEPS, by_step, strict=True))
        print(f"Latte {latte.parameters['size']}, {latte.parameters['steps']} steps of {len(own)} clips, {name}:"
              f" {np.mean(by_step):.3f} ({shown}), a frame at 600 among clear ones {of_frame:.3f}",
              flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True)
    runtime = Runtime(store=parser.parse_args().store, threads=1)
    keep_freed_memory()
    store, device = open_store(runtime.store), Device.on(runtime, 1, "auto")
    others = other_scenes(runtime)
    for entry in store.survey("latte").values():
        if entry.manifest:
            examine(store, entry.manifest, others, runtime, device)


if __name__ == "__main__":
    main()
