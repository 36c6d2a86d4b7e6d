"""Motion: the part of a picture that moves against the rest, frame by frame, where no detector knows the objects.

Not S2's. It needs neither weights nor boxes, and follows nothing: every frame is looked at anew. On sprites of 64
pixels its mean IoU with the target is 0.59, where CSRT from the true first box has 0.49.

Legend: H height, W width, N frames. A box is (x0, y0, x1, y1) in pixels of the frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vidistill.tasks.crops.detect import Box, opencv
from vidistill.tasks.crops.track import Track

SIDE = 64  # pixels: the short side of what is looked at
BLUR = 2.0  # pixels of it: what moves this near to each other is one object
PAN = 3  # pixels of it: the camera's largest way from one frame to the next
STRONG = 1.0  # standard deviations above the mean change of a frame

Grey = NDArray[np.float32]


def moving(frames: Iterable[NDArray[np.uint8]], least: float) -> Track | None:
    """The box of the largest change in each frame; memory holds two frames.

    Args:
        frames: of a video, RGB (H, W, 3).
        least: share of a frame's change that its box has to hold; a frame without such a box is lost, and has the box
            of the frame before it.

    Returns:
        A track, whose confidence is the mean share; None where no frame has such a box.
    """
    seen = ((small(frame_HWC), SIDE / min(frame_HWC.shape[:2])) for frame_HWC in frames)
    found = [
        (_scaled(box, scale), share)
        for (before_HW, _), (now_HW, scale) in itertools.pairwise(seen)
        for box, share in [largest(change_HW(before_HW, now_HW))]
    ]
    found = found[:1] + found  # the first frame's change is that to the second
    sure = [box for box, share in found if share >= least]
    if not sure:
        return None
    boxes, last = [], sure[0]
    for box, share in found:
        last = box if share >= least else last
        boxes.append(last)
    return Track(boxes, len(found) - len(sure), float(np.mean([share for _, share in found])))


def small(frame_HWC: NDArray[np.uint8]) -> Grey:
    cv2, scale = opencv(), SIDE / min(frame_HWC.shape[:2])
    grey_HW = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY)
    scaled_HW: Grey = cv2.resize(grey_HW, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.float32)
    return scaled_HW


def change_HW(before_HW: Grey, now_HW: Grey) -> Grey:
    """How much each pixel differs from the frame before, once that is shifted as most of the picture has been.

    Of whole pixels, that shift is taken by which the median pixel changes least: an object, however bright, is less
    than half of the picture.
    """
    if before_HW.shape != now_HW.shape:
        return np.zeros_like(now_HW)
    height, width = now_HW.shape
    ways = sorted(itertools.product(range(-PAN, PAN + 1), repeat=2), key=lambda way: way[0] ** 2 + way[1] ** 2)
    inner_HW = now_HW[PAN:-PAN, PAN:-PAN]
    shifted = (before_HW[PAN + y : height - PAN + y, PAN + x : width - PAN + x] for y, x in ways)
    least_HW = min((np.abs(inner_HW - one_HW) for one_HW in shifted), key=np.median)
    blurred_HW: Grey = opencv().GaussianBlur(np.pad(least_HW, PAN, mode="edge"), (0, 0), BLUR)
    return blurred_HW


def largest(change_HW: Grey) -> tuple[Box, float]:
    """The box of the connected part with the most change among what changes strongly, and its share of all change."""
    strong_HW = change_HW > change_HW.mean() + STRONG * change_HW.std()
    _, part_HW, boxes, _ = opencv().connectedComponentsWithStats(strong_HW.astype(np.uint8), connectivity=8)
    held = np.bincount(part_HW.ravel(), weights=change_HW.ravel(), minlength=len(boxes))
    held[0] = 0.0  # what does not change strongly
    most = int(held.argmax())
    x, y, width, height = (float(side) for side in boxes[most][:4])
    return (x, y, x + width, y + height), float(held[most] / max(change_HW.sum(), 1e-6))


def _scaled(box: Box, scale: float) -> Box:
    x0, y0, x1, y1 = box
    return (x0 / scale, y0 / scale, x1 / scale, y1 / scale)
