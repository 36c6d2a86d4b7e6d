"""What seeds can settle: paired differences with t intervals, and students that call everything one class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_SEEDS = 3
"""Fewer settle nothing, whatever they say: two that happen to agree have no spread."""
CONFIDENCE = 0.95
CALLED, OTHERS_RECALL = 0.9, 0.05


@dataclass(frozen=True)
class Difference:
    """One row's scores minus another's, seed by seed: mean, standard error, half of the 95 % t interval."""

    mean: float
    error: float | None
    interval: float | None
    seeds: int

    @property
    def settled(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval is not None and self.seeds >= LEAST_SEEDS and abs(self.mean) > self.interval


def paired(one: Sequence[float], other: Sequence[float]) -> Difference:
    """The difference over the seeds that both have; neither error nor interval where that is one."""
    seeds = min(len(one), len(other))
    differences_S = np.subtract(one[:seeds], other[:seeds])
    if seeds < 2:
        return Difference(float(differences_S.mean()), None, None, seeds)
    error = float(np.std(differences_S, ddof=1) / np.sqrt(seeds))
    return Difference(float(differences_S.mean()), error, t_quantile(seeds - 1) * error, seeds)


def deviation(values: Sequence[float]) -> float:
    """Between seeds, of the sample; zero where there is one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def t_quantile(degrees: int) -> float:
    """How many standard errors the two-sided 95 % interval of Student's t reaches."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))


def collapsed_to(counts_KK: NDArray[np.integer[Any]]) -> int | None:
    """The class that a student calls nearly everything, from what was called what, a row a true class; else None."""
    called_K, own_K = counts_KK.sum(0), counts_KK.sum(1)
    label = int(called_K.argmax())
    others = (own_K > 0) & (np.arange(len(own_K)) != label)
    if not others.any() or called_K[label] < CALLED * called_K.sum():
        return None
    return label if (counts_KK.diagonal()[others] / own_K[others]).mean() <= OTHERS_RECALL else None
