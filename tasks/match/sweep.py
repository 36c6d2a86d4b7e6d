"""The gradient of MTT's Eq. 2: back over the student's steps one at a time.

The published code unrolls N steps and keeps the activations of all of them. Here only θ_0 … θ_N are kept, and the chain
rule is taken backwards one step at a time, each step's graph made anew. With λ_N = ∂L/∂θ_N and g_j = ∇_θ ℓ_j(θ_j, s):

    ∂L/∂s += −α (∂g_j/∂s)ᵀ λ_{j+1}     ∂L/∂α += −⟨g_j, λ_{j+1}⟩     λ_j = λ_{j+1} − α H_j λ_{j+1}

which is exact, and adds up over the clips of a batch, so that the graph of a few clips is held at a time. TESLA (Cui et
al. 2023) holds every θ_j fixed, i.e. λ_j = λ_N throughout: an approximation.

Shapes: B clips a batch, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

from vidistill.tasks.match.core import Part, Valued
from vidistill.tasks.match.losses import trajectory_distance

if TYPE_CHECKING:
    from torch import Tensor

Weights = Sequence["Tensor"]
StepLoss = Callable[[int, Weights, bool], "Iterable[tuple[Tensor, Part]]"]
"""ℓ_j(θ, s) in parts that add up to it, each with what it read of s: from a step, the weights, and whether s is a
constant. Each part has a graph of its own, made when it is asked for."""
Gradient = Literal["exact", "tesla"]


class Room:
    """How many bytes the graphs that are kept may still take."""

    def __init__(self, left: int) -> None:
        self.left = left
        self._counted: set[int] = set()

    def counted(self, kept: Weights) -> Any:
        """A context: what graphs that are made in it save takes room, but for these weights, which stay anyway."""
        import torch

        self._counted |= {weight.untyped_storage().data_ptr() for weight in kept}
        return torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._counted:
            self._counted.add(storage.data_ptr())
            self.left -= storage.nbytes()
        return tensor.detach()  # with its own history it would hold the graph that holds it, and neither be freed


Graph = tuple[Weights, "Part"]
"""g of a part of ℓ_j, with the graph by which it is differentiated, and what the part read."""


def sweep(
    step_loss: StepLoss, start: Weights, target: Weights, lr: Tensor, steps: int, gradient: Gradient = "exact",
    room: int = 0,
) -> Valued:  # fmt: skip
    """N steps of θ_{j+1} = θ_j − α g_j (Eq. 3–4), and the gradients of Eq. 2 by going back over them one at a time.

    Memory: N + 1 copies of the weights, `room` and the graph of one part of one step, whatever N.

    Args:
        step_loss: ℓ_j; called twice for a j whose graphs have no room, and must answer the same both times.
        start: θ*_t.
        target: θ*_{t+M}.
        lr: α, a scalar.
        steps: N.
        gradient: `exact`, or `tesla`.
        room: bytes of graphs of steps that may be kept until they are differentiated.

    Returns:
        L of Eq. 2, and its gradients by what is learnt, α among it as `lr`.
    """
    import torch

    rate, path, kept, left = float(lr.detach()), [_leaves(start)], dict[int, list[Graph]](), Room(room)
    for step in range(steps):
        theta, moved, fits = path[-1], [weight.detach().clone() for weight in path[-1]], left.left > 0
        graphs: list[Graph] = []
        with left.counted(theta) if fits else nullcontext():
            for part, read in step_loss(step, theta, not fits):
                descent = torch.autograd.grad(part, theta, create_graph=fits)
                _descend(moved, descent, rate)
                fits = fits and left.left > 0
                graphs = [*graphs, (descent, read)] if fits else []
        if fits:
            kept[step] = graphs
        path.append(_leaves(moved))
    loss = trajectory_distance(path[-1], target, start)
    adjoint = list(torch.autograd.grad(loss, path.pop()))
    totals = {"lr": torch.zeros_like(lr)}
    for step in reversed(range(steps)):
        theta, before = path.pop(), [a.clone() for a in adjoint]
        for g, read in kept.pop(step, None) or _graphs(step_loss, step, theta):
            totals["lr"] -= _dot(g, adjoint)
            by = read.leaves if gradient == "tesla" else [*read.leaves, *theta]
            products = torch.autograd.grad(g, by, adjoint, allow_unused=True, materialize_grads=True)
            read.add(products[: len(read.leaves)], totals, -rate)
            _descend(before, products[len(read.leaves) :], rate)
        adjoint = before
    return loss.detach(), totals


def _graphs(step_loss: StepLoss, step: int, theta: Weights) -> Iterator[Graph]:
    """The gradient g of each part of ℓ_j, made anew."""
    import torch

    for part, read in step_loss(step, theta, False):
        yield torch.autograd.grad(part, theta, create_graph=True), read


def _descend(tensors: Sequence[Tensor], by: Sequence[Tensor], rate: float) -> None:
    """One step of size `rate` along −`by`, in place, for as many tensors as `by` has."""
    for tensor, direction in zip(tensors, by, strict=False):
        tensor.sub_(direction, alpha=rate)


def _dot(one: Weights, other: Weights) -> Tensor:
    return sum(((a.detach() * b).sum() for a, b in zip(one, other, strict=True)), start=one[0].new_zeros(()))


def _leaves(tensors: Weights) -> list[Tensor]:
    return [tensor.detach().requires_grad_(True) for tensor in tensors]
