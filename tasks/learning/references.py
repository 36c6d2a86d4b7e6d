"""References: what the teacher and the experts, trained on the real clips, reach on the test split themselves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from vidistill.storage.clips import Clips
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import experts, loop, training
from vidistill.tasks.learning.evaluate import Score, flops_a_clip, predict_test, score, write_score
from vidistill.tasks.learning.experts import ExpertJobParameters, Experts
from vidistill.tasks.learning.teacher import TeacherParameters, load_teacher
from vidistill.tasks.learning.training import Device, Order
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from torch import nn


def teacher_score_job(teacher: ArtifactRef, train: ArtifactRef, test: ArtifactRef) -> Job:
    inputs = {"teacher": teacher, "train": train, "test": test}
    return teacher_score({}, inputs, label="score teacher")


def expert_score_job(expert: ArtifactRef, train: ArtifactRef, test: ArtifactRef, number: int) -> Job:
    inputs = {"expert": expert, "train": train, "test": test}
    return expert_score({}, inputs, label=f"score expert {number}")


@stage("teacher-score", version=1, threads="one")
def teacher_score(work: Work) -> None:
    trained = TeacherParameters.model_validate(work.store.manifest(work.ref("teacher")).parameters)
    device, clips = Device.of(work, trained.precision), Clips(work.store, work.ref("train"))
    network = load_teacher(work.store, work.ref("teacher"), clips, device)
    curve = json.loads((work.input("teacher") / loop.CURVE).read_text())
    order = Order(len(clips), trained.optimiser.batch_size, trained.seed)
    taken = order.clips_until(trained.steps(len(clips)))
    _write(work, "teacher", network, clips, device, (curve["steps"], curve["loss"]), taken, trained.seed)


@stage("expert-score", version=2, threads="one")  # 2: the loss stands at the steps where it was
def expert_score(work: Work) -> None:
    """After its last epoch. A trajectory keeps no statistics of batch norm: they are those of the training clips."""
    own = ExpertJobParameters.model_validate(work.store.manifest(work.ref("expert")).parameters)
    device, clips = Device.of(work, own.expert.precision), Clips(work.store, work.ref("train"))
    network = training.build_network(own.expert.network, len(clips.classes), clips.shape_THWC, own.seed)
    training.placed(network, device)
    kept = Experts([work.input("expert")])
    network.load_state_dict(experts.unflat(kept.weights(0, kept.epochs), network), strict=False)
    _gather_statistics(network, clips, device)
    losses = json.loads((work.input("expert") / loop.CURVE).read_text())
    an_epoch = Order(len(clips), own.expert.batch_size, own.seed).steps_an_epoch
    a_point = loop.a_point(kept.epochs)
    steps = [an_epoch * min(a_point * (point + 1), kept.epochs) for point in range(len(losses))]
    _write(work, "expert", network, clips, device, (steps, losses), kept.epochs * len(clips), own.seed)


def _gather_statistics(network: nn.Module, clips: Clips, device: Device, batch_size: int = 32) -> None:
    """Means and variances of batch norm, where there is any, over one view of every training clip."""
    from torch.optim.swa_utils import update_bn

    from vidistill.models.dropout import seed_dropout

    seed_dropout(network, 0)
    rows = np.array_split(np.arange(len(clips)), -(-len(clips) // batch_size))
    table = clips.table
    with device.autocast():
        update_bn((training.to_input(clips.read(own), table.mean, table.std, device) for own in rows), network)


def _write(
    work: Work, name: str, network: nn.Module, clips: Clips, device: Device, curve: tuple[list[int], list[float]],
    taken: int, seed: int,
) -> None:  # fmt: skip
    """The score of a network that took so many clips in training."""
    test_clips = Clips(work.store, work.ref("test"))
    logits_NK = predict_test(network, test_clips, device)
    steps, loss = curve
    made = Score(
        **score(logits_NK, test_clips.labels_N), steps=tuple(steps), loss=tuple(loss),
        flops=3 * flops_a_clip(network, clips.shape_THWC) * taken,
        training_bytes=work.store.manifest(work.ref(name)).bytes, clips=len(clips),
    )  # fmt: skip
    write_score(work, made, logits_NK, test_clips.labels_N)
    work.record(seeds=[seed], counts={"clips": len(clips), "test": len(test_clips)}, **device.facts())
