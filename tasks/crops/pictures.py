"""What the report draws of a crop: the first frame with what was detected, the track over the clip, the crop.

Legend: N crops, R of them shown, T frames, H height, W width; pictures are uint8 RGB. A box is (x0, y0, x1, y1) in
pixels of the video.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidistill.tasks.crops.tracking import FIRST_FRAMES, TRACKS
from vidistill.tasks.videos.choosing import choose

if TYPE_CHECKING:
    from vidistill.tasks.crops.mosaic import Crop
    from vidistill.tasks.methods import Material

SIDE, SHOWN = 128, 4
DETECTED, TRACKED = (255, 200, 0), (0, 220, 90)


def crop_pictures(
    crops: list[Crop], cells_NTHWC: NDArray[np.uint8], material: Material
) -> dict[str, NDArray[np.generic]]:
    """A set's extras: `score` (N,), and for the first crop of each of four classes `clip` (R,), which it is of the
    crops, `first_frame` (R, 128, 128, 3), `track` (R, T, H, W, 3) and `crop`.
    """
    labels_N = material.clips.labels_N[[crop.row for crop in crops]]
    shown = [int(np.flatnonzero(labels_N == label)[0]) for label in np.unique(labels_N)[:SHOWN]]
    firsts = [crops[clip] for clip in shown]
    tracked = {
        video["path"]: (folder / FIRST_FRAMES / f"{number:02d}.jpg", video)
        for folder in material.inputs("tracks")
        for number, video in enumerate(json.loads((folder / TRACKS).read_text()))
    }
    return {
        "clip": np.array(shown),
        "first_frame": np.stack([first_frame(*tracked[crop.path]) for crop in firsts]),
        "track": np.stack([tracked_clip(crop, material) for crop in firsts]),
        "crop": cells_NTHWC[shown],
        "score": np.array([crop.score for crop in crops], dtype=np.float32),
    }


def first_frame(path: Path, video: dict[str, Any]) -> NDArray[np.uint8]:
    """The first frame with every detection (yellow) and those that were tracked (green): (128, 128, 3), letterboxed."""
    from PIL import Image

    with Image.open(path) as file:
        scale = SIDE / max(file.size)
        width, height = (max(1, round(side * scale)) for side in file.size)
        small_HWC = np.asarray(file.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    picture_HWC = np.zeros((SIDE, SIDE, 3), np.uint8)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    picture_HWC[top : top + height, left : left + width] = small_HWC
    ratio_x, ratio_y = width / video["shape"][1], height / video["shape"][0]
    detected = [(one["box"], DETECTED) for one in video["detections"]]
    tracked = [(track["boxes"][0], TRACKED) for track in video["tracks"]]
    for (x0, y0, x1, y1), colour in detected + tracked:
        outline(picture_HWC, (x0 * ratio_x + left, y0 * ratio_y + top, x1 * ratio_x + left, y1 * ratio_y + top), colour)
    return picture_HWC


def tracked_clip(crop: Crop, material: Material) -> NDArray[np.uint8]:
    """The training clip of the crop's video with the tracked box in each frame: (T, H, W, 3)."""
    clip_THWC: NDArray[np.uint8] = material.clips.read([crop.row])[0]
    boxes, (height, width), size = crop.outcome["boxes"], crop.outcome["shape"], clip_THWC.shape[1]
    ratio = size / min(height, width)
    tall, wide = (max(size, round(side * ratio)) for side in (height, width))
    top, left = (tall - size) // 2, (wide - size) // 2
    frames, interval = crop.outcome["sampling"]
    for frame_HWC, number in zip(clip_THWC, choose(len(boxes), frames, interval, 1)[0], strict=True):
        x0, y0, x1, y1 = boxes[number]
        scaled = (
            x0 * wide / width - left,
            y0 * tall / height - top,
            x1 * wide / width - left,
            y1 * tall / height - top,
        )
        outline(frame_HWC, scaled, TRACKED)
    return clip_THWC


def outline(picture_HWC: NDArray[np.uint8], box: tuple[float, ...], colour: tuple[int, int, int]) -> None:
    """Draw a box of one pixel's width into a picture; what lies outside is left out."""
    height, width = picture_HWC.shape[:2]
    x0, x1 = (int(np.clip(round(x), 0, width - 1)) for x in (box[0], box[2] - 1))
    y0, y1 = (int(np.clip(round(y), 0, height - 1)) for y in (box[1], box[3] - 1))
    picture_HWC[y0, x0 : x1 + 1] = picture_HWC[y1, x0 : x1 + 1] = colour
    picture_HWC[y0 : y1 + 1, x0] = picture_HWC[y0 : y1 + 1, x1] = colour
