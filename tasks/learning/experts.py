"""Experts (Cazenavette et al. 2022, §3.1): networks trained on the real clips, their weights kept after every epoch.

Each is trained by itself: one pass over five, vectorised by `torch.func.vmap`, turns their convolutions into grouped
ones and took 1.6 to 1.7 times as long on a CPU (tests/benchmarks/experts_speed.py).

Shapes: E experts, S = epochs + 1 snapshots an expert, P parameters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import Field
from zarr.codecs import ZstdCodec

from vidistill.models import parted
from vidistill.storage.arrays import open_whole
from vidistill.storage.clips import Clips
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import loop, streams, training
from vidistill.tasks.learning.training import Device, Order, Precision, role_seed
from vidistill.tasks.learning.views import RealBatches
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from torch import Tensor, nn

TRAJECTORY = "trajectory"


class ExpertParameters(Parameters):
    """VDSD's `buffer.py` (methods §3.2): plain SGD, no momentum, no decay, no augmentation but the data set's flips.

    There each batch is standardised by itself; here clips are, by the data set's statistics, as in every other stage.
    """

    network: str = Field(
        "minic3d",
        description="As published. r2plus1d_small_in is several times as fast, and on its trajectories MTT gains "
        "nothing that is settled over real clips (the preset mtt_paths).",
    )
    epochs: int | None = Field(None, ge=1, description="By default as many as are read (published: 50).")
    lr: float | None = Field(
        None,
        gt=0,
        description="By default 0.1 for r2plus1d_small, else 0.05. Published: 0.01, at which ten epochs of small data "
        "sets teach less (the preset mtt_networks).",
    )
    batch_size: int = Field(16, ge=1, description="Published: 256, of some 5,000 clips; smaller sets need more steps.")
    precision: Precision = "fp32"
    checkpoint_epochs: int = Field(5, ge=1, description="Epochs between checkpoints.")

    def read_to(self, epoch: int) -> ExpertParameters:
        """With all that was left open, for trajectories that are read up to this epoch."""
        lr = 0.1 if parted(self.network)[1].startswith("r2plus1d_small") else 0.05
        return self.model_copy(update={"epochs": self.epochs or epoch, "lr": self.lr or lr})


class ExpertJobParameters(Parameters):
    """One expert: its seed draws its weights and its batches."""

    expert: ExpertParameters
    seed: int


def expert_jobs(clips: ArtifactRef, parameters: ExpertParameters, count: int) -> list[Job]:
    """Experts number 0 … count − 1 of settled parameters, an artifact each: a longer list reuses the shorter one's."""
    return [
        expert(ExpertJobParameters(expert=parameters, seed=seed), {"clips": clips}, label=f"expert {seed}")
        for seed in range(count)
    ]


@stage("expert", version=2, threads="one")  # 2: draws numbers of its own, not those of a teacher of its seed
def expert(work: Work) -> None:
    job = ExpertJobParameters.model_validate(work.job.parameters)
    clips = Clips(work.store, work.ref("clips")).preload()
    device = Device.of(work, job.expert.precision)
    trajectory_SP, loss = train_expert(clips, job.expert, job.seed, device, work)
    _save(work.folder, trajectory_SP[None], loss)
    work.record(seeds=[job.seed], counts={"clips": len(clips), "snapshots": len(trajectory_SP)}, **device.facts())


def train_expert(
    clips: Clips, parameters: ExpertParameters, seed: int, device: Device, work: Work
) -> tuple[NDArray[np.float32], list[float]]:
    """The weights before the first epoch and after each, (S, P), and the loss.

    Raises:
        RunError: the loss diverges.
    """
    assert parameters.epochs is not None
    own = role_seed(seed, streams.EXPERT_WEIGHTS)
    network = training.build_network(parameters.network, len(clips.classes), clips.shape_THWC, own)
    training.placed(network, device).train()
    order = Order(len(clips), parameters.batch_size, own)
    draw = RealBatches(clips, order, device)
    trajectory = _Trajectory(network, parameters.epochs)

    def epoch(number: int) -> float:
        loss = _train_epoch(network, draw, number, parameters.lr, device)
        trajectory.add(network)
        return loss

    state: loop.State = {"network": network, "trajectory": trajectory}
    curve = loop.run(epoch, parameters.epochs, state, work, every=parameters.checkpoint_epochs)
    return trajectory.snapshots_SP, curve.loss


class _Trajectory:
    """The snapshots so far, in room for all."""

    def __init__(self, network: nn.Module, epochs: int) -> None:
        weights = sum(weight.numel() for weight in network.parameters())
        self.snapshots_SP, self._count = np.zeros((epochs + 1, weights), np.float32), 0
        self.add(network)

    def add(self, network: nn.Module) -> None:
        self.snapshots_SP[self._count] = flat(network)
        self._count += 1

    def state_dict(self) -> Tensor:
        import torch

        return torch.from_numpy(self.snapshots_SP[: self._count])

    def load_state_dict(self, snapshots_SP: Tensor) -> None:
        self._count = len(snapshots_SP)
        self.snapshots_SP[: self._count] = snapshots_SP.numpy()


def _train_epoch(network: nn.Module, draw: RealBatches, epoch: int, lr: float | None, device: Device) -> float:
    import torch

    from vidistill.models.dropout import seed_dropout

    assert lr is not None
    losses = []
    weights = list(network.parameters())
    for place in range(draw.order.steps_an_epoch):
        step = epoch * draw.order.steps_an_epoch + place
        seed_dropout(network, role_seed(draw.order.seed, step, streams.DROPOUT))
        x_BCTHW, targets_BK = draw(step)
        with device.autocast():
            logits_BK = network(x_BCTHW)
        loss = torch.nn.functional.cross_entropy(logits_BK.float(), targets_BK)
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(gradient, alpha=lr)
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


def flat(network: nn.Module) -> NDArray[np.float32]:
    """All weights of a network as one vector, in the order of `named_parameters`."""
    import torch

    with torch.no_grad():
        vector: NDArray[np.float32] = torch.cat([weight.flatten() for weight in network.parameters()]).cpu().numpy()
    return vector


def unflat(vector_P: NDArray[np.float32], network: nn.Module) -> dict[str, Tensor]:
    """A vector as the weights of such a network, by name, on its device, in the memory layout that is fast."""
    import torch

    named = dict(network.named_parameters())
    device = next(iter(named.values())).device
    vector = torch.from_numpy(vector_P).to(device)
    parts = torch.split(vector, [weight.numel() for weight in named.values()])
    return {
        name: part.view(weight.shape).to(memory_format=training.format_of(weight)).clone()
        for (name, weight), part in zip(named.items(), parts, strict=True)
    }


def _save(folder: Path, trajectories_ESP: NDArray[np.float32], losses: list[float]) -> None:
    array = zarr.create_array(
        folder, name=TRAJECTORY, shape=trajectories_ESP.shape, chunks=(1, 1, trajectories_ESP.shape[2]),
        dtype="float32", compressors=ZstdCodec(level=1, checksum=True),
        dimension_names=("expert", "epoch", "parameter"),
    )  # fmt: skip
    array[:] = trajectories_ESP
    (folder / loop.CURVE).write_text(json.dumps(losses))


class Experts:
    """The trajectories of all experts, read snapshot by snapshot.

    Args:
        folders: `expert` artifacts, of one expert each.
    """

    def __init__(self, folders: list[Path]) -> None:
        self._arrays = [open_whole(folder, TRAJECTORY) for folder in folders]
        self.epochs = int(self._arrays[0].shape[1]) - 1

    def __len__(self) -> int:
        return len(self._arrays)

    def weights(self, expert: int, epoch: int) -> NDArray[np.float32]:
        """(P,): the expert's weights after so many epochs."""
        return np.asarray(self._arrays[expert][0, epoch])
