"""Tile: which crops make a mosaic, and how crops of different lengths come to run side by side (S2, §4.3, §4.4, §5.1).

Legend: L frames of a crop, T of a clip, h height and w width of a region; crops are uint8 RGB.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.errors import RequestError
from vidistill.tasks.crops.cutting import clip_of, read_crop, spread

Grouping = Literal["length", "random"]


@dataclass(frozen=True)
class Crop:
    """A video's best crop, or one of its crops: the video's row among the training clips, and where it is kept."""

    row: int
    path: str
    score: float
    length: int
    folder: Path = field(default=Path(), compare=False)
    outcome: dict[str, Any] = field(default_factory=dict, compare=False)

    def read(self) -> NDArray[np.uint8]:
        """uint8 (L, h, w, 3)."""
        return read_crop(self.folder, self.outcome)


def preselected(crops: list[Crop], count: int | None, random: np.random.Generator) -> list[Crop]:
    """V'_c of §4.3: the crops of `count` videos drawn uniformly, in path order."""
    paths = sorted({crop.path for crop in crops})
    if count is None or count >= len(paths):
        return crops
    drawn = {paths[place] for place in random.choice(len(paths), count, replace=False)}
    return [crop for crop in crops if crop.path in drawn]


def grouped(
    crops: list[Crop], mosaics: int, grid: int, *, top_k: int | None, threshold: float | None, grouping: Grouping,
    random: np.random.Generator, name: str,
) -> list[list[Crop]]:  # fmt: skip
    """The crops of each mosaic of one class.

    Those of at least the threshold, the TOP_K by score. `length` (§5.1): neighbours by length make a group, and of more
    groups than are asked for those with the highest mean score are taken; TOP_K is what the mosaics need unless it is
    given. `random` (§4.4): drawn from the TOP_K, or from all where it is not given.

    Raises:
        RequestError: there are fewer crops than the mosaics need.
    """
    size, need = grid**2, mosaics * grid**2
    good = [crop for crop in crops if threshold is None or crop.score >= threshold]
    default = need if grouping == "length" else len(good)
    best = sorted(good, key=lambda crop: (-crop.score, crop.path))[: default if top_k is None else top_k]
    if len(best) < need:
        raise RequestError(
            f"ipc {mosaics} with {grid}×{grid} regions takes {need} crops of a class, and {name} has {len(best)} "
            f"({len(crops)} to choose from, {len(good)} of the threshold's score, top_k {top_k or 'not given'}): lower "
            "ipc or optdistill.grid, let optdistill.videos, preselect, threshold or top_k leave more, raise max_lost, "
            "or set optdistill.fallback=whole for videos in which nothing is found."
        )
    if grouping == "random":
        drawn = [best[place] for place in random.permutation(len(best))[:need]]
        return [drawn[i : i + size] for i in range(0, need, size)]
    ordered = sorted(best, key=lambda crop: (crop.length, crop.path))
    groups = [ordered[i : i + size] for i in range(0, len(ordered) - size + 1, size)]
    return sorted(groups, key=lambda group: -float(np.mean([crop.score for crop in group])))[:mosaics]


def side_by_side(group: list[NDArray[np.uint8]], frames: int) -> NDArray[np.uint8]:
    """The crops of a mosaic at one speed: uint8 (N², T, h, w, 3).

    Longer ones are sped up to the length of the shortest, by leaving out frames evenly; crops shorter than a clip are
    first slowed to its length. The middle T frames are kept, as they are of any video.
    """
    length = min(max(len(crop_LHWC), frames) for crop_LHWC in group)
    return np.stack([clip_of(spread(crop_LHWC, length), frames) for crop_LHWC in group])
