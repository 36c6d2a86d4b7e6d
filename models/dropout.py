"""Dropout with a generator of its own: networks that train side by side in one process do not share their draws."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SeededDropout(nn.Module):
    """`nn.Dropout`, drawing from a generator that `seed` sets.

    Args:
        p: the share of features that is zeroed in training mode; the rest is scaled by 1/(1 − p).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator = torch.Generator()

    def seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        kept = torch.rand(x.shape, generator=self.generator) >= self.p
        return x * kept.to(x.device, x.dtype) / (1 - self.p)


def seed_dropout(network: nn.Module, seed: int) -> None:
    """Seed every dropout of a network, each with a number of its own, so that no two draw the same mask."""
    dropouts = (module for module in network.modules() if isinstance(module, SeededDropout))
    for number, dropout in enumerate(dropouts):
        dropout.seed(seed + number)
