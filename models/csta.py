"""CSTA: scores for the members of a set from a CNN over its feature image (Son et al., CVPR 2024; methods §10).

Legend: N members (rows), D features (columns), H the CNN's channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidistill.models.dropout import SeededDropout


class SetScorer(nn.Module):
    """The published head around a small CNN.

    The features and a learned class row pass a linear key; a CNN over the (N + 1)×D image of keys gives the attention
    map, to which the keys are added before it is normalised as a whole; its softmax over the rows and its softmax over
    the columns weigh the values, and a two-layer classifier scores each row. What is ours:

    - The published CNN is GoogLeNet with ImageNet's weights, which averages an image of 1,024 columns down; four 3×3
      convolutions, trained from nothing, keep its size, so any D fits.
    - Rows have no positions: frames have an order, clips of a class have none.
    - The map is normalised by layer norm over the whole of it, where the authors' code has batch norm, and the class
      row is dropped before the two softmaxes.
    - Both softmaxes are scaled by the number of what they sum over, so that values keep their size at any N and D.
    - There is no dropout on the attention (published: 0.6), and the class row begins at zero; other weights as torch's.

    Args:
        features: D.
        width: H.
    """

    def __init__(self, features: int, width: int = 16) -> None:
        super().__init__()
        self.class_row = nn.Parameter(torch.zeros(1, features))
        self.key, self.value = nn.Linear(features, features), nn.Linear(features, features)
        channels = (1, width, width, width)
        convolutions = [
            layer
            for c_in, dilation in zip(channels, (1, 2, 4, 8), strict=True)
            for layer in (nn.Conv2d(c_in, width, 3, padding=dilation, dilation=dilation), nn.ReLU())
        ]
        self.cnn = nn.Sequential(*convolutions, nn.Conv2d(width, 1, 1))
        self.hidden = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(), SeededDropout(0.5), nn.LayerNorm(features)
        )
        self.out = nn.Linear(features, 1)

    def forward(self, x_ND: Tensor) -> Tensor:
        """`score_N` in (0, 1)."""
        key_ND = self.key(torch.cat([self.class_row, x_ND]))
        map_ND = self.cnn(key_ND[None, None])[0, 0] + key_ND
        map_ND = (F.layer_norm(map_ND, map_ND.shape) / map_ND.shape[1] ** 0.5)[1:]
        value_ND = self.value(x_ND)
        mixed_ND = value_ND * (map_ND.softmax(0) * len(x_ND)) + value_ND * (map_ND.softmax(1) * map_ND.shape[1])
        return torch.sigmoid(self.out(self.hidden(mixed_ND))[:, 0])
