"""Fronts: what a network sees first, as a part of it, so that the gradients of every method flow through.

Static backgrounds are a shortcut that small data sets invite; a front that takes them away leaves what moves.
Legend: B clips, C channels, T frames, H height, W width, D features, K classes. `x_BCTHW` is normalised.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def centred(x_BCTHW: Tensor) -> Tensor:
    """The clip minus its mean over time: what stands still is zero."""
    return x_BCTHW - x_BCTHW.mean(2, keepdim=True)


def difference(x_BCTHW: Tensor) -> Tensor:
    """Each frame's difference to the next one; the last one's is repeated. A clip of one frame has none: zeros."""
    if x_BCTHW.shape[2] == 1:
        return torch.zeros_like(x_BCTHW)
    step_BCTHW = x_BCTHW.diff(dim=2)
    return torch.cat([step_BCTHW, step_BCTHW[:, :, -1:]], 2)


def rgb_and_difference(x_BCTHW: Tensor) -> Tensor:
    return torch.cat([x_BCTHW, difference(x_BCTHW)], 1)


FRONTS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "centred": (centred, 3),
    "rgb+difference": (rgb_and_difference, 6),
}
"""Each front but `rgb`, which is no front at all, and the channels that it puts out."""


def channels_of(front: Callable[[Tensor], Tensor], frames: int, size: int) -> int:
    """How many channels a front puts out."""
    return front(torch.zeros(1, 3, frames, size, size)).shape[1]


class Fronted(nn.Module):
    """A front and a body: `body` sees `front(x)`.

    Args:
        front: maps a clip to what the body sees.
        body: a network for clips of that front's channels.
    """

    def __init__(self, front: Callable[[Tensor], Tensor], body: nn.Module) -> None:
        super().__init__()
        self.front = front
        self.body = body

    def embed(self, x_BCTHW: Tensor) -> Tensor:
        """`emb_BD` of the body."""
        emb_BD: Tensor = self.body.embed(self.front(x_BCTHW))  # type: ignore[operator]
        return emb_BD

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`logits_BK` of the body."""
        logits_BK: Tensor = self.body(self.front(x_BCTHW))
        return logits_BK
