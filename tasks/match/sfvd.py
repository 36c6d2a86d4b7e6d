"""SFVD ("Distill Video Datasets into Images", arXiv 2512.14621): one image an instance, made a video by interpolation.

The paper's body was not read; this is its abstract, what its public reviews quote, and our reading of the rest.

SFVD. g duplicates the frame T times, and only the image is learnt, by matching trajectories of experts on real video
(Eq. 2 of MTT). With more than one key frame g is linear in between (its reviews quote a table over their number).

SFVD-T. "The distilled frames are combined with sampled real videos during the matching process through a channel
reshaping layer": here a 3×3×3 convolution from the six channels of g(x̂) and of a real clip of the same class to three,
which begins as the mean of the two. Two things are open. Whether the images learn through it: its reviewers read the
figure as no, and no other branch is known to teach them, so here they do. Whether real clips are needed at use: the
layer learns for its pairs, so the clip of an instance is drawn once, matched with, kept and counted in the set's bytes.

Shapes: B clips a batch, N instances, C colours, T frames, F key frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.pixels import pixel_range, to_pixels
from vidistill.tasks.learning.training import generator
from vidistill.tasks.match import core, sets
from vidistill.tasks.match.core import Learnt, Part
from vidistill.tasks.match.mtt import MTT, PUBLISHED, TrajectoryParameters, match_trajectories
from vidistill.tasks.methods import Given, Material

if TYPE_CHECKING:
    from torch import Tensor


class SFVDParameters(TrajectoryParameters):
    """Settings were not to be had: MTT's, as VDSD uses it."""

    keys: int = Field(1, ge=1, description="F: key frames an instance.")


class SFVDTParameters(SFVDParameters):
    """SFVD's, and the rate of the reshaping layer: VDSD's for its hallucinator, a layer of the same kind."""

    lr_layer: float = Field(core.WEIGHTS, gt=0)


class SFVD(MTT):
    """Learn key frames whose interpolation leads a student where the experts went."""

    version = 5  # since a cutout may lie at the far edge
    Parameters = SFVDParameters

    @property
    def still(self) -> bool:
        return bool(self.parameters.keys == 1)

    def inputs(self, given: Given) -> dict[str, list[ArtifactRef]]:
        keys, frames = self.parameters.keys, given.decode.frames
        if keys > frames:
            raise RequestError(f"Clips of {frames} frames cannot have {keys} key frames: take at most {frames}.")
        return super().inputs(given)

    def distil(self, material: Material) -> DistilledSet:
        parameters: SFVDParameters = self.parameters
        count = material.ipc * len(material.labels)
        frames_NF = first_keys(count, parameters.keys, material.clips.shape_THWC[0], material.seed)
        start = sets.start_clips(material, parameters.init, frames_NF=frames_NF)
        labels_N, sources, learnt = start.labels_N, start.sources, {"keys": core.leaf(start.x_NCTHW)}
        del start  # a copy of what is learnt
        groups = parameters.groups(learnt["keys"], PUBLISHED)
        clips_of = self.clips_of(material, labels_N, learnt, groups)
        in_range = sets.keep_in_range(material.clips, material.device, "keys")
        optimiser = core.stepper(parameters.step, groups, parameters.momentum)
        curve, facts = match_trajectories(material, labels_N, clips_of, parameters, learnt, optimiser, in_range)
        form, stored = self.kept(material, labels_N, learnt)
        return sets.kept(material, form, stored, labels_N, sources, curve, **facts)

    def clips_of(
        self, material: Material, labels_N: NDArray[np.int64], learnt: Learnt,  # noqa: ARG002
        groups: list[dict[str, Any]],  # noqa: ARG002
    ) -> core.Parametrisation:  # fmt: skip
        """The parametrisation; may add to what is learnt and to the optimiser's groups."""
        return Interpolated(material.clips.shape_THWC[0])

    def kept(
        self, material: Material, labels_N: NDArray[np.int64], learnt: Learnt  # noqa: ARG002
    ) -> tuple[str, dict[str, NDArray[Any]]]:  # fmt: skip
        """The form and its arrays."""
        return "interpolated", {"images": to_pixels(learnt["keys"].detach(), material.clips)}


class SFVDT(SFVD):
    """SFVD with real clips of the same class mixed in by a reshaping layer that is learnt."""

    version = 5  # since a cutout may lie at the far edge
    Parameters = SFVDTParameters

    @property
    def still(self) -> bool:
        return False  # its layer mixes real clips in

    def clips_of(
        self, material: Material, labels_N: NDArray[np.int64], learnt: Learnt, groups: list[dict[str, Any]]
    ) -> core.Parametrisation:
        from vidistill.models.temporal import averaging_weights

        tensors = dict(zip(("weight", "bias"), averaging_weights(), strict=True))
        layer = {name: core.leaf(tensor.to(material.device.torch_device)) for name, tensor in tensors.items()}
        learnt |= layer
        groups.append({"params": list(layer.values()), "lr": self.parameters.lr_layer})
        table = material.clips.table
        real_NCTHW = training.to_input(companions(material, labels_N), table.mean, table.std, material.device)
        return Reshaped(real_NCTHW, *pixel_range(material.clips, material.device))

    def kept(
        self, material: Material, labels_N: NDArray[np.int64], learnt: Learnt
    ) -> tuple[str, dict[str, NDArray[Any]]]:
        _, stored = super().kept(material, labels_N, learnt)
        layer = {name: learnt[name].detach().cpu().numpy() for name in ("weight", "bias")}
        return "reshaped", stored | layer | {"real": companions(material, labels_N)} | sets.norm_arrays(material)


def first_keys(clips: int, keys: int, frames: int, seed: int) -> NDArray[np.int64]:
    """frames_NF: a random frame of each clip, or so many evenly spread over it."""
    import torch

    if keys == 1:
        return generator(seed, streams.STILL_START).integers(frames, size=(clips, 1))
    return torch.linspace(0, frames - 1, keys).round().long().expand(clips, -1).numpy()


@dataclass(frozen=True)
class Interpolated:
    """g: key frames to clips of T frames."""

    frames: int

    def __call__(self, part: Part, slots_B: NDArray[np.int64], draw: core.Draw) -> Tensor:  # noqa: ARG002
        from vidistill.models.temporal import interpolate

        return interpolate(part.rows("keys", slots_B), self.frames)


@dataclass(frozen=True)
class Reshaped:
    """The reshaping layer over g(x̂) and the real clip of each instance."""

    real_NCTHW: Tensor
    low_C: Tensor
    high_C: Tensor

    def __call__(self, part: Part, slots_B: NDArray[np.int64], draw: core.Draw) -> Tensor:
        import torch

        from vidistill.models.temporal import reshape_channels

        still_BCTHW = Interpolated(self.real_NCTHW.shape[2])(part, slots_B, draw)
        real_BCTHW = self.real_NCTHW[torch.from_numpy(slots_B).to(self.real_NCTHW.device)]
        x_BCTHW = reshape_channels(still_BCTHW, real_BCTHW, part["weight"], part["bias"])
        return x_BCTHW.clamp(self.low_C, self.high_C)


def companions(material: Material, labels_N: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A random real clip of the class of each instance, the same at every call: uint8 NTHWC."""
    random = generator(material.seed, streams.COMPANIONS)
    return material.clips.read([int(random.choice(material.clips.rows_of(int(label)))) for label in labels_N])
