"""DM (Zhao and Bilen 2023): the mean embedding of each class under networks that were never trained.

Shapes: B clips a batch, N clips of the set, C colours, T frames, H height, W width, K classes, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.distilled import DistilledSet
from vidistill.storage.parameters import Parameters
from vidistill.tasks.learning import streams
from vidistill.tasks.learning.training import Precision, generator
from vidistill.tasks.match import core, dsa, sets
from vidistill.tasks.match.core import Learnt, Loop, Loss, Parametrisation, Valued
from vidistill.tasks.match.losses import class_means, mean_embedding_distance
from vidistill.tasks.match.real import RealClips
from vidistill.tasks.methods import Material, Method

if TYPE_CHECKING:
    from torch import Tensor, nn


class DMLossParameters(Parameters):
    """What DM compares."""

    network: str = Field("minic3d", description="A fresh one each iteration.")
    batch_real: int = Field(64, ge=1, description="Real clips a class and iteration (VDSD: 64; images: 256).")
    augmentation: dsa.Strategy = Field("none", description="VDSD's code uses none; DM on images uses DSA.")


class DMParameters(DMLossParameters):
    """VDSD's settings for DM on MiniUCF, IPC 1 (methods §3.1), except for the number of iterations."""

    iterations: int = Field(200, ge=0, description="Published: 5,000 (images: 20,000); 200 fit two cores.")
    lr: float = Field(30.0, gt=0, description="Of the pixels, in standard deviations; an older README says 100.")
    momentum: float = Field(0.5, ge=0, lt=1)
    init: Literal["real", "noise"] = "real"
    rate: float = Field(
        0.0,
        ge=0,
        exclude_if=lambda rate: not rate,
        description="Of the clips' total variation, which codecs pay for.",
    )
    precision: Precision = "auto"


class DM(Method):
    """Learn clips whose mean embedding is that of the real clips of their class."""

    Parameters = DMParameters

    def distil(self, material: Material) -> DistilledSet:
        import torch

        parameters: DMParameters = self.parameters
        start = sets.start_clips(material, parameters.init)
        learnt = {"clips": core.leaf(start.x_NCTHW)}
        loss = core.with_rate(dm_loss(material, start.labels_N, core.pixels, parameters), parameters.rate)
        sgd = torch.optim.SGD(learnt.values(), lr=parameters.lr, momentum=parameters.momentum)
        loop = Loop(parameters.iterations, project=sets.keep_in_range(material.clips, material.device))
        curve = core.optimise(learnt, loss, sgd, material, loop)
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

    real, device = RealClips(material.clips, material.seed, material.device), material.device
    groups = _groups(material.labels, labels_N, core.a_pass(material, len(labels_N)))

    def loss(iteration: int, learnt: Learnt) -> Valued:
        network = core.fresh_network(material, parameters.network, iteration)
        omega = dsa.draw(parameters.augmentation, material.clips.table.flips, material.seed, iteration)
        real_KD = _real_means(network, real, material, parameters, omega, iteration)
        total, gradients = torch.zeros((), device=device.torch_device), Learnt()
        for kinds, slots_B in groups:
            random = generator(material.seed, iteration, kinds[0], streams.SET_VARIANTS)
            x_BCTHW = dsa.apply(omega, clips_of(learnt, slots_B, random))
            with device.autocast():
                emb_BD = network.embed(x_BCTHW)  # type: ignore[operator]
            means_KD = class_means(emb_BD.float(), _places(labels_N[slots_B], material.labels, x_BCTHW), len(real_KD))
            distance = mean_embedding_distance(real_KD[kinds], means_KD[kinds])
            core.add_gradients(gradients, distance, learnt)
            total += distance.detach()
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


def _real_means(
    network: nn.Module, real: RealClips, material: Material, parameters: DMLossParameters,
    omega: dsa.Augmentation | None, iteration: int,
) -> Tensor:  # fmt: skip
    """Mean embedding of a random batch of each class, (K, D), without gradients."""
    import torch

    embeddings, labels = [], []
    size = core.a_pass(material, parameters.batch_real * len(material.labels))
    with torch.no_grad(), material.device.autocast():
        for x_BCTHW, labels_B in real.chunks(iteration, material.labels, parameters.batch_real, size):
            embeddings.append(network.embed(dsa.apply(omega, x_BCTHW)).float())  # type: ignore[operator]
            labels.append(labels_B)
    emb_BD = torch.cat(embeddings)
    return class_means(emb_BD, _places(np.concatenate(labels), material.labels, emb_BD), len(material.labels))


def _places(labels_B: NDArray[np.int64], labels: tuple[int, ...], like: Tensor) -> Tensor:
    """The place of each label among the classes, int64 beside `like`."""
    import torch

    return torch.tensor([labels.index(int(label)) for label in labels_B], device=like.device)
