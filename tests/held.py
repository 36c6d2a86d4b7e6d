"""What is held in memory: the tensors that autograd keeps for a backward pass, and the arrays of NumPy."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Live:
    """Bytes of the tensors that autograd holds, now and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: torch.Tensor) -> Held:
        return Held(self, tensor)

    def unpack(self, held: Held) -> torch.Tensor:
        return held.tensor


class Held:
    def __init__(self, live: Live, tensor: torch.Tensor) -> None:
        self.live, self.tensor, self.bytes = live, tensor, tensor.numel() * tensor.element_size()
        live.now += self.bytes
        live.most = max(live.most, live.now)

    def __del__(self) -> None:
        self.live.now -= self.bytes


def held_by(function: Any) -> int:
    """The most that was held at a time while the function ran."""
    live = Live()
    with torch.autograd.graph.saved_tensors_hooks(live.pack, live.unpack):
        function()
    return live.most


def peak_of(function: Callable[[], T]) -> tuple[T, int]:
    """What a function gives, and the most bytes that Python and NumPy held at a time while it ran."""
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
