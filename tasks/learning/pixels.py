"""Pixels: from a data set's clips to what is learnt, and back to clips of bytes.

Shapes: B, N clips, C colours, T frames, F of them, H height, W width. `x_BCTHW` is normalised by the data set's own
statistics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from vidistill.tasks.learning import streams, training

if TYPE_CHECKING:
    from torch import Tensor

    from vidistill.storage.clips import Clips
    from vidistill.tasks.learning.training import Device


AT_ONCE = 16
"""Clips that are read together where some of their frames are kept."""
RATE: Any = Field(
    0.0, ge=0, exclude_if=lambda rate: not rate,
    description="Of the clips' total variation, which codecs pay for.",
)  # fmt: skip
"""The parameter of methods whose losses may have `total_variation` added."""


def initial(
    clips: Clips, rows: np.ndarray, init: str, seed: int, device: Device, frames_BF: np.ndarray | None = None
) -> Tensor:
    """Real clips of these rows, or normal noise with the data's mean and deviation: x_BCTHW.

    Where frames are given they are all that is kept of a clip, a few clips at a time, before any is a float.
    """
    import torch

    table, random = clips.table, training.generator(seed, int(rows[0]), streams.NOISE_START)

    def whole(rows: np.ndarray) -> np.ndarray:
        if init == "real":
            return clips.read(rows)
        return random.standard_normal((len(rows), *clips.shape_THWC), dtype=np.float32)

    def chosen(part: slice, frames_BF: np.ndarray) -> np.ndarray:
        some_BFHWC: np.ndarray = whole(rows[part])[np.arange(len(frames_BF))[:, None], frames_BF]
        return some_BFHWC

    if frames_BF is None:
        begun_BTHWC = whole(rows)
    else:
        parts = (slice(first, first + AT_ONCE) for first in range(0, len(rows), AT_ONCE))
        begun_BTHWC = np.concatenate([chosen(part, frames_BF[part]) for part in parts])
    if init == "real":
        return training.to_input(begun_BTHWC, table.mean, table.std, device)
    return torch.from_numpy(begun_BTHWC).to(device.torch_device).permute(0, 4, 1, 2, 3)


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
