"""Few feature vectors for each action of a long video: means, frames at random, a coreset, and TSGF (paper S3, App. F).

S3 prints one table of 50Salads (Table 10: Mean, Coreset, Ours) and says neither how large the sets are, nor what Mean
and Coreset are, nor which network is trained on what labels. Our reading: a set keeps every training video as the
order and the lengths of its segments, with `points` vectors a segment (sets.py). Mean are the means of its equal
parts, Coreset are frames chosen by herding (Welling 2009); as everywhere, Random stands beside them. The network is
MS-TCN (learn.py), labels are hard, or soft, the teacher's, as in Algorithm 1; the paper's row is soft, its baselines'
labels are not stated.

Legend: M points, T frames of a segment, D features, P points a segment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.coreset.herding import herd
from vidistill.tasks.learning import streams
from vidistill.tasks.learning.training import Device, generator
from vidistill.tasks.segment.learn import load_segment_teacher, logits_of, softmax
from vidistill.tasks.segment.sequences import Sequences
from vidistill.tasks.segment.sets import SegmentSet, parts
from vidistill.tasks.segment.tsgf import SegmentTSGFParameters, distil_sequences
from vidistill.tasks.stage import Job, Work, stage

Pick = Callable[[NDArray[np.float32], int, np.random.Generator], NDArray[np.floating]]
"""From the frames of a segment (T, D) to so many vectors (P, D), in the order of time."""


def means(frames_TD: NDArray[np.float32], points: int, random: np.random.Generator) -> NDArray[np.floating]:  # noqa: ARG001
    """The mean of each of `points` equal parts."""
    part_T = parts(len(frames_TD), points)
    return np.stack([frames_TD[part_T == part].mean(0, dtype=np.float64) for part in range(points)])


def at_random(frames_TD: NDArray[np.float32], points: int, random: np.random.Generator) -> NDArray[np.floating]:
    """Frames drawn uniformly without replacement."""
    return frames_TD[np.sort(random.permutation(len(frames_TD))[:points])]


def herded(frames_TD: NDArray[np.float32], points: int, random: np.random.Generator) -> NDArray[np.floating]:  # noqa: ARG001
    """Frames whose mean is nearest to that of all; of one it is the frame nearest to the mean."""
    return frames_TD[np.sort(herd(frames_TD.astype(np.float64), points))]


PICKS: dict[str, Pick] = {"mean": means, "random": at_random, "herding": herded}
DRAWN = ("random", "tsgf")
"""Methods whose sets depend on the seed."""
METHODS = (*PICKS, "tsgf")


class SegmentSetParameters(Parameters):
    method: str
    points: int = Field(ge=1)
    seed: int
    tsgf: SegmentTSGFParameters | None = Field(None, exclude_if=lambda tsgf: tsgf is None)


def segment_set_job(
    sequences: ArtifactRef, teacher: ArtifactRef, method: str, points: int, seed: int, tsgf: SegmentTSGFParameters
) -> Job:
    """A set: only those that are drawn know their seed, and only TSGF the teacher."""
    learnt = method == "tsgf"
    parameters = SegmentSetParameters(
        method=method, points=points, seed=seed if method in DRAWN else 0, tsgf=tsgf if learnt else None
    )
    inputs = {"sequences": sequences} | ({"teacher": teacher} if learnt else {})
    return segment_set(parameters, inputs, label=f"{method} {points} points seed {parameters.seed}")


@stage("segment-set", version=1, threads="one")
def segment_set(work: Work) -> None:
    parameters = SegmentSetParameters.model_validate(work.job.parameters)
    sequences = Sequences(work.store, work.ref("sequences"))
    made = chosen(sequences, parameters.points, PICKS.get(parameters.method, at_random), parameters.seed)
    facts: dict[str, object] = {}
    if parameters.tsgf is not None:
        device = Device.of(work, "fp32")
        teacher = load_segment_teacher(work.store, work.ref("teacher"), sequences, device)
        made, facts = distil_sequences(made, teacher, sequences, parameters.tsgf, device, work)
        facts |= device.facts()
    made.save(work.folder)
    work.record(seeds=[parameters.seed], counts={"points": len(made.points_MD)}, **facts)


def chosen(sequences: Sequences, points: int, pick: Pick, seed: int) -> SegmentSet:
    """The points that `pick` makes of each segment, in standard deviations, in the units of the files again."""
    made, points_MD = SegmentSet.outline(sequences, points), []
    for video, row in enumerate(sequences.rows("train")):
        x_TD, random, first = sequences.standardised(row), generator(seed, video, streams.CORESET), 0
        for segment in np.flatnonzero(made.videos_S == video):
            frames = int(made.frames_S[segment])
            points_MD.append(pick(x_TD[first : first + frames], int(made.points_S[segment]), random))
            first += frames
    return made.with_points(np.concatenate(points_MD) * sequences.std_D + sequences.mean_D)


def relabel_job(made: ArtifactRef, sequences: ArtifactRef, teacher: ArtifactRef, label: str) -> Job:
    inputs = {"set": made, "sequences": sequences, "teacher": teacher}
    return relabel_segments({}, inputs, label=f"labels of {label}")


@stage("segment-relabelled", version=1, threads="one")
def relabel_segments(work: Work) -> None:
    """Algorithm 1's last line, y_S = φ_T(x_S): of each point the mean probabilities of the frames that show it."""
    sequences = Sequences(work.store, work.ref("sequences"))
    device = Device.of(work, "fp32")
    teacher = load_segment_teacher(work.store, work.ref("teacher"), sequences, device)
    made = SegmentSet.load(work.input("set"))
    soft_MK = np.zeros((len(made.points_MD), len(sequences.classes)), np.float32)
    for video in range(len(made.names)):
        shown_T = made.shown(video)
        logits_TK = logits_of(teacher, sequences.standard(made.points_MD[shown_T]), device)
        np.add.at(soft_MK, shown_T, softmax(logits_TK) / np.bincount(shown_T)[shown_T, None])
    replace(made, soft_MK=soft_MK).save(work.folder)
    work.record(counts={"points": len(made.points_MD)}, **device.facts())
