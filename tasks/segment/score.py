"""A student of a set of sequences, or of all training videos, and what it scores on the test videos.

Students are MS-TCN as published, without batch norm. All take the same steps: a video a step, every video once an
epoch.

Legend: T frames, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.training import Device
from vidistill.tasks.segment.learn import TCNParameters, Video, build, logits_of, one_hot, real_video, train
from vidistill.tasks.segment.metrics import score_videos, segments_of
from vidistill.tasks.segment.sequences import Sequences
from vidistill.tasks.segment.sets import ARRAYS, SegmentSet
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from torch import nn

SCORE = "score.json"
BACKGROUND = "background"
"""The class whose frames make no segments, where a data set has it (GTEA), as in the published evaluation."""
SEGMENT_BYTES = 16
"""A segment's class, length, points and video."""


class SegmentScoreParameters(Parameters):
    tcn: TCNParameters
    seed: int


class SegmentScoreTable(Parameters):
    """What a row of the report is made of, a seed of it."""

    accuracy: float
    edit: float
    f1: tuple[float, ...]
    loss: tuple[float, ...]
    bytes: int
    test_frames: int


def segment_score_job(
    made: ArtifactRef | None, sequences: ArtifactRef, tcn: TCNParameters, seed: int, label: str
) -> Job:
    """A student of a set; of all training videos where there is none."""
    inputs = {"sequences": sequences} | ({"set": made} if made else {})
    return segment_score(SegmentScoreParameters(tcn=tcn, seed=seed), inputs, label=f"student of {label} seed {seed}")


@stage("segment-score", version=2, threads="one")  # 2: bytes count how features are normalised
def segment_score(work: Work) -> None:
    parameters = SegmentScoreParameters.model_validate(work.job.parameters)
    sequences = Sequences(work.store, work.ref("sequences"))
    device = Device.of(work, "fp32")
    seed = training.role_seed(parameters.seed, streams.STUDENT_WEIGHTS)
    rows, classes = sequences.rows("train"), len(sequences.classes)
    network = build(parameters.tcn, sequences.dimensions, classes, seed, norm=False)
    video: Callable[[int], Video]
    if work.refs("set"):
        size = (work.input("set") / ARRAYS).stat().st_size + 8 * sequences.dimensions  # each one's mean and deviation
        video = partial(shown_video, SegmentSet.load(work.input("set")), sequences)
    else:
        size, video = _size_of_all(sequences), lambda n: real_video(sequences, rows[n])
    curve = train(network, video, len(rows), parameters.tcn, device, seed, work)
    tests = sequences.rows("test")
    found = [predicted(network.eval(), sequences, row, device) for row in tests]
    true = [sequences.all_labels(row) for row in tests]
    background = [number for number, name in enumerate(sequences.classes) if name == BACKGROUND]
    scores = asdict(score_videos(found, true, background))
    table = SegmentScoreTable(**scores, loss=tuple(curve.loss), bytes=size, test_frames=sum(map(len, true)))
    (work.folder / SCORE).write_text(table.model_dump_json(indent=1), encoding="utf-8")
    work.record(seeds=[parameters.seed], counts={"videos": len(rows), "test": len(tests)}, **device.facts())


def shown_video(made: SegmentSet, sequences: Sequences, video: int) -> Video:
    """A video of a set as a network sees it: of each frame the point that it shows, and that point's label."""
    shown_T = made.shown(video)
    x_TD = sequences.standard(made.points_MD[shown_T])
    if made.soft_MK is not None:
        return x_TD, made.soft_MK[shown_T]
    return x_TD, one_hot(made.labels(video), len(sequences.classes))


def predicted(network: nn.Module, sequences: Sequences, row: int, device: Device) -> NDArray[np.int64]:
    """The class of every frame of a video; those that were left out by sampling are as the one before."""
    named_T = logits_of(network, sequences.standardised(row), device).argmax(1)
    return np.repeat(named_T, sequences.sample_rate)[: len(sequences.all_labels(row))]


def _size_of_all(sequences: Sequences) -> int:
    """Bytes of the sampled training features as float32, with their segments."""
    rows = sequences.rows("train")
    segments = sum(len(segments_of(sequences.labels(row))) for row in rows)
    return sum(sequences.features(row).nbytes for row in rows) + SEGMENT_BYTES * segments
