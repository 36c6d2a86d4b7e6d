"""Teacher: a network trained on the real training split, whose knowledge the distilled clips and soft labels carry.

Shapes: N clips, K classes, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from vidistill.storage.clips import Clips
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.training import Device, Order, TrainingParameters
from vidistill.tasks.learning.views import RealBatches, centre_clips
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = "weights.safetensors"


class TeacherParameters(TrainingParameters):
    """How the teacher is trained (S3, Eq. 3, names the loss and nothing else).

    A network with batch norm, since L_reg (S3, Eq. 5) needs running statistics, which plain MiniC3D lacks (methods §6).
    """

    network: str = Field("r2plus1d_small", description="A network's name; TSGF needs one with batch norm.")
    ensemble: int = Field(1, ge=1, description="So many networks, whose mean probability is the teacher's answer.")
    seed: int = 0
    checkpoint_epochs: int = Field(2, ge=1, description="Epochs between checkpoints.")


def teacher_job(clips: ArtifactRef, parameters: TeacherParameters) -> Job:
    parameters = parameters.suited(parameters.network)
    members = f"{parameters.ensemble} × " if parameters.ensemble > 1 else ""
    return teacher(parameters, {"clips": clips}, label=f"teacher {members}{parameters.network}")


@stage("teacher", version=2, threads="all")
def teacher(work: Work) -> None:
    parameters = TeacherParameters.model_validate(work.job.parameters)
    clips = Clips(work.store, work.ref("clips")).preload()
    device = Device.of(work, parameters.precision)
    network = build_teacher(parameters, clips)
    order = Order(len(clips), parameters.optimiser.batch_size, parameters.seed)
    curve = training.train(
        network,
        RealBatches(clips, order, device, parameters),
        parameters.steps(len(clips)),
        parameters.optimiser,
        device,
        seed=parameters.seed,
        work=work,
        average=parameters.average,
        checkpoint_every=parameters.checkpoint_epochs * order.steps_an_epoch,
    )
    training.save_weights(network, work.folder / WEIGHTS)
    curve.write(work.folder)
    work.record(seeds=[parameters.seed], counts={"clips": len(clips)}, **device.facts())


def build_teacher(parameters: TeacherParameters, clips: Clips) -> nn.Module:
    """The teacher before its training: one network, or several that differ in their first weights."""
    from vidistill.models.ensemble import Ensemble

    seeds = [
        training.role_seed(parameters.seed, number, streams.TEACHER_WEIGHTS) for number in range(parameters.ensemble)
    ]
    members = [training.build_network(parameters.network, len(clips.classes), clips.shape_THWC, seed) for seed in seeds]
    return members[0] if len(members) == 1 else Ensemble(members)


def load_teacher(store: Store, ref: ArtifactRef, clips: Clips, device: Device) -> nn.Module:
    """A trained teacher in evaluation mode on the device, without gradients to its weights."""
    from safetensors.torch import load_file

    parameters = TeacherParameters.model_validate(store.manifest(ref).parameters)
    network = build_teacher(parameters, clips)
    network.load_state_dict(load_file(store.folder(ref) / WEIGHTS))
    return training.settled(network, device)


def features(network: nn.Module, clips: Clips, rows: np.ndarray, device: Device) -> np.ndarray:
    """`embed` of the centre clips of these rows: float64 (N, D)."""
    import torch

    batches = centre_clips(clips, rows, device)
    with torch.inference_mode(), device.autocast():
        return np.concatenate([network.embed(x_BCTHW).double().cpu().numpy() for x_BCTHW in batches])  # type: ignore[operator]
