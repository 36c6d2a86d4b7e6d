"""Export: a distilled set as video files, an H.264 file a clip (or mosaic), beside its labels and the bytes of both.

Legend: N clips, T frames, H height, W width; clips are uint8 RGB.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.distilled import DistilledSet
from vidistill.tasks.videos.sprites import write_video

EXPORT, LOGITS = "export.json", "logits.npy"


def export_set(folder: Path, out: Path, fps: int) -> dict[str, Any]:
    """Write `out/<class>/<number>.mp4` for each clip, `export.json`, and `logits.npy` where the set has soft labels.

    Of a set of mosaics the mosaics are written; `clips_a_file` says how many clips a student cuts from each.

    Args:
        folder: a set's artifact.
        out: made where it is missing.
        fps: frames a second of the files.

    Returns:
        What `export.json` holds: files with their labels and sources, and bytes: as stored, as video.
    """
    made = DistilledSet.load(folder)
    share = made.clips_an_instance
    files, written = [], []
    for number, clip_THWC in enumerate(made.stored.get("mosaics", made.clips_NTHWC)):
        label = int(made.labels_N[number * share])
        path = out / made.classes[label] / f"{number:05d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, even(clip_THWC), fps)
        sources = made.sources[number * share : (number + 1) * share]
        files.append({"file": str(path.relative_to(out)), "label": label, "sources": list(sources)})
        written.append(path)
    if made.logits_NK is not None:
        np.save(out / LOGITS, made.logits_NK)
        written.append(out / LOGITS)
    facts = {
        "classes": list(made.classes),
        "clips_a_file": share,
        "bytes": {"stored": DistilledSet.training_bytes(folder), "video": sum(path.stat().st_size for path in written)},
        "files": files,
    }
    (out / EXPORT).write_text(json.dumps(facts, indent=1))
    return facts


def even(clip_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """H.264 takes even sides: the last row or column of an odd one is doubled."""
    height, width = clip_THWC.shape[1:3]
    padded: NDArray[np.uint8] = np.pad(clip_THWC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return padded
