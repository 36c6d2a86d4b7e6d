"""The form of OptDistill's sets: mosaics are kept, and their regions, enlarged to the student's size, are trained on.

Legend: M mosaics of G×G regions, N = M·G² regions, T frames, H height, W width, 3 colours; all uint8 RGB.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def regions(stored: dict[str, NDArray[Any]], shape_NTHWC: tuple[int, ...]) -> NDArray[np.uint8]:
    """The regions v_jm of `mosaics` (S2, Eq. 5), mosaic after mosaic, row by row, enlarged bilinearly."""
    mosaics_MTHWC: NDArray[np.uint8] = stored["mosaics"]
    grid = math.isqrt(shape_NTHWC[0] // len(mosaics_MTHWC))
    return resize(cells(mosaics_MTHWC, grid), *shape_NTHWC[2:4])


def cells(mosaics_MTHWC: NDArray[np.uint8], grid: int) -> NDArray[np.uint8]:
    """The regions at their own size, (N, T, H // G, W // G, 3)."""
    height, width = (side // grid for side in mosaics_MTHWC.shape[2:4])
    found = [
        mosaic_THWC[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        for mosaic_THWC in mosaics_MTHWC
        for row in range(grid)
        for column in range(grid)
    ]
    return np.stack(found)


def tile(cells_NTHWC: NDArray[np.uint8], grid: int, height: int, width: int) -> NDArray[np.uint8]:
    """Mosaics (M, T, height, width, 3) of G² cells each, in rows; black where the size is no multiple of the grid."""
    _, frames, cell_height, cell_width, _ = cells_NTHWC.shape
    mosaics_MTHWC = np.zeros((len(cells_NTHWC) // grid**2, frames, height, width, 3), np.uint8)
    for number, cell_THWC in enumerate(cells_NTHWC):
        mosaic, place = divmod(number, grid**2)
        top, left = place // grid * cell_height, place % grid * cell_width
        mosaics_MTHWC[mosaic, :, top : top + cell_height, left : left + cell_width] = cell_THWC
    return mosaics_MTHWC


def resize(clips_NTHWC: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Clips at another size, each frame scaled bilinearly, as decoded ones are: uint8 (N, T, height, width, 3)."""
    import torch

    if clips_NTHWC.shape[2:4] == (height, width):
        return clips_NTHWC
    made_NTHWC = np.empty((*clips_NTHWC.shape[:2], height, width, 3), np.uint8)
    for number, clip_THWC in enumerate(clips_NTHWC):
        x_TCHW = torch.from_numpy(np.ascontiguousarray(clip_THWC)).permute(0, 3, 1, 2).float()
        scaled_TCHW = torch.nn.functional.interpolate(x_TCHW, (height, width), mode="bilinear", antialias=True)
        made_NTHWC[number] = scaled_TCHW.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return made_NTHWC
