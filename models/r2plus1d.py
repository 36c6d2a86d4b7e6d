"""R(2+1)D in small: residual blocks whose 3×3×3 convolutions are split into space and time (Tran et al. 2018,
arXiv 1711.11248), narrow enough for a CPU and for a few hundred clips.

Legend: B clips, C channels, T frames, H height, W width, D features, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vidistill.models.dropout import SeededDropout

WIDTHS = (24, 48, 96)
STEM = (7, 4)
GROUPS = 8
Norm = Literal["batch", "instance", "group"]
NORMS: dict[Norm, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm3d,
    "instance": lambda channels: nn.InstanceNorm3d(channels, affine=True),
    "group": lambda channels: nn.GroupNorm(GROUPS, channels),
}
NORMS_BY_NAME: dict[str, Norm] = {
    "r2plus1d_small": "batch", "r2plus1d_small_in": "instance", "r2plus1d_small_gn": "group",
}  # fmt: skip


class SpaceConv(nn.Conv2d):
    """A convolution over the pixels of each frame: 1×k×k.

    Frames become a batch without a copy, since in channels-last memory (B, T, H, W, C) is (B·T, H, W, C).
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(c_in, c_out, kernel, stride, kernel // 2, bias=False)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        batch, _, frames, _, _ = x_BCTHW.shape
        y_XHWC = super().forward(x_BCTHW.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return y_XHWC.reshape(batch, frames, *y_XHWC.shape[1:]).permute(0, 4, 1, 2, 3)


class TimeConv(nn.Conv2d):
    """A convolution over the frames at each pixel: k×1×1. Pixels become a second axis, without a copy."""

    def __init__(self, channels: int, stride: int = 1, kernel: int = 3) -> None:
        super().__init__(channels, channels, (kernel, 1), (stride, 1), (kernel // 2, 0), bias=False)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        height, width = x_BCTHW.shape[3:]
        y_BTXC = super().forward(x_BCTHW.permute(0, 2, 3, 4, 1).flatten(2, 3).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return y_BTXC.reshape(*y_BTXC.shape[:2], height, width, -1).permute(0, 4, 1, 2, 3)


class Shortcut(nn.Sequential):
    """Every so many-th frame and pixel, projected to the new width."""

    def __init__(self, c_in: int, c_out: int, space_stride: int, time_stride: int, norm: Norm) -> None:
        super().__init__(SpaceConv(c_in, c_out, 1, space_stride), NORMS[norm](c_out))
        self.time_stride = time_stride

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        convolution, norm = self
        y_BCTHW: Tensor = norm(convolution(x_BCTHW[:, :, :: self.time_stride]))
        return y_BCTHW


class Block(nn.Module):
    """y = ReLU(N(time(ReLU(N(space(x))))) + x), where the shape changes with x projected."""

    def __init__(
        self, c_in: int, c_out: int, space_stride: int, time_stride: int, norm: Norm, time_kernel: int = 3
    ) -> None:
        super().__init__()
        self.space, self.space_norm = SpaceConv(c_in, c_out, 3, space_stride), NORMS[norm](c_out)
        self.time, self.time_norm = TimeConv(c_out, time_stride, time_kernel), NORMS[norm](c_out)
        same = (c_in, space_stride, time_stride) == (c_out, 1, 1)
        self.shortcut = nn.Identity() if same else Shortcut(c_in, c_out, space_stride, time_stride, norm)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        y_BCTHW = F.relu(self.space_norm(self.space(x_BCTHW)))
        return F.relu(self.time_norm(self.time(y_BCTHW)) + self.shortcut(x_BCTHW))


class R2Plus1DSmall(nn.Module):
    """A stem of 1×7×7 with stride 1×4×4, three residual blocks of 24, 48 and 96 channels, a pooled linear head.

    104,578 weights for ten classes. Blocks halve the pixels, but for the first, and the last the frames too, so that
    8×56×56 clips end as 4×4×4. tests/benchmarks/network_choice.py tries others on a fifth of the training split.

    Args:
        classes: K.
        channels: C of what it sees.
        norm: `batch`, whose statistics TSGF needs; `instance` or `group` for methods that match networks at
            initialisation.
        dropout: probability before the classifier, in training mode.
        widths: channels of each block, two blocks or more.
        stem: kernel and stride of the stem, in pixels.
        time_kernel: frames that a block's convolution over time sees.
    """

    def __init__(
        self, classes: int, channels: int = 3, *, norm: Norm = "batch", dropout: float = 0.0,
        widths: tuple[int, ...] = WIDTHS, stem: tuple[int, int] = STEM, time_kernel: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stem = nn.Sequential(SpaceConv(channels, widths[0], *stem), NORMS[norm](widths[0]))
        strides = ((1, 1), *((2, 1),) * (len(widths) - 2), (2, 2))
        shapes = zip(itertools.pairwise((widths[0], *widths)), strides, strict=True)
        self.blocks = nn.Sequential(*(Block(*pair, *stride, norm, time_kernel) for pair, stride in shapes))
        self.dropout, self.head = SeededDropout(dropout), nn.Linear(widths[-1], classes)

    def embed(self, x_BCTHW: Tensor) -> Tensor:
        """`emb_BD`, D = 96: the last block's output, averaged over T, H, W."""
        maps_BCTHW: Tensor = self.blocks(F.relu(self.stem(x_BCTHW)))
        return maps_BCTHW.mean((2, 3, 4))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`logits_BK` of normalised clips."""
        logits_BK: Tensor = self.head(self.dropout(self.embed(x_BCTHW)))
        return logits_BK
