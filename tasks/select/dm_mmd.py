"""DM-MMD: k-means, and the members of its clusters whose distribution is nearest to the class's (S4, §4.2 (d)).

Shapes: N clips of a class, D features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidistill.tasks.learning import streams
from vidistill.tasks.learning.embedding import Embeddings
from vidistill.tasks.learning.training import role_seed
from vidistill.tasks.methods import Material
from vidistill.tasks.select.embedding import EmbeddingSelector, Pick


class DMMMD(EmbeddingSelector):
    """One clip of each of VPC clusters, chosen so that the choice's MMD to all clips of the class is small.

    Published: distribution matching with k-means, MMD, and a DCGAN that "is used to generate synthetic features aligned
    with the clustered embeddings"; neither settings nor how features become clips are stated. The DCGAN is left out:
    the pool has the clips that its features would have to be traced back to, and a generator that does align with the
    clusters says no more of them than their members do. Left is the measure that it would be trained by, minimised
    over real members: largest cluster first, each gives the clip that lowers the MMD of the choice so far the most.
    """

    def picker(self, material: Material) -> Pick:
        def pick(emb_ND: Embeddings, label: int) -> NDArray[np.int64]:
            return matching(emb_ND, clusters(emb_ND, material.ipc, (material.seed, label)), material.ipc)

        return pick


def clusters(emb_ND: Embeddings, count: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """The k-means cluster of each row; fewer than `count` are met where rows are equal."""
    from sklearn.cluster import KMeans

    random = role_seed(*seed, streams.CLUSTERS)
    labels_N: NDArray[np.int64] = KMeans(count, n_init=10, random_state=random).fit_predict(emb_ND).astype(np.int64)
    return labels_N


def matching(emb_ND: Embeddings, cluster_N: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Indices of `count` rows, one of each cluster, largest first, then of all that are left; see `DMMMD`."""
    kernel_NN = gaussian_kernel(emb_ND)
    to_all_N = kernel_NN.mean(1)
    by_size = np.argsort(-np.bincount(cluster_N), kind="stable")
    chosen: list[int] = []
    for cluster in (*by_size, *[None] * count):
        left = [row for row in range(len(emb_ND)) if row not in chosen and cluster in (None, cluster_N[row])]
        if left and len(chosen) < count:
            tried = [mmd(kernel_NN, to_all_N, [*chosen, row]) for row in left]
            chosen.append(left[int(np.argmin(tried))])
    return np.array(chosen, dtype=np.int64)


def mmd(kernel_NN: Embeddings, to_all_N: Embeddings, rows: list[int]) -> float:
    """Squared MMD of these rows to all, but for the term of all alone, which no choice changes."""
    return float(kernel_NN[np.ix_(rows, rows)].mean() - 2 * to_all_N[rows].mean())


def gaussian_kernel(emb_ND: Embeddings) -> Embeddings:
    """exp(−‖x − y‖²/m) of all pairs, m the median of the squared distances of different rows."""
    apart_NN = np.stack([((x_D - emb_ND) ** 2).sum(1) for x_D in emb_ND])  # row by row: no N×N×D
    others = apart_NN[~np.eye(len(emb_ND), dtype=bool)]
    scale = float(np.median(others)) if len(others) else 0.0
    return np.asarray(np.exp(-apart_NN / (scale or 1.0)))
