"""Ensemble: several networks of one kind, asked as one.

Legend: M members, B clips, C channels, T frames, H height, W width, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """In training mode every member answers for itself; in evaluation mode they answer with their mean probability.

    Args:
        members: networks for the same clips and classes.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def embed(self, x_BCTHW: Tensor) -> Tensor:
        """`emb_BD`: the members' embeddings side by side."""
        return torch.cat([member.embed(x_BCTHW) for member in self.members], 1)  # type: ignore[operator]

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(M·B, K) in training mode, member by member; else (B, K): the logarithm of the mean probability."""
        logits = [member(x_BCTHW) for member in self.members]
        if self.training:
            return torch.cat(logits)
        each_MBK = torch.stack(logits).float().log_softmax(2)
        return each_MBK.logsumexp(0) - math.log(len(logits))
