"""DM (Zhao and Bilen 2023): the mean embedding of each class under networks that were never trained.

Shapes: B clips a batch, N clips of the set, C colours, T frames, H height, W width, K classes, D features.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.distilled import DistilledSet
from vidistill.storage.parameters import Parameters
from vidistill.tasks.learning import streams
from vidistill.tasks.learning.pixels import RATE
from vidistill.tasks.learning.training import Precision
from vidistill.tasks.match import core, dsa, sets
from vidistill.tasks.match.core import Learnt, Loop, Loss, Parametrisation, Part, Valued
from vidistill.tasks.match.losses import class_means, mean_embedding_distance
from vidistill.tasks.match.real import RealClips
from vidistill.tasks.methods import Material, Method

if TYPE_CHECKING:
    from torch import Tensor, nn


class DMLossParameters(Parameters):
    """What DM compares."""

    network: core.Fresh = Field("minic3d", description="A fresh one for each `reuse`; published.")
    reuse: int = Field(1, ge=1, description="Iterations of one network, with the real means of the first of them.")
    batch_real: int = Field(64, ge=1, description="Real clips a class and network (VDSD: 64; images: 256).")
    augmentation: dsa.Strategy = Field("none", description="VDSD's code uses none; DM on images uses DSA, ω a class.")


PUBLISHED = 30.0
"""VDSD's rate on MiniUCF, IPC 1; an older README of it says 100."""


class DMParameters(DMLossParameters, core.Steps):
    """VDSD's settings for DM on MiniUCF, IPC 1 (methods §3.1), but for iterations and steps."""

    iterations: int = Field(200, ge=0, description="Published: 5,000 (images: 20,000); 200 fit two cores.")
    init: Literal["real", "noise"] = "real"
    rate: float = RATE
    precision: Precision = "auto"


class DM(Method):
    """Learn clips whose mean embedding is that of the real clips of their class."""

    version = 4  # since a cutout may lie at the far edge
    Parameters = DMParameters

    def distil(self, material: Material) -> DistilledSet:
        parameters: DMParameters = self.parameters
        start = sets.start_clips(material, parameters.init)
        learnt = {"clips": core.leaf(start.x_NCTHW)}
        loss = core.with_rate(dm_loss(material, start.labels_N, core.pixels, parameters), parameters.rate, material)
        groups = parameters.groups(learnt["clips"], PUBLISHED)
        optimiser = core.stepper(parameters.step, groups, parameters.momentum)
        loop = Loop(parameters.iterations, project=sets.keep_in_range(material.clips, material.device))
        curve = core.optimise(learnt, loss, optimiser, material, loop)
        return sets.finished(material, start, learnt["clips"], curve)


def dm_loss(
    material: Material, labels_N: NDArray[np.int64], clips_of: Parametrisation, parameters: DMLossParameters
) -> Loss:
    """Eq. 5, a few classes at a time: each class has a term of its own, so gradients add up and no graph holds the set.

    Args:
        material: real clips, seed, device.
        labels_N: the class of each clip of the set.
        clips_of: how clips are made from what is learnt.
        parameters: what is compared.
    """
    import torch

    device = material.device
    groups = _groups(material.labels, labels_N, core.a_pass(material, len(labels_N)))

    @lru_cache(maxsize=1)
    def drawn(number: int) -> tuple[nn.Module, Tensor]:
        network = core.fresh_network(material, parameters.network, number)
        return network, _real_means(network, material, parameters, number)

    def loss(iteration: int, learnt: Learnt) -> Valued:
        number = iteration // parameters.reuse
        network, real_KD = drawn(number)
        total, gradients = torch.zeros((), device=device.torch_device), Learnt()
        draw = core.draws(material.seed, iteration, streams.SET_VARIANTS)
        for kinds, slots_B in groups:
            part = Part(learnt)
            x_BCTHW = _augmented(clips_of(part, slots_B, draw), labels_N[slots_B], parameters, material, number)
            with device.autocast():
                emb_BD = network.embed(x_BCTHW)  # type: ignore[operator]
            places_B = _places(labels_N[slots_B], material.labels, x_BCTHW) - kinds[0]
            means_KD = class_means(emb_BD.float(), places_B, len(kinds))
            total += part.differentiate(mean_embedding_distance(real_KD[kinds], means_KD), gradients)
        return total, gradients

    return loss


def _groups(
    labels: tuple[int, ...], labels_N: NDArray[np.int64], size: int
) -> list[tuple[list[int], NDArray[np.int64]]]:
    """Whole classes together, about `size` clips at a time: their places among the classes, and their clips."""
    own = [np.flatnonzero(labels_N == label) for label in labels]
    at_once = max(1, size // max(len(slots) for slots in own))
    places = [list(range(first, min(first + at_once, len(labels)))) for first in range(0, len(labels), at_once)]
    return [(group, np.concatenate([own[place] for place in group])) for group in places]


def _augmented(
    x_BCTHW: Tensor, labels_B: NDArray[np.int64], parameters: DMLossParameters, material: Material, number: int
) -> Tensor:
    """Clips, class after class, under the ω of their class, the same for real and synthetic ones."""
    import torch

    if parameters.augmentation == "none":
        return x_BCTHW
    ends = [*(np.flatnonzero(np.diff(labels_B)) + 1).tolist(), len(labels_B)]
    made = []
    for first, last in itertools.pairwise([0, *ends]):
        seed = (material.seed, number, int(labels_B[first]))
        omega = dsa.draw(parameters.augmentation, material.clips.table.flips, *seed)
        made.append(dsa.apply(omega, x_BCTHW[first:last]))
    return torch.cat(made)


def _real_means(network: nn.Module, material: Material, parameters: DMLossParameters, number: int) -> Tensor:
    """Mean embedding of a random batch of each class, (K, D), without gradients."""
    import torch

    real, embeddings, labels = RealClips(material.clips, material.seed, material.device), [], []
    size = core.a_pass(material, parameters.batch_real * len(material.labels))
    with torch.no_grad(), material.device.autocast():
        for x_BCTHW, labels_B in real.chunks(number, material.labels, parameters.batch_real, size):
            x_BCTHW = _augmented(x_BCTHW, labels_B, parameters, material, number)
            embeddings.append(network.embed(x_BCTHW).float())  # type: ignore[operator]
            labels.append(labels_B)
    emb_BD = torch.cat(embeddings)
    return class_means(emb_BD, _places(np.concatenate(labels), material.labels, emb_BD), len(material.labels))


def _places(labels_B: NDArray[np.int64], labels: tuple[int, ...], like: Tensor) -> Tensor:
    """The place of each label among the classes, int64 beside `like`."""
    import torch

    place = {label: place for place, label in enumerate(labels)}
    return torch.tensor([place[label] for label in labels_B.tolist()], device=like.device)
