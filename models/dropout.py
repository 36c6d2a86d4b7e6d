"""Dropout with a generator of its own: networks that train side by side in one process do not share their draws."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

TORCHS = threading.RLock()
"""Held by whoever seeds torch's own generator, of which a process has one, until all is drawn."""


class SeededDropout(nn.Module):
    """`nn.Dropout`, drawing from a generator that `seed_dropout` seeds.

    Args:
        p: the share of features that is zeroed in training mode; the rest is scaled by 1/(1 − p).
        axes: along how many of the first axes it draws; what lies along the others is zeroed together. None: all.
    """

    def __init__(self, p: float, axes: int | None = None) -> None:
        super().__init__()
        self.p, self.axes = p, axes
        self.generator = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        axes = x.dim() if self.axes is None else self.axes
        shape = (*x.shape[:axes], *[1] * (x.dim() - axes))
        kept = torch.rand(shape, generator=self.generator) >= self.p
        return x * kept.to(x.device, x.dtype) / (1 - self.p)


class SeededPasses(nn.Module):
    """What a network is made that draws from torch's own generator, by `F.dropout` say: each pass seeds that first."""

    vidistill_draws: torch.Generator


def with_seeded_passes(network: nn.Module) -> None:
    """Have a network draw what it draws from torch's own generator from seeds of its own, and alone.

    The first of them is the seed of that generator now, which the network's weights were drawn from.
    """

    def seeded(called: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(self: SeededPasses, *args: Any, **given: Any) -> Tensor:
            with TORCHS:
                torch.manual_seed(int(torch.randint(2**31, (), generator=self.vidistill_draws)))
                return called(self, *args, **given)

        return call

    kind = type(network)
    passes = {name: seeded(getattr(kind, name)) for name in ("forward", "embed") if hasattr(kind, name)}
    network.__class__ = type(kind.__name__, (SeededPasses, kind), passes)
    network.vidistill_draws = torch.Generator().manual_seed(torch.initial_seed())  # type: ignore[assignment]


def seed_dropout(network: nn.Module, seed: int) -> None:
    """Seed every dropout of a network, each with a number of its own, so that no two draw the same mask."""
    drawing = (module for module in network.modules() if isinstance(module, SeededDropout | SeededPasses))
    for number, module in enumerate(drawing):
        own = module.generator if isinstance(module, SeededDropout) else module.vidistill_draws
        own.manual_seed(seed + number)


def with_seeds(network: nn.Module) -> nn.Module:
    """The network with dropouts of this kind for torch's and torchvision's, which draw from a stream that all share."""
    from torchvision.ops import StochasticDepth

    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, SeededDropout(child.p))
            elif isinstance(child, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
                setattr(module, name, SeededDropout(child.p, axes=2))
            elif isinstance(child, StochasticDepth):
                setattr(module, name, SeededDropout(child.p, axes=1 if child.mode == "row" else 0))
    return network
