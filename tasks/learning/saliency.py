"""Temporal saliency (paper S3, Eq. 6–8), which TSGF's mask and its guided VideoMix share.

Shapes: B clips, C colours, T frames, H height, W width. `x_BCTHW` is normalised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vidistill.storage.parameters import Parameters

if TYPE_CHECKING:
    from torch import Tensor


class SaliencyParameters(Parameters):
    """Eq. 6–8. The paper gives neither the window, nor its weights, nor ε."""

    window: int = Field(2, ge=0, description="k of Eq. 7: how many earlier frames smooth a frame's saliency.")
    weights: Literal["uniform", "triangular"] = Field(
        "triangular", description="α of Eq. 7 ('determined by the window function'): falling linearly, or all equal."
    )
    epsilon_quantile: float = Field(
        0.75,
        ge=0,
        le=1,
        description="ε as this quantile of a clip's own saliency; 1 is 'the upper bound' read literally.",
    )


def frame_difference(x_BCTHW: Tensor) -> Tensor:
    """Eq. 6, d (B, T): the mean over colours and pixels of (|f_{i+1} − f_i| + |f_i − f_{i−1}|) / 2.

    The paper leaves the reduction and the ends open: the mean, and at the ends the one difference there is.
    """
    import torch

    if x_BCTHW.shape[2] == 1:
        return x_BCTHW.new_zeros(x_BCTHW.shape[0], 1)
    step_BT = x_BCTHW.diff(dim=2).abs().mean(dim=(1, 3, 4))
    after_BT = torch.cat([step_BT, step_BT[:, -1:]], dim=1)
    before_BT = torch.cat([step_BT[:, :1], step_BT], dim=1)
    return (after_BT + before_BT) / 2


def saliency(x_BCTHW: Tensor, parameters: SaliencyParameters) -> Tensor:
    """Eq. 7, s (B, T): a causal weighted mean of d over this frame and the k before it.

    Weights sum to one over the frames that exist, so that the first frames are not called still.
    """
    d_BT = frame_difference(x_BCTHW)
    k = min(parameters.window, d_BT.shape[1] - 1)
    alpha = [1.0 if parameters.weights == "uniform" else float(k + 1 - j) for j in range(k + 1)]
    total_BT, weight_T = d_BT * 0, d_BT.new_zeros(d_BT.shape[1])
    for j, alpha_j in enumerate(alpha):
        total_BT[:, j:] += alpha_j * d_BT[:, : d_BT.shape[1] - j]
        weight_T[j:] += alpha_j
    return total_BT / weight_T


def threshold(s_BT: Tensor, parameters: SaliencyParameters) -> Tensor:
    """Eq. 8, ε (B, 1): a quantile of each clip's own saliency."""
    return s_BT.quantile(parameters.epsilon_quantile, dim=1, keepdim=True)


def gradient_mask(s_BT: Tensor, epsilon_B1: Tensor, sign: Literal["magnitude", "both"] = "magnitude") -> Tensor:
    """Eq. 8, M (B, T): max(ε − s, 0) / (max s − min s); without the max where `sign` is both (Table 9).

    A clip that stands still, or moves evenly, has no salient frame: the quotient is 0/0 there, and M is one.
    """
    import torch

    span_B1 = s_BT.amax(1, keepdim=True) - s_BT.amin(1, keepdim=True)
    room_BT = epsilon_B1 - s_BT
    if sign == "magnitude":
        room_BT = room_BT.clamp(min=0)
    still_B1 = span_B1 <= 1e-6 * s_BT.amax(1, keepdim=True)
    return torch.where(still_B1, torch.ones_like(s_BT), room_BT / span_B1.masked_fill(still_B1, 1))
