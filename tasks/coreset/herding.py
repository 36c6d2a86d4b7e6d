"""Herding (Welling 2009, as VDSD and DC use it): the subset whose mean stays nearest to the class mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidistill.tasks.coreset.features import FeatureCoreset


class Herding(FeatureCoreset):
    """Greedy mean matching without replacement (methods §2)."""

    def pick(self, emb_ND: NDArray[np.float64], count: int) -> NDArray[np.int64]:
        return herd(emb_ND, count)


def herd(emb_ND: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The greedy choice: argmin over the rows left of ‖(i+1)·μ − Σ chosen − f‖₂, for i = 0 … count − 1."""
    mean_D, total_D = emb_ND.mean(0), np.zeros(emb_ND.shape[1])
    left, chosen = np.ones(len(emb_ND), dtype=bool), []
    for i in range(count):
        distance_N = np.linalg.norm((i + 1) * mean_D - total_D - emb_ND, axis=1)
        chosen.append(int(np.argmin(np.where(left, distance_N, np.inf))))
        left[chosen[-1]] = False
        total_D += emb_ND[chosen[-1]]
    return np.array(chosen, dtype=np.int64)
