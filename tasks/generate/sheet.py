"""Contact sheet: of each class a few generated clips, each beside its nearest training clip.

Legend: T frames, H height, W width; clips are uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vidistill.storage.pool import Pool
from vidistill.tasks.videos.strips import strip

SHOWN = 3
"""Clips of a class."""
GAP, TITLE, WHITE = 4, 14, 255


def contact_sheet(pool: Pool, nearest: Callable[[int], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The first clips of every class as strips of frames, left, and the nearest training clips, right.

    Args:
        pool: generated clips.
        nearest: the training clip that is nearest to the generated one of a row, of its size.

    Returns:
        The picture, (height, width, 3).
    """
    parts: list[NDArray[np.uint8]] = []
    for label, name in enumerate(pool.classes):
        rows = pool.rows_of(label)[:SHOWN]
        pairs = [beside(pool.read([row])[0], nearest(row)) for row in rows]
        parts += [title(f"{name}: generated | nearest training clip", pairs[0].shape[1]), *pairs]
    return np.concatenate(parts)


def beside(made_THWC: NDArray[np.uint8], real_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two clips as one row of frames, a gap between them and one below."""
    left_HWC, right_HWC = strip(made_THWC)[0], strip(real_THWC)[0]
    gap = np.full((left_HWC.shape[0], 2 * GAP, 3), WHITE, dtype=np.uint8)
    row = np.concatenate([left_HWC, gap, right_HWC], axis=1)
    return np.pad(row, ((0, GAP), (0, 0), (0, 0)), constant_values=WHITE)


def title(text: str, width: int) -> NDArray[np.uint8]:
    picture = Image.new("RGB", (width, TITLE), "white")
    ImageDraw.Draw(picture).text((2, 1), text, fill="black")
    return np.asarray(picture)
