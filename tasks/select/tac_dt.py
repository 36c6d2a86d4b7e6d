"""TAC-DT: PCA, BIRCH, exactly VPC clusters, and the clip nearest to the middle of each (S4, §3.2).

Shapes: N clips of a class, D features, M dimensions after PCA.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.tasks.learning import streams
from vidistill.tasks.learning.embedding import EmbeddingParameters, Embeddings
from vidistill.tasks.learning.training import generator
from vidistill.tasks.methods import Material
from vidistill.tasks.select.embedding import EmbeddingSelector, Pick

HALVINGS = 20


class TACDTParameters(EmbeddingParameters):
    """PCA and BIRCH. S4 states neither; TAC-SUM, its parent, has 50 dimensions or 3, and a threshold of 0.5."""

    dimensions: int = Field(16, ge=1, description="Of the embeddings after PCA; N_c − 1 where that is less.")
    threshold: float = Field(
        0.5, gt=0, description="Radius of a BIRCH sub-cluster, in root mean square distances of a class to its mean."
    )
    branching_factor: int = Field(50, ge=2, description="Sub-clusters in a node of BIRCH's tree.")


class TACDT(EmbeddingSelector):
    """No training: a class's clips are clustered and each cluster gives one.

    "Representative videos are then selected" is read as one a cluster, the nearest to the mean of its members.
    TAC-SUM's smoothing in time is left out, as clips of a class have no order; the seed draws the one in which BIRCH
    meets them, the only thing in it that can vary.
    """

    Parameters = TACDTParameters

    def picker(self, material: Material) -> Pick:
        p: TACDTParameters = self.parameters

        def pick(emb_ND: Embeddings, label: int) -> NDArray[np.int64]:
            order_N = generator(material.seed, label, streams.CLUSTER_ORDER).permutation(len(emb_ND))
            reduced_NM = reduced(emb_ND, p.dimensions)[order_N]
            cluster_N = birch_clusters(reduced_NM, material.ipc, p.threshold, p.branching_factor)
            return order_N[nearest_to_centroids(reduced_NM, cluster_N)]

        return pick


def reduced(emb_ND: Embeddings, dimensions: int) -> Embeddings:
    """The first principal components, (N, M); in units of the root mean square distance to the mean."""
    from sklearn.decomposition import PCA

    most = min(dimensions, len(emb_ND) - 1, emb_ND.shape[1])
    if most < 1:
        return np.zeros((len(emb_ND), 1))
    reduced_NM = PCA(most, svd_solver="full").fit_transform(emb_ND)
    spread = np.sqrt((reduced_NM**2).sum(1).mean())
    return np.asarray(reduced_NM / (spread or 1.0))


def birch_clusters(reduced_NM: Embeddings, count: int, threshold: float, branching_factor: int) -> NDArray[np.int64]:
    """A cluster number for each row, exactly `count` of them.

    BIRCH's sub-clusters are joined by Ward's criterion until `count` are left (by single linkage in TAC-SUM, whose
    segments may be long chains; a choice of few clips wants compact clusters). Where BIRCH finds fewer than that, its
    threshold is halved and it begins again; where that does not help either, as with equal rows, every row is a
    sub-cluster of its own.
    """
    from sklearn.cluster import Birch

    for halving in range(HALVINGS):
        tree = Birch(threshold=threshold / 2**halving, branching_factor=branching_factor, n_clusters=None)
        part_N = tree.fit_predict(reduced_NM)
        if len(tree.subcluster_centers_) >= count:
            cluster_N: NDArray[np.int64] = joined(tree.subcluster_centers_, count)[part_N]
            if len(np.unique(cluster_N)) == count:
                return cluster_N
    return joined(reduced_NM, count)


def joined(centres_NM: Embeddings, count: int) -> NDArray[np.int64]:
    """The cluster of each centre, after joining the two nearest by Ward's criterion until `count` are left."""
    from sklearn.cluster import AgglomerativeClustering

    if len(centres_NM) == 1:
        return np.zeros(1, dtype=np.int64)
    labels_N: NDArray[np.int64] = (
        AgglomerativeClustering(count, linkage="ward").fit_predict(centres_NM).astype(np.int64)
    )
    return labels_N


def nearest_to_centroids(reduced_NM: Embeddings, cluster_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row nearest to the mean of each cluster."""
    chosen = []
    for cluster in np.unique(cluster_N):
        rows = np.flatnonzero(cluster_N == cluster)
        away = np.linalg.norm(reduced_NM[rows] - reduced_NM[rows].mean(0), axis=1)
        chosen.append(rows[away.argmin()])
    return np.array(chosen, dtype=np.int64)
