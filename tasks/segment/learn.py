"""MS-TCN's training (Farha and Gall 2019, §3.4–3.5), and the teacher of TSGF.

Legend: S stages, T frames, D features, K classes. `x_TD` is standardised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.learning import loop, streams, training
from vidistill.tasks.learning.training import Device, Order
from vidistill.tasks.segment.sequences import Sequences
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = "weights.safetensors"
TRUNCATED = 16.0
"""τ² of the smoothing loss, τ = 4."""
Video = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Its features (T, D), and of each frame the probabilities of the classes (T, K)."""


class TCNParameters(Parameters):
    """The network and its training; defaults are the paper's, which steps through one whole video at a time."""

    stages: int = Field(4, ge=1)
    layers: int = Field(10, ge=1, description="Of a stage; the last sees 2^layers − 1 frames to either side.")
    width: int = Field(64, ge=1)
    epochs: int = Field(50, ge=1)
    lr: float = Field(0.0005, gt=0, description="Of Adam.")
    smoothing: float = Field(0.15, ge=0, description="λ: the weight of the smoothing loss.")


def build(parameters: TCNParameters, dimensions: int, classes: int, seed: int, *, norm: bool) -> nn.Module:
    from vidistill.models.tcn import MSTCN

    with training.seeded(seed):
        return MSTCN(dimensions, classes, parameters.stages, parameters.layers, parameters.width, norm=norm)


def frame_losses(logits_SKT: Tensor, targets_TK: Tensor, smoothing: float) -> Tensor:
    """Σ over stages of L_cls + λ·L_T-MSE, with probabilities as targets.

    L_T-MSE is the mean over frames and classes of min(Δ², τ²), Δ the change of a log-probability since the frame
    before, which gets no gradient.
    """
    import torch

    log_SKT = logits_SKT.log_softmax(1)
    cross_entropy = -(log_SKT * targets_TK.T).sum(1).mean(1)
    if log_SKT.shape[2] < 2:
        return cross_entropy.sum()
    change_SKT = log_SKT[:, :, 1:] - log_SKT[:, :, :-1].detach()
    return torch.sum(cross_entropy + smoothing * change_SKT.square().clamp(max=TRUNCATED).mean((1, 2)))


def train(
    network: nn.Module, video: Callable[[int], Video], videos: int, parameters: TCNParameters, device: Device,
    seed: int, keeper: loop.Keeper | None = None,
) -> loop.Curve:  # fmt: skip
    """Adam over whole videos, each once an epoch in an order of its own; resumes from the job's last checkpoint.

    Args:
        network: is trained in place.
        video: the features and targets of one of them, by its number.
        videos: how many there are.
        parameters: rates and epochs.
        device: where.
        seed: of the order and of dropout.
        keeper: keeps checkpoints.

    Raises:
        RunError: the loss diverges.
    """
    import torch

    from vidistill.models.dropout import seed_dropout

    network.to(device.torch_device).train()
    adam = torch.optim.Adam(network.parameters(), lr=parameters.lr)
    order = Order(videos, 1, seed)

    def step(number: int) -> float:
        seed_dropout(network, training.role_seed(seed, number, streams.DROPOUT))
        x_TD, targets_TK = video(int(order.rows(number)[0]))
        logits_SKT = network(to_network(x_TD, device))[:, 0]
        targets = torch.from_numpy(targets_TK).to(device.torch_device)
        return loop.descend(adam, frame_losses(logits_SKT, targets, parameters.smoothing))

    state: dict[str, Any] = {"network": network, "adam": adam}
    return loop.run(step, parameters.epochs * order.steps_an_epoch, state, keeper)


def to_network(x_TD: NDArray[np.float32], device: Device) -> Tensor:
    """(1, D, T) on the device."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(x_TD.T)).to(device.torch_device)[None]


def one_hot(labels_T: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Probabilities of 0 and 1: (T, K)."""
    return np.eye(classes, dtype=np.float32)[labels_T]


def logits_of(network: nn.Module, x_TD: NDArray[np.float32], device: Device) -> NDArray[np.float32]:
    """What the last stage says of each frame: (T, K)."""
    import torch

    with torch.inference_mode():
        logits_TK: NDArray[np.float32] = network(to_network(x_TD, device))[-1, 0].T.cpu().numpy()
    return logits_TK


def softmax(logits_TK: NDArray[np.float32]) -> NDArray[np.float32]:
    exponentials_TK = np.exp(logits_TK - logits_TK.max(1, keepdims=True))
    return np.asarray(exponentials_TK / exponentials_TK.sum(1, keepdims=True))


class SegmentTeacherParameters(TCNParameters):
    seed: int = 0


def segment_teacher_job(sequences: ArtifactRef, parameters: TCNParameters) -> Job:
    own = SegmentTeacherParameters(**parameters.model_dump())
    return segment_teacher(own, {"sequences": sequences}, label="teacher of sequences")


@stage("segment-teacher", version=1, threads="all")
def segment_teacher(work: Work) -> None:
    """MS-TCN with batch norm, which L_reg (S3, Eq. 5) needs and the published network lacks."""
    parameters = SegmentTeacherParameters.model_validate(work.job.parameters)
    sequences = Sequences(work.store, work.ref("sequences"))
    device = Device.of(work, "fp32")
    seed = training.role_seed(parameters.seed, streams.TEACHER_WEIGHTS)
    network = build(parameters, sequences.dimensions, len(sequences.classes), seed, norm=True)
    rows = sequences.rows("train")
    if short := [sequences.name(row) for row in rows if len(sequences.labels(row)) < 2]:
        raise RequestError(
            f"{short[0]} has one frame at sample_rate={sequences.sample_rate}, and the teacher's batch norm needs two "
            "of each training video: lower the rate, or leave the video out of the split."
        )
    curve = train(network, lambda n: real_video(sequences, rows[n]), len(rows), parameters, device, seed, work)
    training.save_weights(network, work.folder / WEIGHTS)
    curve.write(work.folder)
    work.record(seeds=[parameters.seed], counts={"videos": len(rows)}, **device.facts())


def real_video(sequences: Sequences, row: int) -> Video:
    """A video as it is, with its labels."""
    return sequences.standardised(row), one_hot(sequences.labels(row), len(sequences.classes))


def load_segment_teacher(store: Store, ref: ArtifactRef, sequences: Sequences, device: Device) -> nn.Module:
    """A trained teacher at rest, with no gradients to its weights."""
    from safetensors.torch import load_file

    parameters = SegmentTeacherParameters.model_validate(store.manifest(ref).parameters)
    network = build(parameters, sequences.dimensions, len(sequences.classes), 0, norm=True)
    network.load_state_dict(load_file(store.folder(ref) / WEIGHTS))
    return network.to(device.torch_device).eval().requires_grad_(False)
