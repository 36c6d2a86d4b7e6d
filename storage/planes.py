"""Planes: RGB to the planes of a video codec and back, and pictures scaled, in whole numbers alone.

BT.601 in full range, as JPEG has it. Nothing here is a float, so every machine and version makes the same pixels.

Legend: T frames, H height, W width, 3 colours (RGB). `y_THW` is uint8; `u_THW` and `v_THW` have half of each side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ONE = 1 << 16
TO_YUV = np.array(((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329)), dtype=np.int32)
"""0.299, 0.587, 0.114 and the differences from blue and red, in 65,536ths: the rows sum to 1, 0 and 0."""
RED, GREEN_U, GREEN_V, BLUE = 91881, -22554, -46802, 116130


def to_planes(clip_THWC: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """uint8 (T, H, W, 3) of even sides as y (T, H, W), u and v (T, H/2, W/2): u and v are means over 2×2 pixels."""
    t, h, w, _ = clip_THWC.shape
    y_THW = (clip_THWC.astype(np.int32) @ TO_YUV[0] + ONE // 2) >> 16
    sums_THW3 = clip_THWC.reshape(t, h // 2, 2, w // 2, 2, 3).sum(axis=(2, 4), dtype=np.int32)
    u_THW, v_THW = ((sums_THW3 @ row + (128 << 18) + (ONE << 1) - 1) >> 18 for row in TO_YUV[1:])
    return _bytes(y_THW), _bytes(u_THW), _bytes(v_THW)


def to_rgb(y_THW: NDArray[np.uint8], u_THW: NDArray[np.uint8], v_THW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Planes as uint8 (T, H, W, 3). Between their samples u and v are linear: 9, 3, 3 and 1 sixteenths of the four
    nearest, and at a border the outermost one twice.
    """
    y, u, v = y_THW.astype(np.int32), _doubled(u_THW), _doubled(v_THW)
    red = y + ((RED * v + ONE // 2) >> 16)
    green = y + ((GREEN_U * u + GREEN_V * v + ONE // 2) >> 16)
    blue = y + ((BLUE * u + ONE // 2) >> 16)
    return _bytes(np.stack([red, green, blue], axis=-1))


def padded(clip_THWC: NDArray[np.uint8], least: int) -> NDArray[np.uint8]:
    """With even sides of `least` pixels and more: the last row and column go on."""
    height, width = clip_THWC.shape[1:3]
    more = ((0, 0), (0, even(height, least) - height), (0, even(width, least) - width), (0, 0))
    made: NDArray[np.uint8] = np.pad(clip_THWC, more, mode="edge")
    return made


def even(side: int, least: int) -> int:
    return max(least, side + side % 2)


def scaled(clip_THWC: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Bilinear, with pixels as squares: uint8 (T, H, W, 3) to (T, height, width, 3)."""
    if clip_THWC.shape[1:3] == (height, width):
        return clip_THWC
    y0, y1, fy = _places(clip_THWC.shape[1], height)
    x0, x1, fx = _places(clip_THWC.shape[2], width)
    wide = clip_THWC.astype(np.int32)
    rows: NDArray[np.int32] = wide[:, y0] * (256 - fy)[:, None, None] + wide[:, y1] * fy[:, None, None]
    made: NDArray[np.int32] = rows[:, :, x0] * (256 - fx)[:, None] + rows[:, :, x1] * fx[:, None]
    return _bytes((made + ONE // 2) >> 16)


def _places(before: int, after: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """The two pixels that each new one lies between, and how near the second is, in 256ths."""
    exact = (2 * np.arange(after) + 1) * before * 128 // after - 128
    place: NDArray[np.int32] = np.clip(exact, 0, (before - 1) * 256).astype(np.int32)
    return place >> 8, np.minimum((place >> 8) + 1, before - 1), place & 255


def _doubled(plane_THW: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Twice as high and wide, around 0."""
    values = plane_THW.astype(np.int32)
    for axis in (1, 2):
        edged = np.pad(values, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        before, after = np.delete(edged, [-1, -2], axis), np.delete(edged, [0, 1], axis)
        pairs = np.stack([3 * values + before, 3 * values + after], axis=axis + 1)
        values = pairs.reshape([size * 2 if a == axis else size for a, size in enumerate(values.shape)])
    return ((values + 8) >> 4) - 128


def _bytes(values: NDArray[np.int32]) -> NDArray[np.uint8]:
    made: NDArray[np.uint8] = np.clip(values, 0, 255).astype(np.uint8)
    return made
