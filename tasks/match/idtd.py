"""Our reading of IDTD (Information Diversification and Temporal Densification, arXiv 2412.00111).

Known are the abstract and another paper's summary: a *feature pool* a class, read by several *feature selectors*, a
*diversity loss* that pushes what they select apart; a *temporal fusor* that makes a full clip of the segments selected,
trained with *stochastic temporal augmentation*; end to end, the matching loss of a base method plus λ times diversity.
Shapes, networks, λ, rates and iterations are not known. Ours is the simplest that has all of these:

- The pool holds P features a class, images that begin as frames of real clips.
- An instance is a selector: F rows of P logits; a segment is one frame, the mean of the pool's features weighted by the
  softmax of its row.
- Diversity: the mean cosine between two segments of a class, of the same or of different selectors.
- The fusor, shared by all classes, interpolates the segments to T frames and adds a 3×3×3 convolution of that, which
  begins at zero.
- Stochastic temporal augmentation: at each use in matching some of a class's segments, at least one, drawn in order.
- The base is DM, the cheapest.

Shapes: B clips a batch, N instances, C colours, T frames, F segments, P features, H height, W width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.distilled import DistilledSet
from vidistill.tasks.learning.pixels import pixel_range, to_pixels
from vidistill.tasks.learning.training import Precision
from vidistill.tasks.match import core, sets
from vidistill.tasks.match.core import Draw, Learnt, Loop, Part, Valued
from vidistill.tasks.match.dm import DMLossParameters, dm_loss
from vidistill.tasks.methods import Material, Method

if TYPE_CHECKING:
    from torch import Tensor


class IDTDParameters(DMLossParameters):
    """All chosen by us: none is known."""

    features: int = Field(4, ge=1, description="Of the pool, for each instance of a class: P = features·ipc.")
    segments: int = Field(4, ge=1, description="F: what a selector selects.")
    diversity: float = Field(0.1, ge=0, description="λ.")
    sharpness: float = Field(4.0, ge=0, description="Logit by which a selector prefers its own features at the start.")
    iterations: int = Field(200, ge=0, description="200 fit two cores.")
    lr: float = Field(0.05, gt=0, description="Adam's, of the pool's pixels, in standard deviations.")
    lr_selector: float = Field(0.05, ge=0)
    lr_fusor: float = Field(0.01, ge=0)
    precision: Precision = "auto"


class IDTD(Method):
    """Learn a pool of images a class, what each instance selects of it, and how a clip is made of that."""

    version = 4  # since a cutout may lie at the far edge
    Parameters = IDTDParameters

    def distil(self, material: Material) -> DistilledSet:
        parameters: IDTDParameters = self.parameters
        frames_F = spread(material.clips.shape_THWC[0], parameters.features)
        count = material.ipc * len(material.labels)
        start = sets.start_clips(material, "real", frames_NF=np.tile(frames_F, (count, 1)))
        labels_N, sources, learnt = start.labels_N, start.sources, begin(material, start.x_NCTHW, parameters)
        del start  # a copy of what is learnt
        fused = Fused(material.ipc, material.clips.shape_THWC[0], *pixel_range(material.clips, material.device))
        matching = dm_loss(material, labels_N, fused, parameters)

        def loss(iteration: int, now: Learnt) -> Valued:
            distance, gradients = matching(iteration, now)
            for first in range(0, len(labels_N), material.ipc):
                part = Part(now)
                keys_NCFHW = fused.keys(part, np.arange(first, first + material.ipc))
                share = parameters.diversity / len(material.labels)
                distance += part.differentiate(share * diversity_loss(keys_NCFHW, material.ipc), gradients)
            return distance, gradients

        adam = core.stepper("adam", _groups(learnt, parameters), 0)
        loop = Loop(parameters.iterations, project=sets.keep_in_range(material.clips, material.device, "pool"))
        curve = core.optimise(learnt, loss, adam, material, loop)
        stored: dict[str, NDArray[Any]] = {
            name: learnt[name].detach().cpu().numpy() for name in ("choice", "weight", "bias")
        }
        stored |= {"pool": to_pixels(learnt["pool"].detach(), material.clips), **sets.norm_arrays(material)}
        return sets.kept(material, "fused", stored, labels_N, sources, curve)


def _groups(learnt: Learnt, parameters: IDTDParameters) -> list[dict[str, Any]]:
    return [
        {"params": [learnt["pool"]], "lr": parameters.lr},
        {"params": [learnt["choice"]], "lr": parameters.lr_selector},
        {"params": [learnt["weight"], learnt["bias"]], "lr": parameters.lr_fusor},
    ]


def spread(frames: int, features: int) -> NDArray[np.int64]:
    """So many frames of a clip, evenly spread."""
    import torch

    return torch.linspace(0, frames - 1, features).round().long().numpy()


def begin(material: Material, x_NCFHW: Tensor, parameters: IDTDParameters) -> Learnt:
    """The pool, (K, 3, P, H, W), frames spread over real clips; each selector prefers those of its own clip."""
    import torch

    features, segments = parameters.features, parameters.segments
    colours, height, width = x_NCFHW.shape[1], *x_NCFHW.shape[3:]
    of_clips = x_NCFHW.reshape(-1, material.ipc, colours, features, height, width)
    pool_KCPHW = of_clips.transpose(1, 2).reshape(-1, colours, material.ipc * features, height, width)
    own_F = torch.linspace(0, features - 1, segments).round().long()
    choice_NFP = torch.zeros(len(x_NCFHW), segments, material.ipc * features)
    for row in range(len(x_NCFHW)):
        choice_NFP[row, range(segments), row % material.ipc * features + own_F] = parameters.sharpness
    tensors = {"pool": pool_KCPHW, "choice": choice_NFP, "weight": torch.zeros(3, 3, 3, 3, 3), "bias": torch.zeros(3)}
    return {name: core.leaf(tensor.to(material.device.torch_device)) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Fused:
    """The parametrisation: some of an instance's segments, in order, the same of all of a class, fused to a clip."""

    ipc: int
    frames: int
    low_C: Tensor
    high_C: Tensor

    def keys(self, part: Part, slots_B: NDArray[np.int64]) -> Tensor:
        """What the selectors of these instances, class after class, select: keys_BCFHW."""
        import torch

        from vidistill.models.temporal import select

        keys = []
        for label in np.unique(slots_B // self.ipc):
            pool_PCHW = part.rows("pool", np.array([label]))[0].transpose(0, 1)
            keys.append(select(pool_PCHW, part.rows("choice", slots_B[slots_B // self.ipc == label])))
        return torch.cat(keys)

    def __call__(self, part: Part, slots_B: NDArray[np.int64], draw: Draw) -> Tensor:
        import torch

        from vidistill.models.temporal import fuse

        weight, bias, made = part["weight"], part["bias"], []
        for place in np.unique(slots_B // self.ipc).tolist():
            keys_BCFHW, random = self.keys(part, slots_B[slots_B // self.ipc == place]), draw(place)
            segments = keys_BCFHW.shape[2]
            some = np.sort(random.permutation(segments)[: random.integers(segments) + 1]).tolist()
            made.append(fuse(keys_BCFHW[:, :, some], self.frames, weight, bias))
        return torch.cat(made).clamp(self.low_C, self.high_C)


def diversity_loss(keys_NCFHW: Tensor, ipc: int) -> Tensor:
    """The mean cosine between any two segments of a class; 0 where there is but one.

    Args:
        keys_NCFHW: the segments of all instances, `ipc` in a row of each class.
        ipc: instances a class.
    """
    import torch

    segments = ipc * keys_NCFHW.shape[2]
    if segments == 1:
        return keys_NCFHW.sum() * 0
    flat_KSD = keys_NCFHW.transpose(1, 2).reshape(len(keys_NCFHW) // ipc, segments, -1)
    unit_KSD = torch.nn.functional.normalize(flat_KSD, dim=2)
    cosines_KSS = unit_KSD @ unit_KSD.transpose(1, 2)
    pairs_SS = ~torch.eye(segments, dtype=torch.bool, device=cosines_KSS.device)
    return cosines_KSS[:, pairs_SS].mean()
