"""K-Center (Sener and Savarese 2018, greedy): every clip of the class has a chosen one near it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidistill.tasks.coreset.features import FeatureCoreset


class KCenter(FeatureCoreset):
    """Farthest-first traversal from the clip nearest to the class mean (methods §2).

    VDSD's code compares an (N, D) array with a (k, D) one by broadcasting and so picks index 0 second and fails third;
    this takes the distance of every clip to its nearest centre.
    """

    def pick(self, emb_ND: NDArray[np.float64], count: int) -> NDArray[np.int64]:
        return farthest_first(emb_ND, count)


def farthest_first(emb_ND: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """First the row nearest to the mean, then always the row farthest from its nearest chosen one."""
    chosen = [int(np.argmin(np.linalg.norm(emb_ND - emb_ND.mean(0), axis=1)))]
    nearest_N = np.linalg.norm(emb_ND - emb_ND[chosen[0]], axis=1)
    while len(chosen) < count:
        nearest_N[chosen] = -1.0
        chosen.append(int(np.argmax(nearest_N)))
        nearest_N = np.minimum(nearest_N, np.linalg.norm(emb_ND - emb_ND[chosen[-1]], axis=1))
    return np.array(chosen, dtype=np.int64)
