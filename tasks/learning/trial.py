"""Trials: networks trained on four fifths of the training clips and scored on the fifth that is left, for choices.

The fifth holds whole groups (UCF101's and the sprites' sources), and the test split is never looked at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vidistill.models import FRONT_NAMES, fronted, parted
from vidistill.storage.clips import Clips, ClipVideo
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.evaluate import StudentParameters, score
from vidistill.tasks.learning.training import Device, Order
from vidistill.tasks.learning.views import RealBatches, centre_clips
from vidistill.tasks.stage import Job, Work, stage
from vidistill.tasks.videos.drafts import HOLDOUT_FRACTION
from vidistill.tasks.videos.scan import Video
from vidistill.tasks.videos.splits import Entry, move_to_test

if TYPE_CHECKING:
    from torch import nn

TRIAL, FRONT = "trial.json", "front.json"


def fifths(videos: Sequence[ClipVideo | Video], classes: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows to train on and those that are held out: about a fifth of each class, in whole groups.

    Raises:
        RequestError: a class has one group, so that nothing of it can be held out.
    """
    entries = [Entry(path=video.path, label=classes[video.label], split="train", group=video.group) for video in videos]
    held_N = np.array([entry.split == "test" for entry in move_to_test(entries, HOLDOUT_FRACTION, seed=0)])
    return np.flatnonzero(~held_N), np.flatnonzero(held_N)


class TrialParameters(Parameters):
    network: str
    student: StudentParameters
    seed: int


@stage("trial", version=1, threads="one")
def trial(work: Work) -> None:
    parameters = TrialParameters.model_validate(work.job.parameters)
    clips, student = Clips(work.store, work.ref("clips")).preload(), parameters.student
    device = Device.of(work, student.precision)
    seed = training.role_seed(parameters.seed, streams.TRIAL_WEIGHTS)
    network = training.build_network(parameters.network, len(clips.classes), clips.shape_THWC, seed)
    tried = trained_on_four_fifths(network, clips, student, seed, device, work)
    (work.folder / TRIAL).write_text(json.dumps({"network": parameters.network, "top1": tried.top1}))
    work.record(seeds=[parameters.seed], counts={"clips": tried.clips, "held": tried.held}, **device.facts())


@dataclass(frozen=True)
class Tried:
    """Top-1 on the clips that were held out, how many these were, and how many others a network was trained on."""

    top1: float
    held: int
    clips: int


def trained_on_four_fifths(
    network: nn.Module, clips: Clips, student: StudentParameters, seed: int, device: Device, work: Work | None = None
) -> Tried:
    """Train a network in place on four fifths of the clips, and score it on the rest."""
    train_N, held_N = fifths(clips.table.videos, clips.classes)
    order = Order(len(train_N), student.optimiser.batch_size, seed)
    draw = RealBatches(clips, order, device, student, streams.STUDENT_VIEWS, train_N)
    training.train(network, draw, student.steps(len(train_N)), student.optimiser, device, seed=seed, work=work,
                   average=student.average)  # fmt: skip
    logits_NK = training.predict(network, centre_clips(clips, held_N, device), device)
    found = score(logits_NK, clips.labels_N[held_N])
    return Tried(found["top1"], len(held_N), len(train_N))


TRIED = StudentParameters(epochs=20)
"""How each front is tried: the small network, half a student's epochs, or its least steps where they are more."""


def front_jobs(clips: ArtifactRef) -> list[Job]:
    """A trial a front, and the decision last."""
    trials = [
        trial(TrialParameters(network=(name := fronted("r2plus1d_small", front)), student=TRIED.of(name), seed=0),
              {"clips": clips}, label=f"try {front}")
        for front in FRONT_NAMES
    ]  # fmt: skip
    return [*trials, decide({}, {"trials": [job.ref for job in trials]}, label="front")]


@stage("front", version=1)
def decide(work: Work) -> None:
    facts = [json.loads((work.store.folder(ref) / TRIAL).read_text()) for ref in work.refs("trials")]
    top1 = {parted(one["network"])[0]: one["top1"] for one in facts}
    (work.folder / FRONT).write_text(json.dumps({"front": max(top1, key=top1.__getitem__), "top1": top1}))


def decided(store: Store, ref: ArtifactRef) -> str:
    """The front that a `front` artifact chose."""
    return str(json.loads(Path(store.folder(ref) / FRONT).read_text())["front"])


def trials_of(store: Store, ref: ArtifactRef) -> dict[str, float]:
    """Top-1 by front of the trials that a `front` artifact rests on."""
    found: dict[str, float] = json.loads(Path(store.folder(ref) / FRONT).read_text())["top1"]
    return found
