"""Pixels of decoded frames: at a size, turned as they are shown, RGB.

Letters: H height, W width, C = 3 colours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT  # the same pixels on every CPU


def square(frame: Any, reformatter: VideoReformatter, out_HWC: np.ndarray) -> None:
    """Fill `out_HWC`, uint8 (size, size, 3), with the frame's middle: its short side scaled to `size`, turned upright.

    swscale's BILINEAR widens its triangle with the ratio, as torchvision's antialiased resize does; its AREA is coarser
    and does not enlarge smoothly.
    """
    size = len(out_HWC)
    ratio = size / min(frame.width, frame.height)
    width, height = (max(size, round(side * ratio)) for side in (frame.width, frame.height))
    left, top = (width - size) // 2, (height - size) // 2
    step, turns = orientation(frame)
    for channel, pixels_HW in enumerate(planes(frame, reformatter, width, height)):
        out_HWC[..., channel] = np.rot90(pixels_HW[top : top + size, left : left + size][::step], turns)


def planes(frame: Any, reformatter: VideoReformatter, width: int, height: int) -> list[np.ndarray]:
    """R, G and B of a frame at this size, uint8 (H, W) each.

    swscale's "rgb24" holds the same pixels where it scales, for twice the time; at a frame's own size it is darker, by
    one and a half levels on average. Of an interlaced frame it scales each field by itself and weaves them, so that
    what moves is a comb: the upper field alone is taken.
    """
    fields = 1 + frame.interlaced_frame
    planar: Any = reformatter.reformat(frame, width, height * fields, "gbrp", interpolation=SCALING, threads=1)
    rows = (np.frombuffer(one, np.uint8).reshape(-1, one.line_size)[::fields, :width] for one in planar.planes)
    green, blue, red = rows
    return [red, green, blue]


def orientation(frame: Any) -> tuple[int, int]:
    """How a frame is meant to be shown: its rows by steps of −1 where it is mirrored, then so many quarter turns."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    (a, b), (c, d) = np.eye(2) if matrix is None else np.frombuffer(bytes(matrix), "=i4").reshape(3, 3)[:2, :2] / 65536
    return (-1 if a * d < b * c else 1), round(frame.rotation / 90)
