"""Forms: what a distilled set keeps instead of its clips, and how the clips are made from it.

Legend: V variants, N clips, T frames, F key frames, P features of a pool, K classes, H height, W width, 3 colours.
`clips_NTHWC` is uint8 RGB; where networks are between, `mean` and `std` (3,) normalise.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidistill.models.hallucinator import hallucinate
from vidistill.models.temporal import fuse, interpolate, reshape_channels, select

AT_ONCE = 16
"""Instances made together: as floats and between layers clips take many times the bytes that stay."""


def still(stored: dict[str, NDArray[Any]], shape_NTHWC: tuple[int, ...]) -> NDArray[np.uint8]:
    """`images`, uint8 (N, H, W, 3), each standing still for T frames (Static-DC)."""
    images_NTHWC: NDArray[np.uint8] = np.broadcast_to(stored["images"][:, None], shape_NTHWC)
    return np.ascontiguousarray(images_NTHWC)


def memory(stored: dict[str, NDArray[Any]], shape_NTHWC: tuple[int, ...]) -> NDArray[np.uint8]:
    """VDSD: m images and m motion maps an instance, in each of their m² pairs: VNTHWC, the first image's pairs first.

    `images` (N·m, H, W, 3), uint8; `motion` (N·m, T, H, W), float; `weight` and `bias` of the hallucinator.
    """
    weight, bias = torch.from_numpy(stored["weight"]), torch.from_numpy(stored["bias"])
    memories = len(stored["images"]) // shape_NTHWC[0]
    made_VNTHWC = np.empty((memories**2, *shape_NTHWC), np.uint8)
    for rows in _parts(shape_NTHWC[0]):
        for variant, (s, d) in enumerate(product(range(memories), repeat=2)):
            images_NCHW = _normalised(stored["images"][rows * memories + s], stored)
            motion_N1THW = torch.from_numpy(stored["motion"][rows * memories + d])[:, None]
            made_VNTHWC[variant, rows] = _pixels(hallucinate(images_NCHW, motion_N1THW, weight, bias), stored)
    return made_VNTHWC


def interpolated(stored: dict[str, NDArray[Any]], shape_NTHWC: tuple[int, ...]) -> NDArray[np.uint8]:
    """SFVD: `images`, uint8 (N, F, H, W, 3), evenly spread in time and linear in between."""
    made_NTHWC = np.empty(shape_NTHWC, np.uint8)
    for rows in _parts(shape_NTHWC[0]):
        keys_NCFHW = torch.from_numpy(stored["images"][rows]).permute(0, 4, 1, 2, 3).float()
        made_NTHWC[rows] = _rounded(interpolate(keys_NCFHW, shape_NTHWC[1]))
    return made_NTHWC


def reshaped(stored: dict[str, NDArray[Any]], shape_NTHWC: tuple[int, ...]) -> NDArray[np.uint8]:
    """SFVD-T: `images` as in `interpolated` and real clips, `real` uint8 (N, T, H, W, 3), through `weight`, `bias`."""
    weight, bias = torch.from_numpy(stored["weight"]), torch.from_numpy(stored["bias"])
    made_NTHWC = np.empty(shape_NTHWC, np.uint8)
    for rows in _parts(shape_NTHWC[0]):
        still_NCTHW = interpolate(_normalised(stored["images"][rows], stored), shape_NTHWC[1])
        real_NCTHW = _normalised(stored["real"][rows], stored)
        made_NTHWC[rows] = _pixels(reshape_channels(still_NCTHW, real_NCTHW, weight, bias), stored)
    return made_NTHWC


def fused(stored: dict[str, NDArray[Any]], shape_NTHWC: tuple[int, ...]) -> NDArray[np.uint8]:
    """IDTD: a `pool` a class, uint8 (K, P, H, W, 3), read by `choice` (N, F, P), through `weight` and `bias`."""
    pool_KPCHW = _normalised(stored["pool"], stored).transpose(1, 2)
    choices = torch.split(torch.from_numpy(stored["choice"]), shape_NTHWC[0] // len(pool_KPCHW))
    weight, bias = torch.from_numpy(stored["weight"]), torch.from_numpy(stored["bias"])
    return np.concatenate([
        _pixels(fuse(select(*of_class), shape_NTHWC[1], weight, bias), stored)
        for of_class in zip(pool_KPCHW, choices, strict=True)
    ])  # fmt: skip


def _parts(instances: int) -> Iterator[NDArray[np.intp]]:
    """Rows of the instances, so many together."""
    return (np.arange(first, min(first + AT_ONCE, instances)) for first in range(0, instances, AT_ONCE))


def _normalised(pixels: NDArray[np.uint8], stored: dict[str, NDArray[Any]]) -> Tensor:
    """uint8 (…, H, W, 3) as float, colours second, by the set's `mean` and `std`."""
    mean_C, std_C = torch.from_numpy(stored["mean"]), torch.from_numpy(stored["std"])
    return ((torch.from_numpy(pixels) / 255 - mean_C) / std_C).movedim(-1, 1)


def _pixels(x_NCTHW: Tensor, stored: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    mean_C11, std_C11 = (torch.from_numpy(stored[name])[:, None, None, None] for name in ("mean", "std"))
    return _rounded((x_NCTHW * std_C11 + mean_C11) * 255)


def _rounded(x_NCTHW: Tensor) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = x_NCTHW.round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1).contiguous().numpy()
    return pixels
