"""Training of teachers and students: every draw is a function of (seed, step).

Shapes: B clips a batch, N clips a set, V views, T frames, H height, W width, K classes. `x_BCTHW` is float, normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.models import parted
from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.tasks.learning import loop, own, streams
from vidistill.tasks.learning.loop import Curve
from vidistill.tasks.learning.optimisers import NETWORK_OPTIMISERS, OptimiserParameters

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vidistill.tasks.stage import Runtime, Work

Precision = Literal["auto", "fp32", "bf16"]


class TrainingParameters(Parameters):
    """How a network is trained, be it a teacher or a student: the same law at every budget.

    Chosen on the validation fifth for Random, at one and five clips a class and for all of them.
    """

    epochs: int = Field(40, ge=1, description="Passes over the clips.")
    least_steps: int = Field(300, ge=1, description="Small sets are passed over more often, for so many steps.")
    optimiser: OptimiserParameters = OptimiserParameters(lr=0.05, batch_size=32, warmup_share=0.05)
    crop_scale: float = Field(0.4, gt=0, le=1, description="Smallest area share of the random crops; 1 is no crops.")
    cutmix: float = Field(0.0, ge=0, description="α of CutMix, the same box in every frame, for half of the batches.")
    jitter: float = Field(0.0, ge=0, lt=1, description="Brightness, contrast, saturation; a fifth of the clips grey.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Of hard labels.")
    average: float = Field(0.0, ge=0, lt=1, description="Decay of the running mean of the weights that is scored.")
    precision: Precision = "auto"

    def steps(self, clips: int) -> int:
        """Optimiser steps on a set of so many clips."""
        batches = math.ceil(clips / min(self.optimiser.batch_size, clips))
        return max(self.least_steps, self.epochs * batches)

    def suited(self, network: str) -> Self:
        """With the optimiser of a body that the common rate does not suit, where no other is asked for."""
        if self.optimiser != TrainingParameters().optimiser:
            return self
        optimiser = NETWORK_OPTIMISERS.get(parted(network)[1], self.optimiser)
        return self.model_copy(update={"optimiser": optimiser})


@dataclass(frozen=True)
class Device:
    """Where networks run, how many threads they use, and in which precision."""

    torch_device: torch.device
    precision: Literal["fp32", "bf16"]
    threads: int

    @staticmethod
    def of(work: Work, precision: Precision) -> Device:
        """The device of a job."""
        return Device.on(work.runtime, work.threads, precision)

    @staticmethod
    def on(runtime: Runtime, threads: int, precision: Precision) -> Device:
        """Resolve `auto`, set this process's thread count, have it keep the memory that networks free, and know users'
        networks.

        Raises:
            RequestError: a device is asked for that is not there.
        """
        import torch

        from vidistill.models import compute

        own.register(runtime.networks)
        torch.set_num_threads(threads)
        compute.keep_freed_memory()
        try:
            device = compute.resolve_device(runtime.device)
        except (RuntimeError, ValueError) as error:
            raise RequestError(f"The device {runtime.device!r} cannot be used: {error}. Try --device cpu.") from error
        return Device(device, compute.resolve_precision(precision, device), threads)

    def autocast(self) -> Any:
        from vidistill.models import compute

        return compute.autocast(self.torch_device, self.precision)

    def facts(self) -> dict[str, Any]:
        """What an artifact's record says; on a GPU its name too."""
        import torch

        facts = {"device": str(self.torch_device), "precision": self.precision, "threads": self.threads}
        return facts | ({"gpu": torch.cuda.get_device_name()} if self.torch_device.type == "cuda" else {})


def build_network(name: str, classes: int, shape_THWC: tuple[int, ...], seed: int) -> nn.Module:
    """A freshly initialised network, drawn from the seed; a user's has answered two clips.

    Raises:
        RequestError: no network has this name, or a user's cannot be made, or tells no such classes of such clips.
    """
    from vidistill.models import build

    with own.blamed(name, classes, shape_THWC), seeded(seed):
        network = build(name, classes=classes, frames=shape_THWC[0], size=shape_THWC[1])
        own.try_out(name, network, classes, shape_THWC)
    return network


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Networks that are made here draw their weights from the seed; one at a time, since torch has one generator."""
    import torch

    from vidistill.models.dropout import TORCHS

    with TORCHS:
        torch.manual_seed(seed)
        yield


def role_seed(*seed: int) -> int:
    """A seed for torch, of a role of its own: (seed, number, stream)."""
    return int(generator(*seed).integers(2**31))


def generator(*seed: int) -> np.random.Generator:
    """A generator seeded by any number of integers: (seed, step), (seed, class, index)."""
    return np.random.default_rng([number & 0xFFFFFFFF for number in seed])


@dataclass(frozen=True)
class Order:
    """Which rows each step takes: epochs of shuffled batches of nearly one size, none larger than `batch_size`."""

    n: int
    batch_size: int
    seed: int

    @property
    def steps_an_epoch(self) -> int:
        return math.ceil(self.n / min(self.batch_size, self.n))

    def clips_until(self, step: int) -> int:
        """How many clips the steps before this one take."""
        epochs, left = divmod(step, self.steps_an_epoch)
        return epochs * self.n + sum(len(self.rows(place)) for place in range(left))

    def rows(self, step: int) -> NDArray[np.int64]:
        epoch, place = divmod(step, self.steps_an_epoch)
        return np.array_split(_shuffled(self.n, self.seed, epoch), self.steps_an_epoch)[place].copy()


@lru_cache(maxsize=8)
def _shuffled(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The rows in the order of an epoch, drawn once for all of its steps."""
    return generator(seed, epoch, streams.EPOCH_ORDER).permutation(n)


Draw = Callable[[int], tuple["Tensor", "Tensor"]]
"""From a step to (x_BCTHW, targets_BK): targets are probabilities, one-hot for hard labels."""


def train(
    network: nn.Module,
    draw: Draw,
    steps: int,
    optimiser: OptimiserParameters,
    device: Device,
    *,
    seed: int,
    work: Work | None = None,
    checkpoint_every: int | None = None,
    average: float = 0.0,
    temperature: float = 1.0,
) -> Curve:
    """Train on cross-entropy with probabilities as targets; resumes from the job's last checkpoint.

    Dropout is seeded anew at each step from (seed, step).

    Args:
        network: is trained in place.
        draw: the batch of a step.
        steps: how many.
        optimiser: rates, and the rest.
        device: where.
        seed: of dropout.
        work: keeps checkpoints.
        checkpoint_every: steps between them; by default the seconds count.
        average: decay of the running mean of the weights, which the network ends with; 0 for the last weights.
        temperature: of the student's outputs, where its targets are softened, too; gradients keep their size.

    Raises:
        RunError: the loss diverges.
    """
    from vidistill.models.dropout import seed_dropout

    placed(network, device).train()
    stepper, mean = _stepper(network, optimiser), _running_mean(network, average)

    def step(number: int) -> float:
        for group in stepper.param_groups:
            group["lr"] = optimiser.lr_at(number, steps)
        seed_dropout(network, role_seed(seed, number, streams.DROPOUT))
        x_BCTHW, targets_BK = draw(number)
        with device.autocast():
            logits_BK = network(x_BCTHW)
        loss = soft_cross_entropy(logits_BK.float() / temperature, targets_BK) * temperature**2
        value = loop.descend(stepper, loss, optimiser.clip_norm)
        if mean is not None:
            mean.update_parameters(network)
        return value

    state: dict[str, Any] = {"network": network, "optimiser": stepper} | ({} if mean is None else {"mean": mean})
    curve = loop.run(step, steps, state, work, every=checkpoint_every)
    if mean is not None:
        network.load_state_dict(mean.module.state_dict())
    return curve


def soft_cross_entropy(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Cross-entropy with probabilities; of several networks (models/ensemble.py) the sum of each one's."""
    import torch

    members = len(logits_BK) // len(targets_BK)
    return torch.nn.functional.cross_entropy(logits_BK, targets_BK.repeat(members, 1)) * members


def _running_mean(network: nn.Module, decay: float) -> Any:
    """The exponential mean of weights and statistics; young, it forgets faster: min(decay, (n + 1)/(n + 10))."""
    from torch.optim.swa_utils import AveragedModel

    def mix(mean: Tensor, now: Tensor, count: Tensor | int) -> Tensor:
        kept = min(decay, (int(count) + 1) / (int(count) + 10))
        return mean.lerp(now, 1 - kept) if mean.is_floating_point() else now

    return AveragedModel(network, avg_fn=mix, use_buffers=True) if decay else None


def _stepper(network: nn.Module, optimiser: OptimiserParameters) -> torch.optim.Optimizer:
    import torch

    common: dict[str, Any] = {"lr": optimiser.lr, "weight_decay": optimiser.weight_decay, "fused": True}
    if optimiser.method == "adamw":
        return torch.optim.AdamW(network.parameters(), **common)
    return torch.optim.SGD(network.parameters(), momentum=optimiser.momentum, **common)


def format_of(parameter: Tensor) -> torch.memory_format:
    import torch

    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(parameter.dim(), torch.preserve_format)


def to_input(clips_NTHWC: NDArray[np.uint8], mean: Any, std: Any, device: Device) -> Tensor:
    """uint8 NTHWC to normalised float BCTHW on the device, in channels-last memory."""
    import torch

    from vidistill.models import compute

    return compute.normalise(torch.from_numpy(clips_NTHWC).to(device.torch_device), mean, std)


def flip_some(x_BCTHW: Tensor, flips_B: NDArray[np.bool_]) -> Tensor:
    """Mirror the chosen clips left to right, whole clips at a time."""
    import torch

    chosen = torch.from_numpy(flips_B).to(x_BCTHW.device)[:, None, None, None, None]
    return torch.where(chosen, x_BCTHW.flip(-1), x_BCTHW)


def crop_some(x_BCTHW: Tensor, scale_min: float, random: np.random.Generator) -> Tensor:
    """Zoom into a square of each clip, the same in all of its frames: area share uniform in [scale_min, 1]."""
    import torch

    b, c, t, h, w = x_BCTHW.shape
    side_B = np.sqrt(random.uniform(scale_min, 1, b))
    place_B2 = random.uniform(-1, 1, (b, 2)) * (1 - side_B)[:, None]
    theta_B23 = np.zeros((b, 2, 3))
    theta_B23[:, 0, 0] = theta_B23[:, 1, 1] = side_B
    theta_B23[:, :, 2] = place_B2
    frames_BXHW = x_BCTHW.transpose(1, 2).reshape(b, t * c, h, w)
    theta = torch.from_numpy(theta_B23).to(x_BCTHW)
    grid = torch.nn.functional.affine_grid(theta, [b, t * c, h, w], align_corners=False)
    cropped = torch.nn.functional.grid_sample(frames_BXHW, grid, padding_mode="border", align_corners=False)
    return cropped.view(b, t, c, h, w).transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)


def one_hot(labels_N: NDArray[np.int64], classes: int, device: Device) -> Tensor:
    import torch

    labels = torch.from_numpy(labels_N).to(device.torch_device)
    return torch.nn.functional.one_hot(labels, classes).float()


def predict(network: nn.Module, batches: Iterator[Tensor], device: Device) -> Tensor:
    """Logits of every batch in evaluation mode: float32 (N, K) on the CPU."""
    import torch

    network.eval()
    with torch.inference_mode(), device.autocast():
        return torch.cat([network(x_BCTHW).float().cpu() for x_BCTHW in batches])


def save_weights(network: nn.Module, path: Path) -> None:
    """As safetensors, in the same bytes each time; weights that two layers share are written for both."""
    import torch
    from safetensors.torch import save_file

    whole = torch.contiguous_format
    save_file({name: tensor.clone(memory_format=whole) for name, tensor in network.state_dict().items()}, path)


def settled(network: nn.Module, device: Device) -> nn.Module:
    """The network on the device in evaluation mode, channels-last, with no gradients to its weights."""
    return placed(network, device).eval().requires_grad_(False)


def placed(network: nn.Module, device: Device) -> nn.Module:
    """The network on the device, the weights of its 3D convolutions channels-last; a CNN+RNN has none."""
    network.to(device.torch_device)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(memory_format=format_of(parameter))
    return network
