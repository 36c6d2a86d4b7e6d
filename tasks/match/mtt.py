"""MTT (Cazenavette et al. 2022): clips on which a student walks where experts walked on the real data.

The published code unrolls N steps and keeps the activations of all of them. Here only θ_0 … θ_N are kept, and the chain
rule is taken backwards one step at a time, each step's graph made anew. With λ_N = ∂L/∂θ_N and g_j = ∇_θ ℓ_j(θ_j, s):

    ∂L/∂s += −α (∂g_j/∂s)ᵀ λ_{j+1}     ∂L/∂α += −⟨g_j, λ_{j+1}⟩     λ_j = λ_{j+1} − α H_j λ_{j+1}

which is exact, and adds up over the clips of a batch, so that the graph of a few clips is held at a time. TESLA (Cui et
al. 2023) holds every θ_j fixed, i.e. λ_j = λ_N throughout: an approximation.

Shapes: B clips a batch, N clips of the set, C colours, T frames, H height, W width, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.experts import ExpertParameters, Experts, expert_jobs, unflat
from vidistill.tasks.learning.loop import Curve
from vidistill.tasks.learning.training import Precision, generator
from vidistill.tasks.match import core, dsa, sets
from vidistill.tasks.match.core import Learnt, Loop, Loss, Parametrisation, Valued
from vidistill.tasks.match.losses import trajectory_distance
from vidistill.tasks.methods import Given, Material, Method

if TYPE_CHECKING:
    from torch import Tensor, nn

Weights = Sequence["Tensor"]
StepLoss = Callable[[int, Weights, Weights], "Iterable[Tensor]"]
"""ℓ_j(θ, s) in parts that add up to it: from a step, the weights and what is learnt. Each part has a graph of its own,
made when it is asked for and freed before the next."""
Gradient = Literal["exact", "tesla"]


class MTTLossParameters(Parameters):
    """What MTT matches, and for how long: VDSD's settings (methods §3.2) except where it says otherwise."""

    expert: ExpertParameters = ExpertParameters()
    experts: int = Field(5, ge=1, description="Published: 30, of which the code only ever uses 10 (all are used here).")
    expert_epochs: int = Field(1, ge=1, description="M of Eq. 2, in epochs (images: 3).")
    max_start_epoch: int = Field(10, ge=1, description="T⁺: a start is drawn below it.")
    syn_steps: int = Field(10, ge=1, description="N of Eq. 2 (images: 20).")
    batch_syn: int | None = Field(None, ge=1, description="Clips a student's step; all of them by default.")
    augmentation: dsa.Strategy = Field("none", description="VDSD's code uses none; MTT on images uses DSA.")
    gradient: Gradient = Field("exact", description="tesla: TESLA's approximation, which holds every θ_j fixed.")
    lr_init: float = Field(0.01, gt=0, description="α, the student's learning rate, at the beginning.")
    lr_lr: float = Field(1e-5, ge=0, description="The rate at which α is learned.")
    lr_min: float = Field(0.001, gt=0, description="α stays above it.")
    iterations: int = Field(200, ge=0, description="Published: 8,000 (images: 5,000); 200 fit two cores.")
    momentum: float = Field(0.5, ge=0, lt=1, description="Of all that is learned.")


class MTTParameters(MTTLossParameters):
    """Learning rates are VDSD's for MiniUCF, IPC 1."""

    lr: float = Field(1e5, gt=0, description="Of the pixels, in standard deviations (images: 1,000).")
    init: Literal["real", "noise"] = "real"
    rate: float = Field(
        0.0,
        ge=0,
        exclude_if=lambda rate: not rate,
        description="Of the clips' total variation, which codecs pay for.",
    )
    precision: Precision = "auto"


class MTT(Method):
    """Learn clips, and the student's learning rate, by matching trajectories (Eq. 1–4)."""

    Parameters = MTTParameters

    def inputs(self, given: Given) -> dict[str, list[ArtifactRef]]:
        return super().inputs(given) | {"experts": expert_inputs(given, self.parameters)}

    def distil(self, material: Material) -> DistilledSet:
        parameters: MTTParameters = self.parameters
        start = sets.start_clips(material, parameters.init)
        learnt = {"clips": core.leaf(start.x_NCTHW)}
        groups = [{"params": [learnt["clips"]], "lr": parameters.lr}]
        in_range = sets.keep_in_range(material.clips, material.device)
        curve = match_trajectories(
            material, start.labels_N, core.pixels, parameters, learnt, groups, in_range, parameters.rate
        )
        return sets.finished(material, start, learnt["clips"], curve, lr=float(learnt["lr"].detach()))


def match_trajectories(
    material: Material, labels_N: NDArray[np.int64], clips_of: Parametrisation, parameters: MTTLossParameters,
    learnt: Learnt, groups: list[dict[str, Any]], project: Callable[[Learnt], None] = lambda _learnt: None,
    rate: float = 0.0,
) -> Curve:  # fmt: skip
    """Minimise Eq. 2 by SGD over what is learnt and over α, which joins it as `lr`.

    Args:
        material: see `mtt_loss`.
        labels_N: the class of each clip of the set.
        clips_of: how clips are made from what is learnt.
        parameters: what is matched, and how long.
        learnt: leaves; α is added.
        groups: the optimiser's, but for α's.
        project: keeps what is learnt where it must stay, but for α.
        rate: weight of the total variation of the clips that are learnt.
    """
    import torch

    learnt["lr"] = core.leaf(torch.tensor(parameters.lr_init, device=material.device.torch_device))
    groups = [*groups, {"params": [learnt["lr"]], "lr": parameters.lr_lr}]
    sgd = torch.optim.SGD(groups, momentum=parameters.momentum)

    def all_in_place(tensors: Learnt) -> None:
        project(tensors)
        tensors["lr"].clamp_(min=parameters.lr_min)

    loss = core.with_rate(mtt_loss(material, labels_N, clips_of, parameters), rate)
    return core.optimise(learnt, loss, sgd, material, Loop(parameters.iterations, project=all_in_place))


def expert_inputs(given: Given, parameters: MTTLossParameters) -> list[ArtifactRef]:
    """The experts' artifacts, each made by a job that is added here.

    Raises:
        RequestError: a start is allowed from which no target can be reached.
    """
    last = parameters.max_start_epoch - 1 + parameters.expert_epochs
    if last > parameters.expert.epochs:
        raise RequestError(
            f"The experts train {parameters.expert.epochs} epochs and trajectories are asked for up to epoch {last}: "
            "raise expert.epochs, or lower max_start_epoch or expert_epochs."
        )
    return [given.add(job) for job in expert_jobs(given.train, parameters.expert, parameters.experts)]


@dataclass(frozen=True)
class Swept:
    """L of Eq. 2 and its gradients by what is learnt and by α."""

    loss: Tensor
    learnt: tuple[Tensor, ...]
    lr: Tensor


def sweep(
    step_loss: StepLoss, start: Weights, target: Weights, learnt: Weights, lr: Tensor, steps: int,
    gradient: Gradient = "exact",
) -> Swept:  # fmt: skip
    """N steps of θ_{j+1} = θ_j − α g_j (Eq. 3–4), and the gradients of Eq. 2 by going back over them one at a time.

    Memory: N + 1 copies of the weights and the graph of one part of one step, whatever N.

    Args:
        step_loss: ℓ_j; called twice for each j, and must answer the same both times.
        start: θ*_t.
        target: θ*_{t+M}.
        learnt: s, tensors.
        lr: α, a scalar.
        steps: N.
        gradient: `exact`, or `tesla`.
    """
    import torch

    constants, rate = [tensor.detach() for tensor in learnt], float(lr.detach())
    path = [_leaves(start)]
    for step in range(steps):
        moved = [theta.detach().clone() for theta in path[-1]]
        for part in step_loss(step, path[-1], constants):
            _descend(moved, torch.autograd.grad(part, path[-1]), rate)
        path.append(_leaves(moved))
    loss = trajectory_distance(path[-1], target, start)
    adjoint = list(torch.autograd.grad(loss, path[-1]))
    total, total_lr = [torch.zeros_like(tensor) for tensor in learnt], torch.zeros_like(lr)
    leaves = _leaves(learnt)
    path.pop()
    for step in reversed(range(steps)):
        theta, before = path.pop(), [a.clone() for a in adjoint]
        for part in step_loss(step, theta, leaves):
            g = torch.autograd.grad(part, theta, create_graph=True)
            total_lr -= _dot(g, adjoint)
            by = leaves if gradient == "tesla" else [*leaves, *theta]
            products = torch.autograd.grad(g, by, adjoint, allow_unused=True, materialize_grads=True)
            _descend(total, products[: len(leaves)], rate)
            _descend(before, products[len(leaves) :], rate)
        adjoint = before
    return Swept(loss.detach(), tuple(total), total_lr)


def _descend(tensors: Sequence[Tensor], by: Sequence[Tensor], rate: float) -> None:
    """One step of size `rate` along −`by`, in place, for as many tensors as `by` has."""
    for tensor, direction in zip(tensors, by, strict=False):
        tensor.sub_(direction, alpha=rate)


def _dot(one: Weights, other: Weights) -> Tensor:
    return sum(((a.detach() * b).sum() for a, b in zip(one, other, strict=True)), start=one[0].new_zeros(()))


def _leaves(tensors: Weights) -> list[Tensor]:
    return [tensor.detach().requires_grad_(True) for tensor in tensors]


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
        names = [name for name in learnt if name != "lr"]
        student = _Student(network, material, labels_N, clips_of, parameters, iteration, names)
        tensors = [learnt[name] for name in names]
        swept = sweep(student, start, target, tensors, learnt["lr"], parameters.syn_steps, parameters.gradient)
        return swept.loss, dict(zip(names, swept.learnt, strict=True)) | {"lr": swept.lr}

    return loss


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
    names: list[str]

    def slots(self, step: int) -> NDArray[np.int64]:
        """Shuffled epochs over the set; all of it, in order, where a batch holds it."""
        size = self.parameters.batch_syn or len(self.labels_N)
        if size >= len(self.labels_N):
            return np.arange(len(self.labels_N))
        seed = int(generator(self.material.seed, self.iteration, streams.STUDENT_ORDER).integers(2**31))
        return training.Order(len(self.labels_N), size, seed).rows(step)

    def __call__(self, step: int, weights: Weights, learnt: Weights) -> Iterator[Tensor]:
        import torch

        from vidistill.models.dropout import seed_dropout

        seed, slots_B = (self.material.seed, self.iteration, step), self.slots(step)
        seed_dropout(self.network, int(generator(*seed, streams.DROPOUT).integers(2**31)))
        random = generator(*seed, streams.SET_VARIANTS)
        omega = dsa.draw(self.parameters.augmentation, self.material.clips.table.flips, *seed)
        named = dict(zip(dict(self.network.named_parameters()), weights, strict=True))
        tensors = dict(zip(self.names, learnt, strict=True))
        size = core.at_once(self.network, self.material, len(slots_B))
        for own_B in (slots_B[first : first + size] for first in range(0, len(slots_B), size)):
            x_BCTHW = dsa.apply(omega, self.clips_of(tensors, own_B, random))
            with self.material.device.autocast():
                logits_BK = torch.func.functional_call(self.network, named, (x_BCTHW,))
            labels_B = torch.from_numpy(self.labels_N[own_B]).to(logits_BK.device)
            yield torch.nn.functional.cross_entropy(logits_BK.float(), labels_B, reduction="sum") / len(slots_B)
