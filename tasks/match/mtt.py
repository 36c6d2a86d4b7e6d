"""MTT (Cazenavette et al. 2022): clips on which a student walks where experts walked on the real data.

How the gradient is found without the graph of all steps: `sweep`.

Shapes: B clips a batch, N clips of the set, C colours, T frames, H height, W width, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.experts import ExpertParameters, Experts, expert_jobs, unflat
from vidistill.tasks.learning.loop import Curve
from vidistill.tasks.learning.pixels import RATE
from vidistill.tasks.learning.training import Precision, generator, role_seed
from vidistill.tasks.match import core, dsa, sets
from vidistill.tasks.match.core import Learnt, Loop, Loss, Parametrisation, Part, Valued
from vidistill.tasks.match.sweep import Gradient, Weights, sweep
from vidistill.tasks.methods import Given, Material, Method

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

DIVERGED = 10.0
"""Times the largest of the first ten losses. Eq. 2 is 1 where the student did not move: beyond, nothing is matched."""
KEPT_BYTES, GPU_SHARE = {"cpu": 2**28, "cuda": 2**33}, 1 / 16
"""Of graphs of a student's steps, and at most this share of a GPU, where other jobs may be; what does not fit is made
twice."""
FP32: Any = Field("fp32", description="bf16 was a tenth off in the gradient, and no faster.")
"""The precision of trajectories."""


class MTTLossParameters(Parameters):
    """What MTT matches, and for how long: VDSD's settings (methods §3.2) except where it says otherwise.

    A step of the student that is augmented shows one ω to all clips, and experts train without.
    """

    expert: ExpertParameters = ExpertParameters()
    experts: int = Field(5, ge=1, description="Published: 30, of which the code only ever uses 10 (all are used here).")
    expert_epochs: int = Field(1, ge=1, description="M of Eq. 2, in epochs (images: 3).")
    max_start_epoch: int = Field(10, ge=1, description="T⁺: a start is drawn below it.")
    syn_steps: int = Field(10, ge=1, description="N of Eq. 2 (images: 20).")
    batch_syn: int | None = Field(None, ge=1, description="Clips a student's step; all of them by default.")
    augmentation: dsa.Strategy = Field("none", description="VDSD's code uses none; MTT on images uses DSA.")
    gradient: Gradient = Field("exact", description="tesla: TESLA's approximation, which holds every θ_j fixed.")
    lr_init: float | None = Field(
        None,
        gt=0,
        description="α, the student's learning rate, at the beginning; by default 0.3 of the experts' and "
        "lr_min at least (published: theirs), at which a student of few clips overshoots less.",
    )
    lr_lr: float | None = Field(
        None, ge=0, description="α's own rate, 0 to hold it; by default a hundredth of lr_init, or the published 1e-5."
    )
    momentum_lr: float = Field(0.5, ge=0, lt=1, description="Of SGD over α.")
    lr_min: float = Field(0.001, gt=0, description="α stays above it.")
    iterations: int = Field(200, ge=0, description="Published: 8,000 (images: 5,000); at 16×112² for a GPU.")
    precision: Precision = FP32

    @model_validator(mode="after")
    def _above_least(self) -> Self:
        if self.lr_init is not None and self.lr_init < self.lr_min:
            raise ValueError(f"α stays above lr_min, {self.lr_min:g}, and cannot begin at {self.lr_init:g}: set both")
        return self

    @property
    def last_epoch(self) -> int:
        """Up to which trajectories are read."""
        return self.max_start_epoch - 1 + self.expert_epochs


PUBLISHED, PUBLISHED_ALPHA = 1e5, 1e-5
"""VDSD's rates for MiniUCF, IPC 1 (images: 1,000)."""


class TrajectoryParameters(MTTLossParameters, core.Steps):
    """VDSD's settings for MiniUCF, IPC 1, but for experts, iterations and steps."""

    pixels: ClassVar[float] = 0.1  # on the validation fifth of sprites far ahead of 0.01, of UCF101 level with 0.03
    init: Literal["real", "noise"] = "real"


class MTTParameters(TrajectoryParameters):
    """Those, and what codecs pay for."""

    rate: float = RATE


class MTT(Method):
    """Learn clips, and the student's learning rate, by matching trajectories (Eq. 1–4)."""

    version = 5  # since a cutout may lie at the far edge
    Parameters: ClassVar[type[TrajectoryParameters]] = MTTParameters

    def inputs(self, given: Given) -> dict[str, list[ArtifactRef]]:
        return super().inputs(given) | {"experts": expert_inputs(given, self.parameters)}

    def distil(self, material: Material) -> DistilledSet:
        parameters: MTTParameters = self.parameters
        start = sets.start_clips(material, parameters.init)
        learnt = {"clips": core.leaf(start.x_NCTHW)}
        optimiser = core.stepper(parameters.step, parameters.groups(learnt["clips"], PUBLISHED), parameters.momentum)
        in_range = sets.keep_in_range(material.clips, material.device)
        curve, facts = match_trajectories(
            material, start.labels_N, core.pixels, parameters, learnt, optimiser, in_range, parameters.rate
        )
        return sets.finished(material, start, learnt["clips"], curve, **facts)


def match_trajectories(
    material: Material, labels_N: NDArray[np.int64], clips_of: Parametrisation, parameters: MTTLossParameters,
    learnt: Learnt, optimiser: torch.optim.Optimizer, project: Callable[[Learnt], None] = lambda _learnt: None,
    rate: float = 0.0,
) -> tuple[Curve, dict[str, Any]]:  # fmt: skip
    """Minimise Eq. 2 over what is learnt and over α, which joins it as `lr`.

    Args:
        material: see `mtt_loss`.
        labels_N: the class of each clip of the set.
        clips_of: how clips are made from what is learnt.
        parameters: what is matched, and how long.
        learnt: leaves; α is added.
        optimiser: over them; α is added.
        project: keeps what is learnt where it must stay, but for α.
        rate: weight of the total variation of the clips that are learnt.

    Returns:
        The loss; α at the end and at each point of the loss, for the set's facts.
    """
    import torch

    expert = parameters.expert.read_to(parameters.last_epoch)
    adam = isinstance(optimiser, torch.optim.Adam)
    first = parameters.lr_init or max(parameters.lr_min, float(expert.lr or 0) * (0.3 if adam else 1))
    learnt["lr"] = core.leaf(torch.tensor(first, device=material.device.torch_device))
    lr_lr = core.rate(parameters.lr_lr, "adam" if adam else "published", first / 100, PUBLISHED_ALPHA)
    optimiser.add_param_group(
        {"params": [learnt["lr"]], "lr": lr_lr} | ({} if adam else {"momentum": parameters.momentum_lr})
    )
    alphas = torch.zeros(parameters.iterations)

    def all_in_place(tensors: Learnt) -> None:
        project(tensors)
        tensors["lr"].clamp_(min=parameters.lr_min)

    def loss(iteration: int, tensors: Learnt) -> Valued:
        alphas[iteration] = tensors["lr"].detach()
        return matching(iteration, tensors)

    matching = core.with_rate(mtt_loss(material, labels_N, clips_of, parameters), rate, material)
    loop = Loop(parameters.iterations, project=all_in_place, diverged=DIVERGED, memory=alphas)
    curve = core.optimise(learnt, loss, optimiser, material, loop)
    return curve, {"lr": float(learnt["lr"].detach()), "alpha": [float(alphas[step - 1]) for step in curve.steps]}


def expert_inputs(given: Given, parameters: MTTLossParameters) -> list[ArtifactRef]:
    """The experts' artifacts, each made by a job that is added here.

    Raises:
        RequestError: a start is allowed from which no target can be reached.
    """
    expert = parameters.expert.read_to(parameters.last_epoch)
    if expert.epochs is not None and parameters.last_epoch > expert.epochs:
        raise RequestError(
            f"The experts train {expert.epochs} epochs and trajectories are asked for up to epoch "
            f"{parameters.last_epoch}: raise expert.epochs, or lower max_start_epoch or expert_epochs."
        )
    return [given.add(job) for job in expert_jobs(given.train, expert, parameters.experts)]


def mtt_loss(
    material: Material, labels_N: NDArray[np.int64], clips_of: Parametrisation, parameters: MTTLossParameters
) -> Loss:
    """Eq. 2 for a random expert and start at each iteration; `learnt["lr"]` is α.

    Args:
        material: its artifacts `experts`; classes, seed, device.
        labels_N: the class of each clip of the set.
        clips_of: how clips are made from what is learnt.
        parameters: what is matched.
    """
    experts = Experts(material.inputs("experts"))
    clips = material.clips
    network = training.build_network(parameters.expert.network, len(clips.classes), clips.shape_THWC, material.seed)
    training.placed(network, material.device).train()

    def loss(iteration: int, learnt: Learnt) -> Valued:
        random = generator(material.seed, iteration, streams.EXPERT_START)
        expert, epoch = int(random.integers(len(experts))), int(random.integers(parameters.max_start_epoch))
        start, target = (
            list(unflat(experts.weights(expert, at), network).values())
            for at in (epoch, epoch + parameters.expert_epochs)
        )
        student = _Student(network, material, labels_N, clips_of, parameters, iteration, learnt)
        room = _room(material.device.torch_device)
        return sweep(student, start, target, learnt["lr"], parameters.syn_steps, parameters.gradient, room)

    return loss


def _room(device: torch.device) -> int:
    """Bytes for graphs that are kept."""
    import torch

    if device.type != "cuda":
        return KEPT_BYTES[device.type]
    whole = torch.cuda.get_device_properties(device).total_memory
    return min(KEPT_BYTES[device.type], int(GPU_SHARE * whole))


@dataclass(frozen=True)
class _Student:
    """ℓ_j: cross-entropy of the student on its batch of step j; dropout, augmentation and variants drawn from j.

    A few clips at a time: cross-entropy is a mean over clips, and so are its derivatives.
    """

    network: nn.Module
    material: Material
    labels_N: NDArray[np.int64]
    clips_of: Parametrisation
    parameters: MTTLossParameters
    iteration: int
    learnt: Learnt

    def slots(self, step: int) -> NDArray[np.int64]:
        """Shuffled epochs over the set; all of it, in order, where a batch holds it."""
        size = self.parameters.batch_syn or len(self.labels_N)
        if size >= len(self.labels_N):
            return np.arange(len(self.labels_N))
        seed = role_seed(self.material.seed, self.iteration, streams.STUDENT_ORDER)
        return training.Order(len(self.labels_N), size, seed).rows(step)

    def __call__(self, step: int, weights: Weights, fixed: bool) -> Iterator[tuple[Tensor, Part]]:
        import torch

        from vidistill.models.dropout import seed_dropout

        seed, slots_B = (self.material.seed, self.iteration, step), self.slots(step)
        seed_dropout(self.network, role_seed(*seed, streams.DROPOUT))
        draw = core.draws(*seed, streams.SET_VARIANTS)
        omega = dsa.draw(self.parameters.augmentation, self.material.clips.table.flips, *seed)
        named = dict(zip(dict(self.network.named_parameters()), weights, strict=True))
        size = core.at_once(self.network, self.material, len(slots_B))
        for own_B in (slots_B[first : first + size] for first in range(0, len(slots_B), size)):
            read = Part(self.learnt, fixed=fixed)
            x_BCTHW = dsa.apply(omega, self.clips_of(read, own_B, draw))
            with self.material.device.autocast():
                logits_BK = torch.func.functional_call(self.network, named, (x_BCTHW,))
            labels_B = torch.from_numpy(self.labels_N[own_B]).to(logits_BK.device)
            value = torch.nn.functional.cross_entropy(logits_BK.float(), labels_B, reduction="sum") / len(slots_B)
            yield value, read
