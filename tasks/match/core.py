"""The loop of the matching methods, and what their losses share: fresh networks, clips a pass, gradients in parts.

A method learns a dict of tensors (pixels, memories, a learning rate). A *parametrisation* turns it into clips, a *loss*
into a number and its gradients; `optimise` does the rest. Every draw is a function of (seed, iteration, class or clip),
views and flips of real clips of the classes that are drawn together, never of the clips that share a pass, of which a
GPU takes more.

Shapes: B clips a batch, N clips of the set, C colours, T frames, H height, W width, K classes, P parameters.
`x_BCTHW` is float32 and normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from vidistill.models import BATCH_NORMED, parted
from vidistill.storage.parameters import Parameters
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.loop import DIVERGED, Curve, State, Stateful, run, stopped
from vidistill.tasks.learning.pixels import total_variation
from vidistill.tasks.learning.training import generator, role_seed
from vidistill.tasks.methods import Material

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Learnt = dict[str, "Tensor"]
Group = dict[str, Any]
"""Of an optimiser's parameters."""
Valued = tuple["Tensor", Learnt]
"""A loss and its gradients by what is learnt; what it does not depend on may be left out."""
Loss = Callable[[int, Learnt], Valued]
"""From an iteration and what is learnt: `differentiated` for a scalar, `Part.differentiate` for parts that add up."""

Step = Literal["adam", "published"]
PIXELS, WEIGHTS = 0.01, 1e-3
"""How far Adam moves what is learnt an iteration: pixels in standard deviations, and the weights of small layers.

On the validation fifth (8×32², one clip a class) 0.01 and 0.03 left DM and MTT no worse than their start on sprites,
after 5 iterations and after 50, and on ten classes of UCF101 0.01 is ahead of 0.03 for DM and FRePo (the preset
`matching_rates`). The published rates are those of one size and of thousands of iterations."""

AT_ONCE, PIXELS_AT_ONCE = 8, {"cpu": 8 * 8 * 56 * 56, "cuda": 256 * 8 * 56 * 56}
"""Clips a pass: no graph holds the whole set, and on a CPU few clips stay in its caches (MiniC3D's embedding in bf16 at
8×56×56, one thread: 3.9 ms a clip by eights, 5.3 ms by sixty-fours). Smaller clips go together until they are as many
pixels: a pass costs the weights once (a step of MTT on 10 clips of 8×32×32: 320 ms in one pass, 430 ms as 8 and 2)."""


Draw = Callable[[int], np.random.Generator]
"""What a variant is drawn by, from the number of its clip or class."""


def draws(*seed: int) -> Draw:
    """Those of a use of the set: of (seed, iteration, …, stream)."""
    *first, stream = seed
    return lambda number: generator(*first, number, stream)


class Parametrisation(Protocol):
    """How clips are made from what is learnt."""

    def __call__(self, part: Part, slots_B: NDArray[np.int64], draw: Draw) -> Tensor:
        """x_BCTHW of these clips of the set; `draw` is for those that have variants."""
        ...


class Part:
    """What is learnt, as one part of a loss reads it: of what it did not read no gradient is made.

    Args:
        learnt: all of it.
        fixed: whether it is read as a constant.
    """

    def __init__(self, learnt: Learnt, *, fixed: bool = False) -> None:
        self._learnt, self._fixed = learnt, fixed
        self._places: list[tuple[str, Any]] = []
        self.leaves: list[Tensor] = []

    def __getitem__(self, name: str) -> Tensor:
        """The whole of a tensor."""
        return self._leaf(name, ...)

    def rows(self, name: str, rows_B: NDArray[np.int64]) -> Tensor:
        """Rows of a tensor, none of them twice; a run of them is not copied."""
        import torch

        run = bool((np.diff(rows_B) == 1).all())
        place = slice(int(rows_B[0]), int(rows_B[-1]) + 1) if run else torch.from_numpy(rows_B)
        return self._leaf(name, place)

    def _leaf(self, name: str, place: Any) -> Tensor:
        tensor = self._learnt[name]
        leaf = tensor.detach()[place].requires_grad_(tensor.requires_grad and not self._fixed)
        if leaf.requires_grad:
            self._places.append((name, place))
            self.leaves.append(leaf)
        return leaf

    def add(self, found: Sequence[Tensor | None], totals: Learnt, share: float = 1.0) -> None:
        """Add `share` of what was found for the leaves, in their order, to the totals by name."""
        import torch

        for (name, place), one in zip(self._places, found, strict=True):
            if one is not None:
                if name not in totals:
                    totals[name] = torch.zeros_like(self._learnt[name])
                totals[name][place] += share * one

    def differentiate(self, value: Tensor, totals: Learnt) -> Tensor:
        """Add the gradients of a part of a loss, so that no graph of the whole is ever held; the part as a constant."""
        import torch

        self.add(torch.autograd.grad(value, self.leaves, allow_unused=True), totals)
        return value.detach()


def pixels(part: Part, slots_B: NDArray[np.int64], draw: Draw) -> Tensor:  # noqa: ARG001
    """The parametrisation of the methods that learn `clips` themselves."""
    return part.rows("clips", slots_B)


def leaf(tensor: Tensor) -> Tensor:
    """A copy that can be learnt."""
    return tensor.detach().clone().requires_grad_(True)


def _never_trained(name: str) -> str:
    if parted(name)[1] in BATCH_NORMED:
        raise ValueError("its batch norm has no statistics while it is not trained; take r2plus1d_small_in or minic3d")
    return name


Fresh = Annotated[str, AfterValidator(_never_trained)]
"""A network that is used as it is initialised, clip by clip: batch norm would be the identity there."""


def fresh_network(material: Material, name: str, iteration: int, *, weights_learn: bool = False) -> nn.Module:
    """A network as it is initialised, another one for each iteration; in evaluation mode (no dropout)."""
    seed = role_seed(material.seed, iteration, streams.FRESH_NETWORK)
    clips = material.clips
    network = training.build_network(name, len(clips.classes), clips.shape_THWC, seed)
    return training.settled(network, material.device).requires_grad_(weights_learn)


def a_pass(material: Material, size: int) -> int:
    """How many of `size` clips go through a network together, so that all passes but the last are of one size."""
    frames, height, width, _ = material.clips.shape_THWC
    wanted = max(AT_ONCE, PIXELS_AT_ONCE[material.device.torch_device.type] // (frames * height * width))
    return math.ceil(size / max(1, round(size / wanted)))


def passes(material: Material, slots_B: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """These clips of the set, as many at a time as go through a network together."""
    return np.array_split(slots_B, math.ceil(len(slots_B) / a_pass(material, len(slots_B))))


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


class Steps(Parameters):
    """How the pixels move."""

    step: Step = Field("adam", description="published: SGD, at the rates of the paper's size and iterations.")
    pixels: ClassVar[float] = PIXELS
    lr: float | None = Field(
        None,
        gt=0,
        description="In standard deviations, an iteration by Adam; by default 0.01, of trajectories 0.1, or the "
        "published rate.",
    )
    momentum: float = Field(0.5, ge=0, lt=1, description="Of SGD.")

    def groups(self, clips: Tensor, published: float) -> list[Group]:
        """The optimiser's, of pixels alone."""
        return [{"params": [clips], "lr": rate(self.lr, self.step, self.pixels, published)}]


def rate(asked: float | None, step: Step, adam: float, published: float) -> float:
    """The rate that is asked for, or else that of the step."""
    return asked if asked is not None else adam if step == "adam" else published


def stepper(step: Step, groups: list[Group], momentum: float) -> torch.optim.Optimizer:
    """Adam, whose steps are as large as its rate whatever the size of clips and gradients, or SGD."""
    import torch

    return torch.optim.Adam(groups, eps=1e-15) if step == "adam" else torch.optim.SGD(groups, momentum=momentum)


def with_rate(loss: Loss, rate: float, material: Material) -> Loss:
    """The loss and `rate` times the total variation of the clips that are learnt."""

    def both(iteration: int, learnt: Learnt) -> Valued:
        value, gradients = loss(iteration, learnt)
        count = len(learnt["clips"])
        for slots_B in passes(material, np.arange(count)):
            part = Part(learnt)
            share = len(slots_B) / count
            variation = total_variation(part.rows("clips", slots_B))
            value = value + part.differentiate(rate * share * variation, gradients)
        return value, gradients

    return both if rate else loss


@dataclass(frozen=True)
class Loop:
    """How `optimise` goes about it.

    Attributes:
        iterations: steps of the optimiser.
        checkpoint_every: iterations between checkpoints; by default a twentieth of all.
        project: called after each step, without gradients: keeps what is learnt where it must stay.
        schedule: a group's learning rate at an iteration, from that and its first rate.
        diverged: the loss may grow to so many times the largest of its first ten values.
        memory: what else must be kept to resume, beside what is learnt and the optimiser: a pool of networks, say.
    """

    iterations: int
    checkpoint_every: int | None = None
    project: Callable[[Learnt], None] = lambda _learnt: None
    schedule: Callable[[int, float], float] = lambda _iteration, rate: rate
    diverged: float = DIVERGED
    memory: Stateful | Tensor | None = None


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
            group["lr"] = loop.schedule(iteration, rate)
        value, gradients = loss(iteration, learnt)
        for name, tensor in learnt.items():
            tensor.grad = gradients.pop(name, None)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            loop.project(learnt)
        for name, tensor in learnt.items():
            if math.isfinite(value) and not math.isfinite(tensor.detach().sum()):
                raise stopped(f"The learnt {name} are no longer finite", iteration, state)
        return float(value)

    every = loop.checkpoint_every or max(1, loop.iterations // 20)
    return run(step, loop.iterations, state, material, every=every, diverged=loop.diverged)
