"""The loop of the matching methods, and what their losses share: fresh networks, clips a pass, gradients in parts.

A method learns a dict of tensors (pixels, memories, a learning rate). A *parametrisation* turns it into clips, a *loss*
into a number and its gradients; `optimise` does the rest. Every draw is a function of (seed, iteration, class).

Shapes: B clips a batch, N clips of the set, C colours, T frames, H height, W width, K classes, P parameters.
`x_BCTHW` is float32 and normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.loop import Curve, State, Stateful, run, stopped
from vidistill.tasks.learning.pixels import total_variation
from vidistill.tasks.learning.training import generator
from vidistill.tasks.methods import Material

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Learnt = dict[str, "Tensor"]
Valued = tuple["Tensor", Learnt]
"""A loss and its gradients by what is learnt; what it does not depend on may be left out."""
Loss = Callable[[int, Learnt], Valued]
"""From an iteration and what is learnt: `differentiated` for a scalar, `add_gradients` for parts that add up."""

AT_ONCE, PIXELS_AT_ONCE = {"cpu": 8, "cuda": 256}, 8 * 8 * 56 * 56
"""Clips a pass: no graph holds the whole set, and on a CPU few clips stay in its caches (MiniC3D's embedding in bf16 at
8×56×56, one thread: 3.9 ms a clip by eights, 5.3 ms by sixty-fours). Smaller clips go together until they are as many
pixels: a pass costs the weights once (a step of MTT on 10 clips of 8×32×32: 320 ms in one pass, 430 ms as 8 and 2)."""


class Parametrisation(Protocol):
    """How clips are made from what is learnt."""

    def __call__(self, learnt: Learnt, slots_B: NDArray[np.int64], random: np.random.Generator) -> Tensor:
        """x_BCTHW of these clips of the set; `random` is for those that have variants."""
        ...


def pixels(learnt: Learnt, slots_B: NDArray[np.int64], random: np.random.Generator) -> Tensor:  # noqa: ARG001
    """The parametrisation of the methods that learn `clips` themselves."""
    import torch

    x_NCTHW = learnt["clips"]
    every = len(slots_B) == len(x_NCTHW) and bool((np.diff(slots_B) == 1).all())
    return x_NCTHW if every else x_NCTHW[torch.from_numpy(slots_B).to(x_NCTHW.device)]


def leaf(tensor: Tensor) -> Tensor:
    """A copy that can be learnt."""
    return tensor.detach().clone().requires_grad_(True)


def fresh_network(material: Material, name: str, iteration: int, *, weights_learn: bool = False) -> nn.Module:
    """A network as it is initialised, another one for each iteration; in evaluation mode (no dropout)."""
    seed = int(generator(material.seed, iteration, streams.FRESH_NETWORK).integers(2**31))
    clips = material.clips
    network = training.build_network(name, len(clips.classes), clips.shape_THWC, seed)
    return training.settled(network, material.device).requires_grad_(weights_learn)


def a_pass(material: Material, size: int) -> int:
    """How many of `size` clips go through a network together, so that all passes but the last are of one size."""
    frames, height, width, _ = material.clips.shape_THWC
    wanted = max(AT_ONCE[material.device.torch_device.type], PIXELS_AT_ONCE // (frames * height * width))
    return math.ceil(size / max(1, round(size / wanted)))


def at_once(network: nn.Module, material: Material, size: int) -> int:
    """The same, but all of them where the network takes statistics over a batch."""
    over_batch = network.training and any("running_mean" in name for name, _ in network.named_buffers())
    return size if over_batch else a_pass(material, size)


def differentiated(value: Tensor, learnt: Learnt) -> Valued:
    """A scalar with its gradients by what is learnt."""
    import torch

    moved = [name for name, tensor in learnt.items() if tensor.requires_grad]
    found = torch.autograd.grad(value, [learnt[name] for name in moved], allow_unused=True)
    return value.detach(), {name: one for name, one in zip(moved, found, strict=True) if one is not None}


def add_gradients(gradients: Learnt, value: Tensor, learnt: Learnt) -> None:
    """Add those of a part of the loss, so that no graph of the whole is ever held."""
    for name, gradient in differentiated(value, learnt)[1].items():
        gradients[name] = gradients[name] + gradient if name in gradients else gradient


def with_rate(loss: Loss, rate: float) -> Loss:
    """The loss and `rate` times the total variation of the clips that are learnt."""

    def both(iteration: int, learnt: Learnt) -> Valued:
        value, gradients = loss(iteration, learnt)
        variation = rate * total_variation(learnt["clips"])
        add_gradients(gradients, variation, learnt)
        return value + variation.detach(), gradients

    return both if rate else loss


@dataclass(frozen=True)
class Loop:
    """How `optimise` goes about it.

    Attributes:
        iterations: steps of the optimiser.
        checkpoint_every: iterations between checkpoints; by default a twentieth of all.
        project: called after each step, without gradients: keeps what is learnt where it must stay.
        schedule: the share of each group's learning rate at an iteration.
        memory: what else must be kept to resume, beside what is learnt and the optimiser: a pool of networks, say.
    """

    iterations: int
    checkpoint_every: int | None = None
    project: Callable[[Learnt], None] = lambda _learnt: None
    schedule: Callable[[int], float] = lambda _iteration: 1.0
    memory: Stateful | None = None


def optimise(learnt: Learnt, loss: Loss, optimiser: torch.optim.Optimizer, material: Material, loop: Loop) -> Curve:
    """Minimise `loss` in place over the tensors of `learnt`, from the last checkpoint if there is one.

    Args:
        learnt: leaves; those that ask for no gradient are kept and not moved.
        loss: see `Loss`.
        optimiser: over tensors of `learnt`.
        material: checkpoints and progress.
        loop: see `Loop`.

    Returns:
        The loss, averaged over each fiftieth of the run.

    Raises:
        RunError: the loss diverges or something is not finite; the last good checkpoint stays.
    """
    import torch

    rates = [group["lr"] for group in optimiser.param_groups]
    memory = {} if loop.memory is None else {"memory": loop.memory}
    state: State = {"optimiser": optimiser, **{f"learnt.{name}": one for name, one in learnt.items()}, **memory}

    def step(iteration: int) -> float:
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * loop.schedule(iteration)
        value, gradients = loss(iteration, learnt)
        for name, tensor in learnt.items():
            tensor.grad = gradients.get(name)
        optimiser.step()
        with torch.no_grad():
            loop.project(learnt)
        for name, tensor in learnt.items():
            if math.isfinite(value) and not bool(tensor.isfinite().all()):
                raise stopped(f"The learnt {name} are no longer finite", iteration, state)
        return float(value)

    return run(step, loop.iterations, state, material, every=loop.checkpoint_every or max(1, loop.iterations // 20))
