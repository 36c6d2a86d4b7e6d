"""What graphs hold: the bytes of the tensors that autograd keeps for a backward pass."""

from __future__ import annotations

from typing import Any

import torch


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
