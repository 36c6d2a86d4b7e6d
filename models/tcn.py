"""MS-TCN (Farha and Gall 2019): stages of dilated convolutions that name the action of every frame of a video.

Legend: B videos, D features a frame, T frames, W maps, K classes, S stages.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vidistill.models.dropout import SeededDropout


class DilatedResidual(nn.Module):
    """x + dropout(1×1(ReLU(a convolution of three frames, `dilation` apart, of x))).

    Args:
        width: W.
        dilation: from each of the three frames to the next.
        norm: batch norm before the ReLU, which MS-TCN does not have.
    """

    def __init__(self, width: int, dilation: int, *, norm: bool) -> None:
        super().__init__()
        self.dilated = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.mix = nn.Conv1d(width, width, 1)
        self.dropout = SeededDropout(0.5)

    def forward(self, x_BWT: Tensor) -> Tensor:
        change_BWT: Tensor = self.dropout(self.mix(torch.relu(self.norm(self.dilated(x_BWT)))))
        return x_BWT + change_BWT


class Stage(nn.Sequential):
    """One stage: maps of the input, layers whose dilation doubles, logits."""

    def __init__(self, channels: int, classes: int, layers: int, width: int, *, norm: bool) -> None:
        residuals = (DilatedResidual(width, 2**layer, norm=norm) for layer in range(layers))
        super().__init__(nn.Conv1d(channels, width, 1), *residuals, nn.Conv1d(width, classes, 1))


class MSTCN(nn.Module):
    """Stages of which each but the first sees the probabilities of the one before.

    Args:
        features: D.
        classes: K.
        stages: S; one is the SS-TCN of the paper.
        layers: of a stage.
        width: W.
        norm: batch norm in every layer, for a teacher whose statistics are wanted.
    """

    def __init__(
        self, features: int, classes: int, stages: int, layers: int, width: int, *, norm: bool = False
    ) -> None:
        super().__init__()
        inputs = [features] + [classes] * (stages - 1)
        self.stages = nn.ModuleList(Stage(channels, classes, layers, width, norm=norm) for channels in inputs)

    def forward(self, x_BDT: Tensor) -> Tensor:
        """Logits of every stage, the last one's the answer: (S, B, K, T)."""
        logits_SBKT, seen = [], x_BDT
        for stage in self.stages:
            logits_SBKT.append(stage(seen))
            seen = logits_SBKT[-1].softmax(1)
        return torch.stack(logits_SBKT)
