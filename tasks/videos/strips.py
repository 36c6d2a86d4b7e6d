"""Strips: a clip as one row of its frames.

Legend: T frames, H height; clips are uint8 RGB.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FRAMES, GAP = 8, 2


def strip(frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Eight evenly spaced frames (fewer where there are fewer) side by side, as (1, H, width, 3)."""
    chosen = np.linspace(0, len(frames_THWC) - 1, min(FRAMES, len(frames_THWC))).round().astype(int)
    padded_THWC = np.pad(frames_THWC[chosen], ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=127)
    row_HWC: NDArray[np.uint8] = np.concatenate(list(padded_THWC), axis=1)
    return row_HWC[None, :, :-GAP]
