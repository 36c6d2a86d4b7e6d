"""Pool: the jobs from the training clips to generated ones, and the list of parts that is the pool (S4, §4).

Parts are the generator's and never change; the pool copies nothing, so that a longer one is a longer list.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from vidistill.storage.clips import TABLE, Clips, ClipTable, ClipVideo
from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.storage.pool import LATENTS, Pool
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.generate.autoencoder import (
    AutoencoderParameters,
    autoencoder_job,
    check_fit,
    latents_job,
    made_of,
)
from vidistill.tasks.generate.diffusion import LatteParameters, latte_job
from vidistill.tasks.generate.sample import ResizeParameters, SamplerParameters, part_jobs, resized
from vidistill.tasks.learning.weights import check_installed
from vidistill.tasks.methods import Given
from vidistill.tasks.stage import Job, Work, stage
from vidistill.tasks.videos.decode import training_clips


class PoolParameters(Parameters):
    """What a pool is made of and by. Published: 100 clips a class, of 256×256 pixels."""

    clips_a_class: int = Field(20, ge=1, description="More of them later are added; those that are there are kept.")
    part_clips: int = Field(10, ge=1, description="Clips a part: what one task generates and a killed run may lose.")
    size: int | None = Field(None, ge=8, description="Pixels that are generated, and resized; none: the data set's.")
    autoencoder: AutoencoderParameters = AutoencoderParameters()
    latte: LatteParameters = LatteParameters()
    sampler: SamplerParameters = SamplerParameters()
    seed: int = Field(0, description="Of the noise: with a clip's class and number it is all that draws it.")


def pool_of(given: Given, parameters: PoolParameters) -> ArtifactRef:
    """The pool's artifact, after adding the jobs that make it: the same ones for every method, budget and seed.

    Raises:
        RequestError: diffusers is not installed, weights to begin from are not there, clips of this size cannot be
            encoded, or see `check_sampler`.
    """
    check_installed("diffusers", "Generating clips")
    check_sampler(parameters, given.decode.frames)
    size, (factor, channels) = parameters.size or given.decode.size, made_of(parameters.autoencoder)
    check_fit(size, factor)
    source = _clips_to_learn(given, parameters.size)
    codec = given.add(autoencoder_job(source, parameters.autoencoder))
    latents = given.add(latents_job(source, codec, parameters.autoencoder.precision))
    latte = given.add(latte_job(source, latents, parameters.latte, classes=given.table.classes,
                                side=size // factor, channels=channels))  # fmt: skip
    jobs = part_jobs(latte, codec, parameters.sampler, parameters.seed, given.table.classes,
                     parameters.clips_a_class, parameters.part_clips)  # fmt: skip
    parts = [given.add(job) for job in jobs]
    blocks = parts if source == given.train else [given.add(_resize_job(job, given.decode.size)) for job in jobs]
    return given.add(pool_job(given.train, latte, codec, parts, blocks, parameters))


def check_sampler(parameters: PoolParameters, frames: int) -> None:
    """That the transformer can be guided, and chunks of frames be generated one after another.

    Raises:
        RequestError: it never learns clips without a class; the chunks are not all of the frames, or it knows no frames
            with steps of their own.
    """
    if parameters.sampler.guidance > 1 and not (parameters.latte.label_dropout or parameters.latte.pretrained):
        raise RequestError("pool.sampler.guidance leads away from clips without a class, which a Latte of "
                           "label_dropout=0 never learns: set the guidance to 1, or pool.latte.label_dropout, such as "
                           "0.1.")  # fmt: skip
    chunks = parameters.sampler.chunks
    if not chunks:
        return
    if sum(chunks) != frames:
        raise RequestError(f"pool.sampler.chunks {list(chunks)} are {sum(chunks)} frames, and a clip has {frames}: "
                           f"give counts that add up to {frames}.")  # fmt: skip
    if not parameters.latte.frame_noise:
        raise RequestError("pool.sampler.chunks need a Latte that has learned frames with noise of their own: set "
                           "pool.latte.frame_noise, such as 0.5, or leave out the chunks.")  # fmt: skip


def _clips_to_learn(given: Given, size: int | None) -> ArtifactRef:
    """The training split at the generator's size."""
    if size is None or size == given.decode.size:
        return given.train
    decode = given.decode.model_copy(update={"size": size})
    return training_clips(given.table, given.index, decode, given.add)


def _resize_job(part: Job, size: int) -> Job:
    return resized(ResizeParameters(size=size), {"part": part.ref}, label=part.label.replace("generate", "resize"))


class PoolListParameters(Parameters):
    clips_a_class: int
    part_clips: int
    seed: int
    sampler: SamplerParameters


def pool_job(
    train: ArtifactRef, latte: ArtifactRef, codec: ArtifactRef, parts: list[ArtifactRef], blocks: list[ArtifactRef],
    parameters: PoolParameters,
) -> Job:  # fmt: skip
    """The list of parts: `blocks` hold the clips at the data set's size, `parts` their latents."""
    own = PoolListParameters(clips_a_class=parameters.clips_a_class, part_clips=parameters.part_clips,
                             seed=parameters.seed, sampler=parameters.sampler)  # fmt: skip
    inputs = {"clips": train, "latte": latte, "autoencoder": codec, "blocks": blocks, LATENTS: parts}
    return pool(own, inputs, label=f"pool of {parameters.clips_a_class} clips a class")


@stage("pool", version=1)
def pool(work: Work) -> None:
    parameters = PoolListParameters.model_validate(work.job.parameters)
    table = ClipTable.model_validate_json((work.input("clips") / TABLE).read_bytes())
    videos: list[ClipVideo] = []
    for block, ref in enumerate(work.refs(LATENTS)):
        part = work.store.manifest(ref).parameters
        wanted = min(part["count"], parameters.clips_a_class - part["first"])
        videos += [_clip(table.classes, part, block, row) for row in range(wanted)]
    made = table.model_copy(update={"views": 1, "videos": tuple(videos), "rejected": ()})
    (work.folder / TABLE).write_text(made.model_dump_json(indent=1), encoding="utf-8")
    generator = work.store.manifest(work.ref("latte"))
    work.record(
        seeds=[parameters.seed],
        counts={"clips": len(videos), "parts": len(work.refs("blocks"))},
        labels=[video.label for video in videos],
        generator={name: generator.parameters[name] for name in ("size", "patch", "pretrained", "steps", "seed")},
        warnings=generator.record["warnings"],
    )


def _clip(classes: tuple[str, ...], part: dict[str, Any], block: int, row: int) -> ClipVideo:
    name = f"{classes[part['label']]}/{part['first'] + row}"
    return ClipVideo(path=name, label=part["label"], group=None, duration_seconds=None, block=block, row=row)


def open_pool(store: Store, ref: ArtifactRef, clips: Clips, clips_a_class: int) -> Pool:
    """A pool from which so many clips a class of a data set are to be chosen.

    Raises:
        RequestError: see `check_pool`.
    """
    made = Pool(store, ref)
    check_pool(made, clips, clips_a_class)
    return made


def check_pool(pool: Pool, clips: Clips, clips_a_class: int) -> None:
    """Whether so many clips a class of a data set can be chosen from a pool.

    Raises:
        RequestError: other classes, fewer frames, another size, or too few clips of a class.
    """
    if pool.classes != clips.classes:
        odd = sorted({*pool.classes} ^ {*clips.classes}) or ["in another order"]
        raise RequestError(
            f"The pool's classes are not the data set's ({', '.join(odd[:5])}): make a pool of this set."
        )
    if pool.shape_THWC != clips.shape_THWC:
        theirs, own = ("×".join(map(str, shape[:3])) for shape in (pool.shape_THWC, clips.shape_THWC))
        raise RequestError(
            f"The pool's clips are {theirs}, the data set's {own}: make a pool with its frames and size."
        )
    scarce = min(range(len(pool.classes)), key=lambda label: len(pool.rows_of(label)))
    if clips_a_class > (there := len(pool.rows_of(scarce))):
        raise RequestError(
            f"ipc {clips_a_class} asks for more clips than the pool has of the class {pool.classes[scarce]} ({there}): "
            f"raise pool.clips_a_class to {clips_a_class} or more."
        )
