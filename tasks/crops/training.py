"""The small detector's stage: trained on the boxes that the data record beside their videos, its mAP measured.

Legend: B pictures, H height, W width, P cells, D detections; boxes are (x0, y0, x1, y1) in pixels.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from vidistill.storage.errors import RequestError
from vidistill.storage.keys import file_digest
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.crops.detect import Box, Detection, Trained, to_picture
from vidistill.tasks.crops.track import overlap
from vidistill.tasks.learning import loop, streams
from vidistill.tasks.learning.training import generator, save_weights, seeded
from vidistill.tasks.stage import Job, Work, stage
from vidistill.tasks.videos.decode import check_there
from vidistill.tasks.videos.decoder import Decoder, VideoError, twice
from vidistill.tasks.videos.index import load_index
from vidistill.tasks.videos.layouts import data_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

BOXES = "boxes.json"
"""From a video's path to `{"boxes": [[x0, y0, x1, y1], …]}`, one a frame: what sprites record."""
WEIGHTS, FACTS = "weights.safetensors", "detector.json"
IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))

Labelled = list[tuple[NDArray[np.uint8], Box]]


class DetectorParameters(Parameters):
    """How the small detector is trained; nothing of it is published."""

    steps: int = Field(500, ge=10)
    batch_size: int = Field(32, ge=1)
    lr: float = Field(2e-3, gt=0, description="Peak of AdamW's one-cycle rate.")
    pictures: int = Field(1600, ge=1, description="Frames at most that are kept in memory, spread over the videos.")
    side: int = Field(64, ge=16, multiple_of=4, description="Side of the pictures that the network sees, squeezed.")
    seed: int = 0


class DetectorOf(DetectorParameters):
    """The detector of these boxes: the index does not hold them."""

    boxes: str = Field("", exclude_if=lambda boxes: not boxes, description="SHA-256 of a user's boxes.json.")


class VideoBoxes(BaseModel):
    boxes: list[Box]


def detector_job(index: ArtifactRef, parameters: DetectorParameters, root: Path | None) -> Job:
    """Trained on the boxes that are below `root`, or on those of sprites, which their index knows, where it is None."""
    boxes = file_digest(data_folder(root) / BOXES) if root else ""
    return detector(DetectorOf(**dict(parameters), boxes=boxes), {"index": index}, label="train a detector")


@stage("detector", version=2, threads="one")  # 2: frames are no darker than clips
def detector(work: Work) -> None:
    import torch

    torch.set_num_threads(work.threads)
    parameters = DetectorOf.model_validate(work.job.parameters)
    root = data_folder(Path(work.runtime.data))
    recorded = recorded_boxes(root, parameters.boxes)
    table = load_index(work.store, work.ref("index"))
    with Decoder(timeout_seconds=work.runtime.timeout_seconds) as decoder:
        paths = {split: [video.path for video in table.of_split(split)] for split in ("train", "test")}
        seen = labelled_frames(root, recorded, paths["train"], parameters.pictures, parameters.side, decoder)
        unseen = labelled_frames(root, recorded, paths["test"], parameters.pictures // 4, parameters.side, decoder)
    if not seen:
        raise RequestError(
            f"{root / BOXES} has boxes of no training video that can be read: it names videos by their paths below its "
            f"folder, such as {paths['train'][0]}."
        )
    network = fit(seen, parameters, work)
    found = Trained(network, parameters.side, confidence=0.05)
    facts = mean_average_precision([(found.detect(frame_HWC), box) for frame_HWC, box in unseen])
    save_weights(network, work.folder / WEIGHTS)
    (work.folder / FACTS).write_text(json.dumps(facts))
    work.record(counts={"pictures": len(seen), "test pictures": len(unseen)}, seeds=[parameters.seed], device="cpu",
                precision="fp32", threads=work.threads)  # fmt: skip


def recorded_boxes(root: Path, digest: str = "") -> dict[str, list[Box]]:
    """The boxes that a data folder records: a box a frame, by the videos' paths.

    Raises:
        RequestError: it records none, so that no detector can be trained; they are no boxes, or not those of `digest`.
    """
    file = root / BOXES
    if not file.is_file():
        raise RequestError(
            f"{root} has no {BOXES} to train a detector on: give optdistill.detector the path of weights, or hog "
            "for people."
        )
    if digest and file_digest(file) != digest:
        raise RequestError(f"{file} has changed since this run was asked for: ask again.")
    try:
        recorded = TypeAdapter(dict[str, VideoBoxes]).validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(
            f"{file} cannot be used, at {' › '.join(map(str, first['loc'])) or 'its beginning'} ({first['msg']}): it "
            'maps a video\'s path to {"boxes": [[x0, y0, x1, y1], …]}, in pixels, a box a frame.'
        ) from error
    return {name: one.boxes for name, one in recorded.items()}


def labelled_frames(
    root: Path, recorded: dict[str, list[Box]], paths: list[str], limit: int, side: int, decoder: Decoder
) -> Labelled:
    """At most `limit` frames with their boxes, `squeezed`, evenly spread over the videos and over their frames."""
    known = [path for path in sorted(paths) if recorded.get(path)]
    known = [known[i] for i in np.linspace(0, len(known) - 1, min(limit, len(known))).astype(int)]
    kept: Labelled = []
    for number, path in enumerate(known):
        boxes, share = recorded[path], max(1, limit // len(known))
        wanted = set(((np.arange(share) + number / len(known)) * len(boxes) / share).astype(int).tolist())
        try:
            kept += twice(partial(_squeezed_frames, decoder, root / path, boxes, wanted, side))
        except VideoError:
            check_there(root / path)
    return kept


def _squeezed_frames(decoder: Decoder, path: Path, boxes: list[Box], wanted: set[int], side: int) -> Labelled:
    frames = enumerate(decoder.frames(path))
    return [squeezed(frame_HWC, boxes[place], side) for place, frame_HWC in frames if place in wanted]


def squeezed(frame_HWC: NDArray[np.uint8], box: Box, side: int) -> tuple[NDArray[np.uint8], Box]:
    """A frame of any shape and its box, both as a picture of side×side pixels."""
    height, width = (side / long for long in frame_HWC.shape[:2])
    picture_HWC = (to_picture(frame_HWC, side)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    return picture_HWC, (box[0] * width, box[1] * height, box[2] * width, box[3] * height)


def fit(labelled: Labelled, parameters: DetectorParameters, work: Work | None = None) -> nn.Module:
    """Train the network on squeezed frames: flips both ways, random brightness, AdamW with one cycle."""
    import torch

    from vidistill.models.detector import STRIDE, Detector, detection_loss

    with seeded(parameters.seed):
        network = Detector().train()
    pictures_N3HW = (
        torch.from_numpy(np.stack([frame_HWC for frame_HWC, _ in labelled])).permute(0, 3, 1, 2).contiguous()
    )
    boxes_N4 = torch.tensor([box for _, box in labelled])
    adam = torch.optim.AdamW(network.parameters(), lr=parameters.lr, weight_decay=1e-4)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, parameters.lr, parameters.steps, pct_start=0.2)

    def step(number: int) -> float:
        random = generator(parameters.seed, number, streams.DETECTOR_BATCH)
        rows = torch.from_numpy(random.integers(len(boxes_N4), size=parameters.batch_size))
        x_BCHW, truth_B4 = _augmented(pictures_N3HW[rows], boxes_N4[rows], random)
        logits_BP, boxes_BP4 = network(x_BCHW)
        loss = loop.descend(adam, detection_loss(logits_BP, boxes_BP4, truth_B4, columns=x_BCHW.shape[3] // STRIDE))
        cycle.step()
        return loss

    loop.run(step, parameters.steps, {"network": network, "optimiser": adam, "cycle": cycle}, work)
    return network.eval()


def _augmented(pictures_B3HW: Tensor, boxes_B4: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A batch at another brightness, mirrored across either axis half of the time."""
    x_BCHW = pictures_B3HW.float() / 255 * float(random.uniform(0.8, 1.2))
    side, boxes_B4 = x_BCHW.shape[-1], boxes_B4.clone()
    for axis, first in ((-1, 0), (-2, 1)):
        if random.random() < 0.5:
            x_BCHW = x_BCHW.flip(axis)
            boxes_B4[:, [first, first + 2]] = side - boxes_B4[:, [first + 2, first]]
    return x_BCHW, boxes_B4


def mean_average_precision(pictures: list[tuple[list[Detection], Box]]) -> dict[str, Any]:
    """AP at an IoU of 0.5, and its mean over 0.5, 0.55 … 0.95, for one true box a picture.

    Precision is taken at every recall that is reached, as the best at that recall or above (PASCAL VOC since 2010).
    """
    precisions = [average_precision(pictures, threshold) for threshold in IOUS]
    return {"map50": precisions[0], "map": float(np.mean(precisions)), "pictures": len(pictures)}


def average_precision(pictures: list[tuple[list[Detection], Box]], threshold: float) -> float:
    """The area under precision over recall; of several detections of one box, the first is right."""
    judged: list[tuple[float, bool]] = []
    for detections, truth in pictures:
        taken = False
        for one in sorted(detections, key=lambda one: -one.confidence):
            right = not taken and overlap(one.box, truth) >= threshold
            taken = taken or right
            judged.append((one.confidence, right))
    right_D = np.array([right for _, right in sorted(judged, key=lambda one: -one[0])], dtype=float)
    precision_D = np.cumsum(right_D) / np.arange(1, len(right_D) + 1)
    best_D = np.maximum.accumulate(precision_D[::-1])[::-1]
    return float((best_D * right_D).sum() / max(1, len(pictures)))


def load_detector(folder: Path, parameters: DetectorParameters, confidence: float) -> Trained:
    """A trained detector from its artifact's folder."""
    from safetensors.torch import load_file

    from vidistill.models.detector import Detector

    with seeded(0):  # its weights are loaded, and those that others draw meanwhile are their seeds'
        network = Detector()
    network.load_state_dict(load_file(folder / WEIGHTS))
    return Trained(network, parameters.side, confidence)
