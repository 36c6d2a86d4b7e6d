"""Clips a second of a pool's sampler against the plain reference loop, at the same network, and what the teacher says.

    vidistill pool --data sprites --frames 8 --size 56 --store STORE
    python tests/benchmarks/sampling_speed.py --store STORE            # the newest pool of the store

"Plain" is 250 steps of DDPM in fp32, one clip at a time. Both sides generate clips of every
class with the pool's own guidance, and the same teacher, which saw neither, names their classes.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch

from vidistill.models import compute
from vidistill.storage.clips import Clips
from vidistill.storage.opening import open_store
from vidistill.storage.pool import Pool
from vidistill.storage.store import Store
from vidistill.tasks.generate.autoencoder import decoded, load_codec
from vidistill.tasks.generate.diffusion import load_latte
from vidistill.tasks.generate.sample import SamplerParameters, sampled
from vidistill.tasks.learning import training
from vidistill.tasks.learning.teacher import load_teacher
from vidistill.tasks.learning.training import Device


@dataclass(frozen=True)
class Bench:
    """A generator, its pool's sampler, and the teacher."""

    store: Store
    pool: Pool
    clips: Clips
    inputs: dict
    teacher: object

    @staticmethod
    def of(store: Store) -> Bench:
        newest = max((store.manifest(ref) for ref in store.refs("pool-quality")), key=lambda found: found.created)
        pool, train, teacher = (newest.inputs[name][0] for name in ("pool", "clips", "teacher"))
        return Bench(store, Pool(store, pool), Clips(store, train), store.manifest(pool).inputs, teacher)


def measure(bench: Bench, sampler: SamplerParameters, device: Device, per_class: int) -> list[object]:
    """A row: clips a second (latents and decoding), and the share of clips whose class the teacher names."""
    network = load_latte(bench.store, bench.inputs["latte"][0], device)
    codec = load_codec(bench.store, bench.inputs["autoencoder"][0], device)
    batches = [range(first, min(first + sampler.batch_size, per_class))
               for first in range(0, per_class, sampler.batch_size)]  # fmt: skip
    made, labels = [], []
    sampled(network, sampler.model_copy(update={"steps": 2}), 1, 0, batches[0], bench.pool.shape_CTHW, device)  # warm
    began = time.perf_counter()
    for label in range(len(bench.clips.classes)):
        for numbers in batches:
            z = sampled(network, sampler, 1, label, numbers, bench.pool.shape_CTHW, device)
            made.append(decoded(codec, z, device))
            labels += [label] * len(numbers)
    seconds = time.perf_counter() - began
    right = named(bench, np.concatenate(made), device) == np.array(labels)
    return [sampler.method, sampler.steps, sampler.batch_size, device.precision, len(labels) / seconds, right.mean()]


def named(bench: Bench, clips_NTHWC: np.ndarray, device: Device) -> np.ndarray:
    teacher = load_teacher(bench.store, bench.teacher, bench.clips, device)
    table, size = bench.clips.table, bench.clips.shape_THWC[1]
    x = training.to_input(clips_NTHWC, table.mean, table.std, device)
    if x.shape[-1] != size:
        x = torch.nn.functional.interpolate(x, size=(x.shape[2], size, size), mode="trilinear")
    return training.predict(teacher, iter(x.split(16)), device).numpy().argmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--clips", type=int, default=5, help="clips a class of the sampler under test")
    parser.add_argument("--plain-clips", type=int, default=1, help="clips a class of the plain loop")
    parser.add_argument("--plain-steps", type=int, default=250)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bench = Bench.of(open_store(given.store))
    where = compute.resolve_device("auto")
    own = SamplerParameters.model_validate(bench.pool.facts["sampler"])
    plain = own.model_copy(update={"method": "ddpm", "steps": given.plain_steps, "batch_size": 1, "chunks": ()})
    ours = Device(where, compute.resolve_precision(own.precision, where), given.threads)
    rows = [
        ["plain", *measure(bench, plain, Device(where, "fp32", given.threads), given.plain_clips)],
        ["ours", *measure(bench, own, ours, given.clips)],
    ]
    print(f"{'':8}{'sampler':8}{'steps':>6}{'batch':>6}{'':2}{'precision':10}{'clips/s':>9}{'teacher':>9}")
    for name, method, steps, batch, precision, speed, right in rows:
        print(f"{name:8}{method:8}{steps:6}{batch:6}  {precision:10}{speed:9.3f}{right:9.1%}")
    print(f"ours / plain: {rows[1][5] / rows[0][5]:.1f}× on {where} with {given.threads} threads")


if __name__ == "__main__":
    main()
