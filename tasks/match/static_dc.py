"""Static-DC (VDSD, arXiv 2312.00362): one image an instance, distilled from single frames, shown as a still video.

Shapes: B clips a batch, N clips of the set, C colours, T frames, H height, W width, K classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.pixels import to_pixels
from vidistill.tasks.learning.training import generator, role_seed
from vidistill.tasks.match import core, sets
from vidistill.tasks.match.dc import DCParameters, matched
from vidistill.tasks.match.real import RealClips
from vidistill.tasks.match.sets import Start
from vidistill.tasks.methods import Given, Material, Method

if TYPE_CHECKING:
    from torch import Tensor, nn


class StaticDCParameters(DCParameters):
    """DC's settings; the network is an image network."""

    network: str = Field("convnet2d", pattern="^convnet2d$", description="ConvNet on single frames.")
    depth: int = Field(3, ge=1, description="Its blocks (VDSD's static memory: 4).")
    images: int = Field(
        1, ge=1, exclude_if=lambda images: images == 1, description="That begin in one clip (VDSD's m); ipc counts all."
    )


class StaticDC(Method):
    """Learn images by matching gradients of single random frames; each begins as a random frame of a random clip.

    Images that begin in one clip begin in different frames: what begins alike has the same gradients and stays alike.
    """

    version = 4  # since a cutout may lie at the far edge
    Parameters = StaticDCParameters

    @property
    def still(self) -> bool:
        return True

    def inputs(self, given: Given) -> dict[str, list[ArtifactRef]]:
        check_frames(self.parameters, given.decode.frames, given.decode.size)
        clips_a_class(given.ipc, self.parameters.images)
        return super().inputs(given)

    def distil(self, material: Material) -> DistilledSet:
        parameters: StaticDCParameters = self.parameters
        start = first_images(material, parameters)
        labels_N, sources, learnt = start.labels_N, start.sources, {"clips": core.leaf(start.x_NCTHW)}
        del start  # a copy of what is learnt
        real = RealClips(material.clips, material.seed, material.device)

        def frames_of(step: int, label: int) -> Tensor:
            frame = generator(material.seed, step, label, streams.STILL_FRAMES)
            return real.batch(step, [label], parameters.batch_real, frame)[0]

        def network_of(number: int) -> nn.Module:
            return image_network(material, parameters.depth, number)

        curve = matched(material, learnt, labels_N, parameters, network_of, frames_of)
        images_NHWC = to_pixels(learnt["clips"].detach(), material.clips)[:, 0]
        return sets.kept(material, "still", {"images": images_NHWC}, labels_N, sources, curve)


def check_frames(parameters: StaticDCParameters, frames: int, size: int) -> None:
    """That images of this size can be learned, and begin in so many frames.

    Raises:
        RequestError: the frames are too small for so many blocks, or too few.
    """
    if size < 2**parameters.depth:
        raise RequestError(f"Frames of {size} pixels are too small for the {parameters.depth} blocks of static_dc: "
                           f"take {2**parameters.depth} pixels or more, or a smaller depth.")  # fmt: skip
    if parameters.init == "real" and parameters.images > frames:
        raise RequestError(f"{parameters.images} images cannot begin in different frames of a clip of {frames}: take "
                           "fewer, longer clips, or init=noise.")  # fmt: skip


def clips_a_class(ipc: int, images: int) -> int:
    """In how many clips so many images a class begin.

    Raises:
        RequestError: they do not divide by those of a clip.
    """
    clips, rest = divmod(ipc, images)
    if rest:
        raise RequestError(f"{ipc} images a class do not divide by static_dc.images={images}: ask for a multiple.")
    return clips


def first_images(material: Material, parameters: StaticDCParameters) -> Start:
    """Where each image begins, as a clip of one frame."""
    clips = clips_a_class(material.ipc, parameters.images)
    frames, count = material.clips.shape_THWC[0], clips * len(material.labels)
    frames_N1 = first_frames(count, parameters.images, frames, material.seed)[:, None]
    return sets.start_clips(replace(material, ipc=clips), parameters.init, parameters.images, frames_N1)


def first_frames(clips: int, images: int, frames: int, seed: int) -> NDArray[np.int64]:
    """frames_N: a random frame for each image, different ones for those that begin in one clip of so many frames."""
    random = generator(seed, streams.STILL_START)
    return np.concatenate([random.permutation(frames)[np.arange(images) % frames] for _ in range(clips)])


def image_network(material: Material, depth: int, number: int) -> nn.Module:
    """A fresh ConvNet for clips of one frame, its weights learning."""
    import torch

    from vidistill.models.convnet2d import ConvNet2D

    clips = material.clips
    seed = role_seed(material.seed, number, streams.FRESH_NETWORK)
    with training.seeded(seed):
        network = ConvNet2D(len(clips.classes), clips.shape_THWC[1], depth=depth)
    return torch.nn.Sequential(torch.nn.Flatten(1, 2), network).to(material.device.torch_device)
