"""Teacher: a network trained on the real training split, whose knowledge the distilled clips and soft labels carry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from vidistill.storage.clips import Clips
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.training import Device, OptimiserParameters, Order, Precision
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = "weights.safetensors"
CURVE = "curve.json"


class TeacherParameters(Parameters):
    """How the teacher is trained (S3, Eq. 3, names the loss and nothing else).

    MiniC3D with batch norm, since L_reg (S3, Eq. 5) needs running statistics, which plain MiniC3D lacks (methods §6).
    """

    network: str = Field("minic3d_bn", description="minic3d_bn or minic3d.")
    epochs: int = Field(40, ge=1, description="Passes over the training split, each with another stored view a video.")
    optimiser: OptimiserParameters = OptimiserParameters(lr=0.02, batch_size=16, warmup_share=0.05)
    crop_scale: float = Field(0.4, gt=0, le=1, description="Smallest area share of the random crops; 1 is no crops.")
    precision: Precision = "auto"
    seed: int = 0
    checkpoint_epochs: int = Field(2, ge=1, description="Epochs between checkpoints.")


def teacher_job(clips: ArtifactRef, parameters: TeacherParameters) -> Job:
    return teacher(parameters, {"clips": clips}, label=f"teacher {parameters.network}")


@dataclass(frozen=True)
class RealBatches:
    """Batches of real clips: another view a video and epoch, cropped, flipped where the data set allows it."""

    clips: Clips
    order: Order
    device: Device
    crop_scale: float = 1.0

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """x_BCTHW and one-hot targets_BK of a step."""
        rows = self.order.rows(step)
        random = training.generator(self.order.seed, step, streams.TEACHER_VIEWS)
        table = self.clips.table
        clips_NTHWC = self.clips.read(rows, random.integers(table.views, size=len(rows)))
        x_BCTHW = training.to_input(clips_NTHWC, table.mean, table.std, self.device)
        x_BCTHW = training.augment(x_BCTHW, table.flips, self.crop_scale, random)
        return x_BCTHW, training.one_hot(self.clips.labels_N[rows], len(table.classes), self.device)


@stage("teacher", version=1, threads="all")
def teacher(work: Work) -> None:
    from safetensors.torch import save_file

    parameters = TeacherParameters.model_validate(work.job.parameters)
    clips = Clips(work.store, work.ref("clips")).preload()
    device = Device.of(work, parameters.precision)
    network = training.build_network(parameters.network, len(clips.classes), clips.shape_THWC, parameters.seed)
    order = Order(len(clips), parameters.optimiser.batch_size, parameters.seed)
    curve = training.train(
        network,
        RealBatches(clips, order, device, parameters.crop_scale),
        parameters.epochs * order.steps_an_epoch,
        parameters.optimiser,
        device,
        seed=parameters.seed,
        work=work,
        checkpoint_every=parameters.checkpoint_epochs * order.steps_an_epoch,
    )
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, work.folder / WEIGHTS)
    (work.folder / CURVE).write_text(json.dumps({"steps": curve.steps, "loss": curve.loss}))
    work.record(seeds=[parameters.seed], counts={"clips": len(clips)}, **device.facts())


def load_teacher(store: Store, ref: ArtifactRef, clips: Clips, device: Device) -> nn.Module:
    """A trained teacher in evaluation mode on the device, without gradients to its weights."""
    from safetensors.torch import load_file

    parameters = TeacherParameters.model_validate(store.manifest(ref).parameters)
    network = training.build_network(parameters.network, len(clips.classes), clips.shape_THWC, parameters.seed)
    network.load_state_dict(load_file(store.folder(ref) / WEIGHTS))
    return training.settled(network, device)


def features(network: nn.Module, clips: Clips, rows: np.ndarray, device: Device, batch_size: int = 32) -> np.ndarray:
    """`embed` of the centre clips of these rows: float64 (N, D)."""
    import torch

    found = []
    with torch.inference_mode(), device.autocast():
        for start in range(0, len(rows), batch_size):
            clips_NTHWC = clips.read(rows[start : start + batch_size])
            x_BCTHW = training.to_input(clips_NTHWC, clips.table.mean, clips.table.std, device)
            found.append(network.embed(x_BCTHW).double().cpu().numpy())  # type: ignore[operator]
    return np.concatenate(found)
