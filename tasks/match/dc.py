"""DC (Zhao, Mopuri and Bilen 2021): clips that pull a network the way the real clips of their class do.

Shapes: B clips a batch, N clips of the set, C colours, T frames, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.distilled import DistilledSet
from vidistill.tasks.learning import streams
from vidistill.tasks.learning.loop import Curve
from vidistill.tasks.learning.training import Order, Precision, role_seed
from vidistill.tasks.match import core, dsa, sets
from vidistill.tasks.match.core import Learnt, Loop, Loss, Parametrisation, Part, Valued
from vidistill.tasks.match.losses import gradient_distance
from vidistill.tasks.match.real import RealClips
from vidistill.tasks.methods import Material, Method

if TYPE_CHECKING:
    from torch import Tensor, nn

LOOPS = {1: (1, 1), 5: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""(outer, inner) by instances a class, as published; VDSD's code adds the line for 5."""
PUBLISHED = 0.1
"""The rate for images; for clips none is known."""


class DCParameters(core.Steps):
    """What DC compares (methods §3.4), and how long: as published for images; for clips no settings are."""

    batch_real: int = Field(64, ge=1, description="Real clips a class and step (published: 256).")
    lr_net: float = Field(0.01, gt=0, description="Of the network, which trains on the set between steps.")
    outer: int | None = Field(None, ge=1, description="Steps before the network is made anew; by default from ipc.")
    inner: int | None = Field(None, ge=1, description="The network's own epochs after each; by default from ipc.")
    batch_train: int = Field(256, ge=1, description="Clips a step of these epochs.")
    augmentation: dsa.Strategy = Field("none", description="dsa makes this DSA.")
    network: core.Fresh = Field("minic3d", description="A fresh one for each `outer` steps.")
    iterations: int = Field(
        100, ge=0, description="Fresh networks (published: 1,000); 100 fit two cores below ten clips a class."
    )
    init: Literal["real", "noise"] = Field("real", description="Published: noise; real is what the other methods use.")
    precision: Precision = "auto"

    def loops(self, ipc: int) -> tuple[int, int]:
        """(outer, inner) for a budget: the published line at or below it, unless they are set."""
        outer, inner = LOOPS[max(known for known in LOOPS if known <= ipc)]
        return self.outer or outer, self.inner or inner


class DC(Method):
    """Learn clips by matching the gradients of their class."""

    version = 4  # since a cutout may lie at the far edge
    Parameters = DCParameters

    def distil(self, material: Material) -> DistilledSet:
        parameters: DCParameters = self.parameters
        start = sets.start_clips(material, parameters.init)
        learnt = {"clips": core.leaf(start.x_NCTHW)}
        real = RealClips(material.clips, material.seed, material.device)
        curve = matched(
            material, learnt, start.labels_N, parameters,
            lambda number: core.fresh_network(material, parameters.network, number, weights_learn=True),
            lambda step, label: real.batch(step, [label], parameters.batch_real)[0],
        )  # fmt: skip
        return sets.finished(material, start, learnt["clips"], curve)


def matched(
    material: Material, learnt: Learnt, labels_N: NDArray[np.int64], parameters: DCParameters,
    network_of: Callable[[int], nn.Module], real_of: Callable[[int, int], Tensor],
) -> Curve:  # fmt: skip
    """Learn clips by `dc_loss`, with as many networks as there are iterations, of `outer` steps each.

    Checkpoints fall where a network is made anew, and need not hold it.
    """
    outer, _ = parameters.loops(material.ipc)
    optimiser = core.stepper(parameters.step, parameters.groups(learnt["clips"], PUBLISHED), parameters.momentum)
    loop = Loop(
        parameters.iterations * outer,
        checkpoint_every=outer * max(1, parameters.iterations // 20),
        project=sets.keep_in_range(material.clips, material.device),
    )
    loss = dc_loss(material, labels_N, core.pixels, parameters, network_of, real_of)
    return core.optimise(learnt, loss, optimiser, material, loop)


def dc_loss(
    material: Material, labels_N: NDArray[np.int64], clips_of: Parametrisation, parameters: DCParameters,
    network_of: Callable[[int], nn.Module], real_of: Callable[[int, int], Tensor],
) -> Loss:  # fmt: skip
    """Algorithm 1, its matching step: Σ over classes of the distance between real and synthetic gradients.

    One class at a time, so that memory does not grow with the number of classes.

    Args:
        material: classes, seed, device.
        labels_N: the class of each clip of the set.
        clips_of: how clips are made from what is learnt.
        parameters: what is compared.
        network_of: the network of this number, its weights learning.
        real_of: real clips of (step, class).
    """
    outer, _ = parameters.loops(material.ipc)
    slots = {label: np.flatnonzero(labels_N == label) for label in material.labels}
    network: nn.Module

    def loss(step: int, learnt: Learnt) -> Valued:
        import torch

        nonlocal network
        number, place = divmod(step, outer)
        if place == 0:
            network = network_of(number)
        else:
            _train(network, material, labels_N, clips_of, learnt, parameters, step)
        total, gradients = torch.zeros((), device=material.device.torch_device), Learnt()
        for label, slots_B in slots.items():
            omega = dsa.draw(parameters.augmentation, material.clips.table.flips, material.seed, step, label)
            real = _real_gradients(network, dsa.apply(omega, real_of(step, label)), label, material)
            part = Part(learnt)
            x_BCTHW = clips_of(part, slots_B, core.draws(material.seed, step, streams.SET_VARIANTS))
            synthetic = _gradients(network, dsa.apply(omega, x_BCTHW), label, material, create_graph=True)
            total += part.differentiate(gradient_distance(real, synthetic), gradients)
        return total, gradients

    return loss


def _gradients(
    network: nn.Module, x_BCTHW: Tensor, label: int, material: Material, *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """∇_θ of the cross-entropy of clips of one class."""
    import torch

    with material.device.autocast():
        logits_BK = network(x_BCTHW)
    labels_B = torch.full((len(x_BCTHW),), label, device=logits_BK.device)
    value = torch.nn.functional.cross_entropy(logits_BK.float(), labels_B)
    return torch.autograd.grad(value, list(network.parameters()), create_graph=create_graph)


def _real_gradients(network: nn.Module, x_BCTHW: Tensor, label: int, material: Material) -> list[Tensor]:
    """The same for real clips, a few at a time: a mean over clips adds up."""
    import torch

    total = [torch.zeros_like(weight) for weight in network.parameters()]
    for part in torch.split(x_BCTHW, core.a_pass(material, len(x_BCTHW))):
        gradients = _gradients(network, part, label, material)
        for kept, gradient in zip(total, gradients, strict=True):
            kept.add_(gradient, alpha=len(part) / len(x_BCTHW))
    return total


def _train(
    network: nn.Module, material: Material, labels_N: NDArray[np.int64], clips_of: Parametrisation, learnt: Learnt,
    parameters: DCParameters, step: int,
) -> None:  # fmt: skip
    """`inner` epochs of the network on the set as it is now, in shuffled batches (Algorithm 1, the last update).

    Where the matching is augmented every clip here is too, by an ω of its own.
    """
    import torch

    _, inner = parameters.loops(material.ipc)
    flips = material.clips.table.flips
    order = Order(len(labels_N), parameters.batch_train, role_seed(material.seed, step, streams.DC_INNER))
    weights = list(network.parameters())
    for turn in range(inner * order.steps_an_epoch):
        draw = core.draws(material.seed, step, turn, streams.DC_INNER)
        slots_B, gradients = np.sort(order.rows(turn)), [torch.zeros_like(weight) for weight in weights]
        for own_B in core.passes(material, slots_B):
            x_BCTHW = clips_of(Part(learnt, fixed=True), own_B, draw)
            omegas = [
                dsa.draw(parameters.augmentation, flips, material.seed, step, turn, slot) for slot in own_B.tolist()
            ]
            shown = [dsa.apply(omega, x) for omega, x in zip(omegas, torch.split(x_BCTHW, 1), strict=True)]
            with material.device.autocast():
                logits_BK = network(torch.cat(shown))
            labels_B = torch.from_numpy(labels_N[own_B]).to(logits_BK.device)
            value = torch.nn.functional.cross_entropy(logits_BK.float(), labels_B, reduction="sum") / len(slots_B)
            for total, gradient in zip(gradients, torch.autograd.grad(value, weights), strict=True):
                total += gradient
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(gradient, alpha=parameters.lr_net)
