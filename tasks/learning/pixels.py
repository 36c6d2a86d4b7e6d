"""Pixels: from a data set's clips to what is learnt, and back to clips of bytes.

Shapes: B, N clips, C colours, T frames, H height, W width. `x_BCTHW` is normalised by the data set's own statistics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vidistill.tasks.learning import streams, training

if TYPE_CHECKING:
    from torch import Tensor

    from vidistill.storage.clips import Clips
    from vidistill.tasks.learning.training import Device


def initial(clips: Clips, rows: np.ndarray, init: str, seed: int, device: Device) -> Tensor:
    """Real clips of these rows, or normal noise with the data's mean and deviation: x_BCTHW."""
    import torch

    table = clips.table
    if init == "real":
        return training.to_input(clips.read(rows), table.mean, table.std, device)
    noise = training.generator(seed, int(rows[0]), streams.NOISE_START).standard_normal(
        (len(rows), *clips.shape_THWC), dtype=np.float32
    )
    return torch.from_numpy(noise).to(device.torch_device).permute(0, 4, 1, 2, 3)


def pixel_range(clips: Clips, device: Device) -> tuple[Tensor, Tensor]:
    """Black and white in normalised units, shaped to broadcast over BCTHW."""
    import torch

    mean_C, std_C = (
        torch.tensor(values, dtype=torch.float32, device=device.torch_device)[:, None, None, None]
        for values in (clips.table.mean, clips.table.std)
    )
    return -mean_C / std_C, (1 - mean_C) / std_C


def to_pixels(x_BCTHW: Tensor, clips: Clips) -> np.ndarray:
    """Normalised clips as uint8 NTHWC, rounded: a set of as many bytes as real clips."""
    import torch

    mean_C, std_C = (torch.tensor(values, device=x_BCTHW.device) for values in (clips.table.mean, clips.table.std))
    made = []
    for x_CTHW in x_BCTHW:  # one by one: a large set has no room for copies of itself
        pixels_THWC = (x_CTHW.permute(1, 2, 3, 0) * std_C + mean_C) * 255
        made.append(pixels_THWC.round().clamp(0, 255).to(torch.uint8).cpu().numpy())
    return np.stack(made)


def total_variation(x_BCTHW: Tensor) -> Tensor:
    """Mean |difference| of neighbours along each of T, H and W, added up: what a video codec's bytes grow with."""
    pairs = (x_BCTHW.diff(dim=dim).abs() for dim in (2, 3, 4) if x_BCTHW.shape[dim] > 1)
    return sum((one.mean() for one in pairs), start=x_BCTHW.new_zeros(()))
