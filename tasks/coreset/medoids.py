"""Greedy k-medoids, or facility location: every clip of a class is near a chosen one, on average."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def medoids(emb_ND: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Greedy: at each step the row with the least sum over all rows of the distance to the nearest chosen one."""
    distance_NN = np.stack([np.linalg.norm(x_D - emb_ND, axis=1) for x_D in emb_ND])  # row by row: no N×N×D
    nearest_N, chosen = np.full(len(emb_ND), np.inf), list[int]()
    for _ in range(count):
        sums_N = np.minimum(nearest_N[:, None], distance_NN).sum(axis=0)
        sums_N[chosen] = np.inf
        chosen.append(int(np.argmin(sums_N)))
        nearest_N = np.minimum(nearest_N, distance_NN[:, chosen[-1]])
    return np.array(chosen, dtype=np.int64)
