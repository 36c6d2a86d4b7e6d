"""Sample: clips from the transformer, in parts of fixed size, each an artifact of its own.

A clip is drawn by (seed, class, index) alone, so that parts can be made anywhere, in any order, and more of them later.

Shapes: B clips a batch, N clips a part, C latent channels, T frames, h, w latent height and width.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from vidistill.models.regions import resize
from vidistill.storage.clips import create_clip_array, open_clip_array
from vidistill.storage.errors import RunError
from vidistill.storage.parameters import Parameters
from vidistill.storage.pool import create_latent_array
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.generate.autoencoder import decoded, load_codec
from vidistill.tasks.generate.diffusion import load_latte
from vidistill.tasks.learning import streams
from vidistill.tasks.learning.training import Device, Precision, generator
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from torch import Tensor

    from vidistill.models.latte import Latte

DDIM_VERSION = 3  # of its parts alone: each step goes to where the next begins, however many there are


class SamplerParameters(Parameters):
    """How noise becomes clips. Published: 250 steps of DDPM, guidance 7 (methods §9)."""

    method: Literal["ddim", "dpm", "ddpm"] = Field(
        "dpm",
        description="ddim, which is DPM-Solver++ of first order; dpm: that of second order; ddpm: the published one, "
        "slow and stochastic.",
    )
    steps: int = Field(25, ge=1, le=1000)
    guidance: float = Field(3.0, ge=1, description="Scale of classifier-free guidance; 1 is none, and half the work.")
    chunks: tuple[PositiveInt, ...] = Field(
        (),
        exclude_if=lambda chunks: not chunks,
        description="Frames that are generated one chunk after another, such as 1 and 7, each beside those before and "
        "guided by them (Diffusion Forcing, Chen et al. 2024; history guidance, Song et al. 2025), so that shapes "
        "stay; for a Latte that learned with frame_noise. Published: all at once.",
    )
    batch_size: int = Field(10, ge=1, description="Clips at a time.")
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _steps_that_there_are(self) -> Self:
        if self.method == "dpm" and self.steps > 999:
            raise ValueError("dpm takes at most 999 steps")
        if self.method == "ddpm" and self.steps < 2:
            raise ValueError("ddpm takes at least 2 steps")
        return self


class PartParameters(Parameters):
    """Clips number first … first + count − 1 of a class."""

    sampler: SamplerParameters
    seed: int
    label: int
    first: int
    count: int


def part_jobs(
    latte: ArtifactRef, codec: ArtifactRef, sampler: SamplerParameters, seed: int, classes: Sequence[str],
    clips_a_class: int, part_clips: int,
) -> list[Job]:  # fmt: skip
    """The parts that hold so many clips a class, class by class; the last of a class is whole too."""
    inputs = {"latte": latte, "autoencoder": codec}
    return [
        pool_part(
            PartParameters(sampler=sampler, seed=seed, label=label, first=first, count=part_clips),
            inputs,
            label=f"generate {name} {first}–{first + part_clips - 1}",
            version=DDIM_VERSION if sampler.method == "ddim" else None,
        )
        for label, name in enumerate(classes)
        for first in range(0, clips_a_class, part_clips)
    ]


@stage("pool-part", version=2, threads="all")  # 2: DDPM begins at the last step, as published; 3: DDIM's
def pool_part(work: Work) -> None:
    parameters = PartParameters.model_validate(work.job.parameters)
    sampler, numbers = parameters.sampler, range(parameters.first, parameters.first + parameters.count)
    device = Device.of(work, sampler.precision)
    network = load_latte(work.store, work.ref("latte"), device)
    codec = load_codec(work.store, work.ref("autoencoder"), device)
    shape_CTHW = (network.channels, network.frames, network.side, network.side)
    size = network.side * codec.factor
    clips = create_clip_array(work.folder, (parameters.count, shape_CTHW[1], size, size, 3))
    latents = create_latent_array(work.folder, (parameters.count, *shape_CTHW))
    for start in range(0, parameters.count, sampler.batch_size):
        rows = numbers[start : start + sampler.batch_size]
        z_BCTHW = sampled(network, sampler, parameters.seed, parameters.label, rows, shape_CTHW, device)
        if not z_BCTHW.isfinite().all():
            raise RunError(f"The sampler's numbers overflow at {sampler.steps} steps of {sampler.method}, guidance "
                           f"{sampler.guidance:g}: try other steps, less guidance or precision=fp32.")  # fmt: skip
        stop = start + len(rows)
        latents[start:stop] = z_BCTHW.cpu().numpy().astype(np.float16)
        clips[start:stop] = decoded(codec, z_BCTHW, device)
        work.progress(stop, parameters.count)
    work.record(seeds=[parameters.seed], counts={"clips": parameters.count}, **device.facts())


def sampled(
    network: Latte, sampler: SamplerParameters, seed: int, label: int, numbers: Sequence[int],
    shape_CTHW: tuple[int, ...], device: Device,
) -> Tensor:  # fmt: skip
    """Latents of these clips of a class: float32 (B, C, T, h, w).

    While a chunk is denoised, the frames before it are clear and those after it noise. What guidance leads away from
    has no class, and noise for the frames before.
    """
    import torch

    from vidistill.models.diffusion import STEPS

    drawn = [generator(seed, label, number, streams.FIRST_NOISE).standard_normal(shape_CTHW, dtype=np.float32)
             for number in numbers]  # fmt: skip
    noise_BCTHW = torch.from_numpy(np.stack(drawn)).to(device.torch_device)
    labels_B = torch.full((len(numbers),), label, device=device.torch_device)
    draws = {"generator": _generators(seed, label, numbers)} if sampler.method == "ddpm" else {}
    z_BCTHW = noise_BCTHW.clone()
    with torch.inference_mode():
        for start, stop in pairwise([0, *accumulate(sampler.chunks or [shape_CTHW[1]])]):
            scheduler = scheduler_of(sampler, network)
            blind_BT = torch.full((len(numbers), shape_CTHW[1]), STEPS - 1, device=device.torch_device)
            steps_BT = blind_BT.clone()
            steps_BT[:, :start] = 0
            for step in scheduler.timesteps:
                steps_BT[:, start:stop] = blind_BT[:, start:stop] = step
                blind = torch.cat([noise_BCTHW[:, :, :start], z_BCTHW[:, :, start:]], dim=2), blind_BT
                with device.autocast():
                    output = network.guided(z_BCTHW, steps_BT, labels_B, sampler.guidance, blind=blind).float()
                if sampler.method != "ddpm":
                    output = output[:, : network.channels]
                made = scheduler.step(output[:, :, start:stop], step, z_BCTHW[:, :, start:stop], **draws)
                z_BCTHW[:, :, start:stop] = made.prev_sample
    return z_BCTHW


def scheduler_of(sampler: SamplerParameters, network: Latte) -> Any:
    """One of diffusers' schedulers, set to the diffusion that the transformer was trained under."""
    from vidistill.models.diffusion import BETA_FIRST, BETA_LAST, STEPS

    diffusers: Any = importlib.import_module("diffusers")
    kind = "v_prediction" if network.velocity else "epsilon"
    trained = {"num_train_timesteps": STEPS, "beta_start": BETA_FIRST, "beta_end": BETA_LAST,
               "beta_schedule": "linear", "prediction_type": kind}  # fmt: skip
    if sampler.method == "dpm":
        made = diffusers.DPMSolverMultistepScheduler(**trained, algorithm_type="dpmsolver++", solver_order=2)
    elif sampler.method == "ddim":  # DDIMScheduler misses the next step where their number does not divide 1,000
        made = diffusers.DPMSolverMultistepScheduler(
            **trained, algorithm_type="dpmsolver++", solver_order=1, timestep_spacing="trailing"
        )
    else:
        variance = "learned_range" if network.learned_sigma else "fixed_large"
        made = diffusers.DDPMScheduler(
            **trained, clip_sample=False, variance_type=variance, timestep_spacing="linspace"
        )
    made.set_timesteps(sampler.steps)
    return made


def _generators(seed: int, label: int, numbers: Sequence[int]) -> list[Any]:
    """Of the noise of each step: one a clip, on the CPU, so that batches do not matter."""
    import torch

    seeds = (int(generator(seed, label, number, streams.STEP_NOISE).integers(2**62)) for number in numbers)
    return [torch.Generator().manual_seed(one) for one in seeds]


class ResizeParameters(Parameters):
    size: int


@stage("pool-part-resized", version=2)  # 2: scaled as clips are when they are decoded
def resized(work: Work) -> None:
    """A part's clips at another size."""
    size = ResizeParameters.model_validate(work.job.parameters).size
    source = open_clip_array(work.input("part"))
    n, t = source.shape[:2]
    array = create_clip_array(work.folder, (n, t, size, size, 3))
    for row in range(n):
        array[row] = resize(np.asarray(source[row : row + 1]), size, size)[0]
    work.record(counts={"clips": n})
