"""OptDistill's set beside the arithmetic of S2, §5.1: which crops make a mosaic, at what speed, and what is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import zarr
from PIL import Image

from vidistill.tasks.crops.cutting import CROPS
from vidistill.tasks.crops.tracking import FIRST_FRAMES, TRACKS
from vidistill.tasks.methods import find_method

LABELS = (0, 1) * 8
SIDE = tiny.SIZE  # of a region; a mosaic has 2×2


class Cropped(tiny.Tiny):
    """Training clips with a crop each, of its own length and score, as the stages keep them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(tiny.tiny_clips(folder, labels=LABELS))
        random = np.random.default_rng(8)
        self.crops = [random.integers(0, 256, (int(random.integers(1, 12)), SIDE, SIDE, 3), dtype=np.uint8)
                      for _ in LABELS]  # fmt: skip
        self.scores = [round(float(score), 3) for score in random.random(len(LABELS))]
        self.paths = [video.path for video in self.clips.table.videos]
        (folder / "tracks" / FIRST_FRAMES).mkdir(parents=True)
        outcomes, tracks = [], []
        for row, crop in enumerate(self.crops):
            zarr.create_array(folder / "crops", name=f"crop_{row:02d}", data=crop)
            boxes = [[0, 0, 4, 4]] * 16
            outcomes.append(
                {"path": self.paths[row], "crop": f"crop_{row:02d}", "reason": "", "border": False, "shape": [8, 8],
                 "score": self.scores[row], "scores": [self.scores[row]], "length": len(crop), "whole": False,
                 "boxes": boxes, "sampling": [tiny.FRAMES, 1]}
            )  # fmt: skip
            tracks.append({"path": self.paths[row], "detections": [], "tracks": [{"boxes": boxes}], "shape": [8, 8]})
            Image.fromarray(crop[0]).save(folder / "tracks" / FIRST_FRAMES / f"{row:02d}.jpg")
        for name, file, found in (("crops", CROPS, outcomes), ("tracks", TRACKS, tracks)):
            (folder / name / file).write_text(json.dumps(found))
            self.folders[name] = [folder / name]

    def groups(self, label: int, count: int, top_k: int) -> list[list[int]]:
        """The TOP_K by score, neighbours by length in fours, and of the fours those that score highest."""
        own = [row for row, other in enumerate(LABELS) if other == label]
        best = sorted(own, key=lambda row: -self.scores[row])[:top_k]
        ordered = sorted(best, key=lambda row: (len(self.crops[row]), self.paths[row]))
        fours = [ordered[i : i + 4] for i in range(0, len(ordered) - 3, 4)]
        return sorted(fours, key=lambda rows: -sum(self.scores[row] for row in rows))[:count]


def at_one_speed(crops: list[np.ndarray]) -> list[np.ndarray]:
    """Frames left out evenly of the longer ones, shown again of those shorter than a clip; the middle T of them all."""
    length = min(max(len(crop), tiny.FRAMES) for crop in crops)
    made = []
    for crop in crops:
        at = [round(t * (len(crop) - 1) / (length - 1)) for t in range(length)]
        first = (length - tiny.FRAMES) // 2
        made.append(crop[at][first : first + tiny.FRAMES])
    return made


def distil(given: Cropped, ipc: int, **options: Any) -> Any:
    found = find_method("optdistill").method
    asked = {"grid": 2, "height": 2 * SIDE, "width": 2 * SIDE, "precision": "fp32"}
    return found(found.Parameters(**asked | options)).distil(given.material(ipc))


@pytest.mark.parametrize(("ipc", "top_k"), [(1, 8), (1, 4), (2, 8)])
def test_a_set_is_the_mosaics_of_the_best_crops(tmp_path: Path, ipc: int, top_k: int) -> None:
    given = Cropped(tmp_path)
    made = distil(given, ipc, top_k=top_k)
    chosen = [rows for label in (0, 1) for rows in given.groups(label, ipc, top_k)]
    assert made.sources == tuple(given.paths[row] for rows in chosen for row in rows)
    assert made.labels_N.tolist() == [0] * 4 * ipc + [1] * 4 * ipc
    regions = [at_one_speed([given.crops[row] for row in rows]) for rows in chosen]
    np.testing.assert_array_equal(made.clips_NTHWC, np.concatenate([np.stack(own) for own in regions]))
    for mosaic, (a, b, c, d) in zip(made.stored["mosaics"], regions, strict=True):
        rows = np.concatenate([a, b], axis=2), np.concatenate([c, d], axis=2)
        np.testing.assert_array_equal(mosaic, np.concatenate(rows, axis=1))
    np.testing.assert_array_equal(
        made.extras["score"], np.float32([given.scores[row] for rows in chosen for row in rows])
    )


def test_whole_tiles_learn_the_mean_of_the_teachers_labels_for_their_regions(tmp_path: Path) -> None:
    given = Cropped(tmp_path)
    made = distil(given, 1, top_k=8, train_on="tiles")
    for place, label in enumerate((0, 1)):
        (rows,) = given.groups(label, 1, 8)
        regions = np.stack(at_one_speed([given.crops[row] for row in rows]))
        x_NCTHW = ((regions / 255 - tiny.MEAN) / tiny.STD).transpose(0, 4, 1, 2, 3)
        expected_K = tiny.tiny_teacher().double()(tiny.torch.from_numpy(x_NCTHW)).softmax(1).mean(0)
        np.testing.assert_allclose(np.exp(made.logits_NK[place]), expected_K, atol=1e-5)
        assert made.sources[place] == " + ".join(given.paths[row] for row in rows)
