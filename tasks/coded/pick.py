"""Which clips of a class are kept first: an order of all of them, so that a budget takes as many as it has room for.

Legend: N clips of one class, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.clips import Clips
from vidistill.tasks.coreset.herding import herd
from vidistill.tasks.coreset.k_center import farthest_first
from vidistill.tasks.coreset.medoids import medoids
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.embedding import Embeddings
from vidistill.tasks.learning.training import Device
from vidistill.tasks.learning.views import centre_clips

if TYPE_CHECKING:
    from torch import nn

Pick = Literal["random", "herding", "k_center", "medium", "cluster"]


def ordered(
    pick: Pick, clips: Clips, rows_N: NDArray[np.int64], seed: int, teacher: Callable[[], nn.Module],
    embeddings: Callable[[], Embeddings], device: Device,
) -> NDArray[np.int64]:  # fmt: skip
    """These rows of one class in the order in which they are kept.

    `random`: as Random draws them. `herding` and `k_center`: as those coresets choose. `medium`: those whose loss the
    teacher finds nearest to the class's median first. `cluster`: always the clip that brings all others nearest to
    a kept one (greedy k-medoids), in the teacher's features.
    """
    if pick == "random":
        label = int(clips.labels_N[rows_N[0]])
        return np.asarray(training.generator(seed, label, streams.CORESET).permutation(rows_N))
    if pick == "medium":
        return rows_N[by_median(losses(teacher(), clips, rows_N, device))]
    chosen_N: NDArray[np.int64] = BY_FEATURES[pick](embeddings()[rows_N], len(rows_N))
    return rows_N[chosen_N]


def by_median(loss_N: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.argsort(np.abs(loss_N - np.median(loss_N)), kind="stable")


BY_FEATURES = {"herding": herd, "k_center": farthest_first, "cluster": medoids}


def losses(network: nn.Module, clips: Clips, rows_N: NDArray[np.int64], device: Device) -> NDArray[np.float64]:
    """The teacher's cross-entropy of the centre clips of these rows."""
    import torch

    logits_NK = training.predict(network, centre_clips(clips, rows_N, device), device)
    labels_N = torch.from_numpy(clips.labels_N[rows_N])
    found: NDArray[np.float64] = torch.nn.functional.cross_entropy(
        logits_NK.double(), labels_N, reduction="none"
    ).numpy()
    return found
