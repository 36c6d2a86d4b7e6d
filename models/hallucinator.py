"""VDSD's hallucinator: a still image and a map of motion become a clip (arXiv 2312.00362, its code's `Conv3DNet`).

Legend: B clips, C channels (3 of an image, 1 of a motion map), T frames, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHT = (3, 4, 3, 3, 3)


def hallucinate(static_BCHW: Tensor, dynamic_BCTHW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x_BCTHW`: the image in every frame, the motion map as a fourth channel, and one 3×3×3 convolution of the two.

    There is no activation, so a clip is linear in its image, in its motion and in the weights, taken one at a time.

    Args:
        static_BCHW: (B, 3, H, W), normalised images.
        dynamic_BCTHW: (B, 1, T, H, W).
        weight: (3, 4, 3, 3, 3), shared by all classes.
        bias: (3,).
    """
    still_BCTHW = static_BCHW.unsqueeze(2).expand(-1, -1, dynamic_BCTHW.shape[2], -1, -1)
    return F.conv3d(torch.cat([still_BCTHW, dynamic_BCTHW], dim=1), weight, bias, padding=1)


def drawn_weights(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight and bias in torch's default initialisation, U(−1/√108, 1/√108): 327 numbers."""
    bound = (WEIGHT[1] * WEIGHT[2] * WEIGHT[3] * WEIGHT[4]) ** -0.5
    draw = torch.rand(WEIGHT, generator=generator), torch.rand(WEIGHT[0], generator=generator)
    return (2 * draw[0] - 1) * bound, (2 * draw[1] - 1) * bound
