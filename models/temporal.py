"""From a few images to a clip: interpolation in time, a reshaping layer over two clips, a selector and a fusor.

Legend: B clips, C channels, T frames, F key frames, P features of a pool, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def interpolate(keys_BCFHW: Tensor, frames: int) -> Tensor:
    """x_BCTHW: key frames evenly spread from the first frame to the last, linear in between; one is duplicated."""
    keys = keys_BCFHW.shape[2]
    if keys == 1:
        return keys_BCFHW.expand(-1, -1, frames, -1, -1)
    place_T = torch.linspace(0, keys - 1, frames, device=keys_BCFHW.device, dtype=keys_BCFHW.dtype)
    before_T = place_T.long().clamp(max=keys - 2)
    share_T11 = (place_T - before_T)[:, None, None]
    return torch.lerp(keys_BCFHW[:, :, before_T], keys_BCFHW[:, :, before_T + 1], share_T11)


def reshape_channels(still_BCTHW: Tensor, real_BCTHW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x_BCTHW: the channels of two clips side by side, and a 3×3×3 convolution from six to three of them.

    Args:
        still_BCTHW: (B, 3, T, H, W).
        real_BCTHW: (B, 3, T, H, W).
        weight: (3, 6, 3, 3, 3).
        bias: (3,).
    """
    return F.conv3d(torch.cat([still_BCTHW, real_BCTHW], dim=1), weight, bias, padding=1)


def averaging_weights() -> tuple[Tensor, Tensor]:
    """Weight and bias with which `reshape_channels` gives the mean of its two clips."""
    weight = torch.zeros(3, 6, 3, 3, 3)
    for channel in range(3):
        weight[channel, [channel, channel + 3], 1, 1, 1] = 0.5
    return weight, torch.zeros(3)


def select(pool_PCHW: Tensor, choice_BFP: Tensor) -> Tensor:
    """keys_BCFHW: each key frame a mean of the pool's features, weighted by the softmax of its row of `choice_BFP`."""
    return torch.einsum("bfp,pchw->bcfhw", choice_BFP.softmax(dim=2), pool_PCHW)


def fuse(keys_BCFHW: Tensor, frames: int, weight: Tensor, bias: Tensor) -> Tensor:
    """x_BCTHW: the keys interpolated, plus a 3×3×3 convolution of that, from three channels to three."""
    x_BCTHW = interpolate(keys_BCFHW, frames)
    return x_BCTHW + F.conv3d(x_BCTHW, weight, bias, padding=1)
