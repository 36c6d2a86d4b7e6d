"""The distances that are matched, as plain functions.

Shapes: B clips a batch, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def class_means(emb_BD: Tensor, slots_B: Tensor, classes: int) -> Tensor:
    """Mean embedding of each class, (K, D); zero for a class that has no clip.

    Args:
        emb_BD: embeddings.
        slots_B: int64, the class of each, 0…K−1.
        classes: K.
    """
    sums_KD = emb_BD.new_zeros(classes, emb_BD.shape[1]).index_add(0, slots_B, emb_BD)
    counts_K = slots_B.bincount(minlength=classes).clamp(min=1)
    return sums_KD / counts_K[:, None]


def mean_embedding_distance(real_KD: Tensor, synthetic_KD: Tensor) -> Tensor:
    """DM (Zhao and Bilen 2023, Eq. 5): Σ_c ‖ mean ψ(real_c) − mean ψ(synthetic_c) ‖²."""
    return (real_KD - synthetic_KD).square().sum()


def gradient_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """DC (Zhao, Mopuri and Bilen 2021, gradient matching loss): Σ_layers Σ_outputs (1 − cos) of rows of gradients.

    The row of an output holds all the weights that lead to it. Biases and other vectors count nothing, as in the
    published code, and a row without a gradient on either side is as far as can be (1).

    Args:
        real: gradients by each parameter, constants.
        synthetic: the same for the synthetic clips, to be differentiated.
    """
    weights = [(r.flatten(1), s.flatten(1)) for r, s in zip(real, synthetic, strict=True) if r.dim() > 1]
    return sum((_row_distance(r_OI, s_OI) for r_OI, s_OI in weights), start=real[0].new_zeros(()))


def _row_distance(real_OI: Tensor, synthetic_OI: Tensor) -> Tensor:
    norms_O = real_OI.norm(dim=1) * synthetic_OI.norm(dim=1)
    cosines_O = (real_OI * synthetic_OI).sum(dim=1) / (norms_O + 1e-6)
    distance: Tensor = (1 - cosines_O).sum()
    return distance


def trajectory_distance(reached: Sequence[Tensor], target: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    """MTT (Cazenavette et al. 2022, Eq. 2): ‖ θ̂_{t+N} − θ*_{t+M} ‖² / ‖ θ*_t − θ*_{t+M} ‖²."""
    return square_distance(reached, target) / square_distance(start, target)


def square_distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """‖ one − other ‖² over all parameters."""
    return sum(((a - b).square().sum() for a, b in zip(one, other, strict=True)), start=one[0].new_zeros(()))
