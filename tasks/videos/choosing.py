"""Which frames make a video's clips; apart from what decodes them, since this needs no libav.

Letters: V views, T frames.
"""

from __future__ import annotations

import numpy as np


def choose(count: int, frames: int, interval: int, views: int) -> np.ndarray:
    """Which of `count` frames make the clips: int (V, T), in the order in which frames leave the decoder.

    View v starts at the van der Corput fraction 1/2, 1/4, 3/4, 1/8 … of the room that is left: view 0 is the centre,
    and more views keep the earlier ones. A video shorter than a clip is spread evenly, with repeats where frames are
    too few.
    """
    room = count - ((frames - 1) * interval + 1)
    if room < 0:
        return np.tile(np.linspace(0, count - 1, frames).round().astype(int), (views, 1))
    starts = [int(van_der_corput(view + 1) * room) for view in range(views)]
    return np.array(starts)[:, None] + np.arange(frames) * interval


def van_der_corput(number: int) -> float:
    """The binary digits of `number`, mirrored at the point."""
    fraction, weight = 0.0, 0.5
    while number:
        fraction += weight * (number & 1)
        number, weight = number >> 1, weight / 2
    return fraction
