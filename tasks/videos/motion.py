"""Motion: how much moves in the clips of each class, by which static and dynamic classes are told apart.

Shapes: N clips, T frames, H height, W width.
"""

from __future__ import annotations

import json

import numpy as np
from pydantic import Field

from vidistill.storage.clips import Clips
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.stage import Job, Work, stage

MOTION = "motion.json"


class MotionParameters(Parameters):
    clips: int = Field(20, ge=1, description="Centre clips of a class that are looked at, in path order.")


def motion_job(clips: ArtifactRef) -> Job:
    return motion(MotionParameters(), {"clips": clips}, label="motion of each class")


@stage("motion", version=1)
def motion(work: Work) -> None:
    clips, own = Clips(work.store, work.ref("clips")), MotionParameters.model_validate(work.job.parameters)
    means = []
    for label in range(len(clips.classes)):
        clips_NTHWC = clips.read(clips.rows_of(label)[: own.clips]).astype(np.int16)
        means.append(float(np.abs(np.diff(clips_NTHWC, axis=1)).mean()) if clips_NTHWC.shape[1] > 1 else 0.0)
        work.progress(label + 1, len(clips.classes))
    (work.folder / MOTION).write_text(json.dumps(dict(zip(clips.classes, means, strict=True)), indent=1))


def motion_of(store: Store, ref: ArtifactRef) -> list[float]:
    """The mean difference between neighbouring frames, in levels of 255, of each class."""
    found: dict[str, float] = json.loads((store.folder(ref) / MOTION).read_text())
    return list(found.values())
