"""Detect: where the objects are in a frame (S2, §5.1, step 1), by one interface over several detectors.

Legend: H height, W width, C = 3 (RGB). A box is (x0, y0, x1, y1) in pixels of the frame, x1 and y1 exclusive, floats.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from vidistill.storage.errors import RequestError

if TYPE_CHECKING:
    import torch
    from torch import nn

Box = tuple[float, float, float, float]
Rule = Literal["paper", "code"]
CANDIDATES: dict[Rule, int] = {"paper": 3, "code": 2}
SMALLEST_SIDE = 4.0  # pixels: a smaller box holds nothing to track
TRAINED, HOG, MOTION = "trained", "hog", "motion"
NOTHING = "nothing"  # is looked for, where nothing is to be cut out
TARGET = "target"
HOG_SIDE = 480  # HOG's window is 64 by 128: people in frames of 128 pixels are seen once these are enlarged


@dataclass(frozen=True)
class Detection:
    box: Box
    label: str
    confidence: float


class Detector(Protocol):
    """Finds labelled boxes in a frame.

    Attributes:
        labels: all labels that it knows.
        wanted: those that are wanted where the request names none.
    """

    labels: tuple[str, ...]
    wanted: tuple[str, ...]

    def detect(self, frame_HWC: NDArray[np.uint8]) -> list[Detection]:
        """The objects of an RGB frame, the most confident first."""
        ...


class People:
    """OpenCV's own HOG and linear SVM, on frames enlarged to a short side of 480 pixels. It knows upright people."""

    labels: tuple[str, ...] = ("person",)
    wanted: tuple[str, ...] = ("person",)

    def __init__(self, confidence: float) -> None:
        cv2 = opencv()
        self._hog = cv2.HOGDescriptor()
        self._hog.setSVMDetector(cv2.HOGDescriptor_getDefaultPeopleDetector())
        self._confidence = confidence

    def detect(self, frame_HWC: NDArray[np.uint8]) -> list[Detection]:
        cv2 = opencv()
        scale = max(1.0, HOG_SIDE / min(frame_HWC.shape[:2]))
        large_HWC = cv2.resize(frame_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        found, weights = self._hog.detectMultiScale(large_HWC, winStride=(8, 8), padding=(16, 16), scale=1.05)
        detections = [
            Detection((x / scale, y / scale, (x + w) / scale, (y + h) / scale), "person", float(weight))
            for (x, y, w, h), weight in zip(found, np.ravel(weights), strict=True)
            if weight >= self._confidence
        ]
        return sorted(detections, key=lambda one: -one.confidence)


class Yolo:
    """Any detection model of ultralytics, by name or path; no telemetry, no update check, no installing by itself."""

    def __init__(self, weights: str, confidence: float, device: torch.device) -> None:
        self._model = load_yolo(weights)
        self._confidence, self._device = confidence, device
        self.labels: tuple[str, ...] = tuple(self._model.names.values())
        self.wanted: tuple[str, ...] = ("person",)

    def detect(self, frame_HWC: NDArray[np.uint8]) -> list[Detection]:
        import torch

        bgr_HWC = np.ascontiguousarray(frame_HWC[..., ::-1])  # what ultralytics expects of an array
        threads = torch.get_num_threads()
        (result,) = self._model.predict(bgr_HWC, conf=self._confidence, device=self._device, verbose=False)
        torch.set_num_threads(threads)  # ultralytics takes all but one core for itself
        rows = result.boxes.data.tolist()
        found = [Detection(tuple(row[:4]), self._model.names[int(row[5])], row[4]) for row in rows]
        return sorted(found, key=lambda one: -one.confidence)


def load_yolo(weights: str) -> Any:
    """An ultralytics model.

    Raises:
        RequestError: ultralytics is not installed, or there are no such weights.
    """
    yolo = ultralytics_yolo()
    try:
        return yolo(_kept(weights), task="detect")
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise RequestError(
            f"The detector's weights {weights!r} cannot be had ({why}): give optdistill.detector the path of a local "
            f"file, {HOG!r} for people, {MOTION!r} for what moves, or {TRAINED!r} for data with boxes.json."
        ) from error


def _kept(weights: str) -> str:
    """Where weights given by name alone are kept once they are fetched: not in whatever folder this runs in."""
    if Path(weights).exists() or Path(weights).name != weights:
        return weights
    folder = user_cache_path("vidistill") / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / weights)


def ultralytics_yolo() -> Any:
    """The class `YOLO`, imported so that it reports nothing, looks for no updates and installs nothing by itself.

    Raises:
        RequestError: it is not installed.
    """
    quiet = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
    os.environ.update(quiet)  # read once, when ultralytics is imported; weights by name are fetched all the same
    try:
        from ultralytics.models import YOLO
        from ultralytics.utils import SETTINGS
    except ImportError as error:
        raise _not_imported("YOLO", "ultralytics (AGPL-3.0)", error) from error
    dict.update(SETTINGS, sync=False)  # for this process; the user's own settings file stays as it is
    return YOLO


class Trained:
    """The small network of `models/detector.py`, after its stage has trained it on the data's recorded boxes."""

    labels: tuple[str, ...] = (TARGET,)
    wanted: tuple[str, ...] = (TARGET,)

    def __init__(self, network: nn.Module, side: int, confidence: float) -> None:
        self._network, self._side, self._confidence = network.eval(), side, confidence

    def detect(self, frame_HWC: NDArray[np.uint8]) -> list[Detection]:
        import torch
        from torchvision.ops import nms

        height, width = (side / self._side for side in frame_HWC.shape[:2])
        with torch.inference_mode():
            logits_BP, boxes_BP4 = self._network(to_picture(frame_HWC, self._side))
            confidence_P = logits_BP[0].sigmoid()
            likely = confidence_P >= self._confidence
            boxes_D4, confidence_D = boxes_BP4[0][likely], confidence_P[likely]
            kept = nms(boxes_D4, confidence_D, 0.5)
        return [
            Detection((x0 * width, y0 * height, x1 * width, y1 * height), TARGET, score)
            for (x0, y0, x1, y1), score in zip(boxes_D4[kept].tolist(), confidence_D[kept].tolist(), strict=True)
        ]


def to_picture(frame_HWC: NDArray[np.uint8], side: int) -> Any:
    """A frame as the network is trained on it and takes it: float (1, 3, side, side) in 0…1, squeezed to a square."""
    import torch

    x_1CHW = torch.from_numpy(np.ascontiguousarray(frame_HWC)).permute(2, 0, 1)[None].float() / 255
    if x_1CHW.shape[2:] == (side, side):
        return x_1CHW
    return torch.nn.functional.interpolate(x_1CHW, (side, side), mode="bilinear", antialias=True)


def opencv() -> Any:
    """OpenCV with CSRT, on one thread: videos are what runs side by side.

    Raises:
        RequestError: it is missing, or has no CSRT.
    """
    try:
        import cv2
    except ImportError as error:
        raise _not_imported("optdistill", "OpenCV", error) from error
    if not hasattr(cv2, "TrackerCSRT_create"):
        raise RequestError(f"This cv2 {cv2.__version__} has no CSRT: `vidistill doctor` says how to mend it.")
    cv2.setNumThreads(1)
    return cv2


def _not_imported(what: str, needs: str, error: ImportError) -> RequestError:
    """Of a package that is missing, or of a library of the system that it misses (libGL.so.1, in a slim image)."""
    if isinstance(error, ModuleNotFoundError):
        return RequestError(f"{what} needs {needs}: pip install 'vidistill[crops]'.")
    return RequestError(
        f"{what} needs {needs}, which is installed and cannot be loaded ({error}): install what it misses."
    )


def choose_boxes(
    found: list[Detection], wanted: tuple[str, ...], rule: Rule, random: np.random.Generator, shape_HW: tuple[int, ...]
) -> list[Detection]:
    """Which detections are tracked, each cut to the picture; those that are then nearly nothing are left out.

    `paper` (§5.1): those of the wanted labels, three at random. `code`: the first two of any label.
    """
    inside = [Detection(clipped(one.box, shape_HW), one.label, one.confidence) for one in found]
    solid = [one for one in inside if min(one.box[2] - one.box[0], one.box[3] - one.box[1]) >= SMALLEST_SIDE]
    if rule == "code":
        return solid[: CANDIDATES["code"]]
    named = [one for one in solid if one.label in wanted]
    count = min(CANDIDATES["paper"], len(named))
    return [named[place] for place in sorted(random.choice(len(named), count, replace=False))] if named else []


def clipped(box: Box, shape_HW: tuple[int, ...]) -> Box:
    """The part of a box that lies within a picture."""
    height, width = shape_HW[:2]
    x0, x1 = (min(max(x, 0.0), float(width)) for x in (box[0], box[2]))
    y0, y1 = (min(max(y, 0.0), float(height)) for y in (box[1], box[3]))
    return (x0, y0, x1, y1)


def check_labels(wanted: tuple[str, ...], known: tuple[str, ...], detector: str) -> None:
    """Raise where the detector does not know a label that is wanted.

    Raises:
        RequestError: naming the label and those that there are.
    """
    for label in wanted:
        if label not in known:
            shown = ", ".join(known[:20]) + (" …" if len(known) > 20 else "")
            raise RequestError(f"The detector {detector} knows no label {label!r}: it knows {shown}.")
