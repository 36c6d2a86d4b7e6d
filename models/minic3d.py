"""MiniC3D, the three-convolution network of video distillation, without normalisation (VDSD) or with it (Video-DC).

Legend: B clips, C channels, T frames, H height, W width, D features, K classes.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidistill.models.dropout import SeededDropout

WIDTHS, DROPOUT = (64, 128, 128), 0.5
PIXEL_CHANNELS = 6  # at most so many: pixels, with or without their differences
KERNEL, STRIDE, PADDING = (3, 7, 7), (1, 2, 2), (1, 3, 3)
POOLS = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
Size = tuple[int, int, int]


def _pools(frames: int, size: int) -> tuple[list[Size], Size]:
    """The three max-pool kernels, and the (T, H, W) that the convolutions leave.

    A kernel is never larger than what it pools: 4×32×32 clips reach the last pool as 2×1×1, which becomes 1×1×1.
    """
    t, h = frames, size
    kernels: list[Size] = []
    for pool_t, pool_h, _ in POOLS:
        h = (h + 1) // 2
        k_t, k_h = min(pool_t, t), min(pool_h, h)
        kernels.append((k_t, k_h, k_h))
        t, h = t // k_t, h // k_h
    return kernels, (t, h, h)


def convolve_pixels(x_BCTHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The first convolution, 3×7×7 with stride 1×2×2 and padding 1×3×3, as a 3×4×4 one of stride 1 over 2×2 blocks.

    Each 2×2 block of pixels becomes 4·C channels, and the kernel, one tap larger with zeros, likewise: the same sums,
    so the same values and gradients up to rounding. On a CPU the gradient of the pixels, with only three channels, is
    what takes the time: with it this is 1.4 to 1.6 times as fast as the plain convolution, without it slower.

    Args:
        x_BCTHW: clips; an odd height or width is filled up with zeros that no tap but the added one meets.
        weight: (64, C, 3, 7, 7).
        bias: (64,) or none.
    """
    x_BCTHW = F.pad(x_BCTHW, (3, 3 + x_BCTHW.shape[4] % 2, 3, 3 + x_BCTHW.shape[3] % 2))
    batch, c_in, frames, height, width = x_BCTHW.shape
    blocks = x_BCTHW.reshape(batch, c_in, frames, height // 2, 2, width // 2, 2)
    blocks_BCTHW = blocks.permute(0, 2, 3, 5, 4, 6, 1).flatten(4).permute(0, 4, 1, 2, 3)
    taps = F.pad(weight, (0, 1, 0, 1)).reshape(-1, c_in, 3, 4, 2, 4, 2)
    return F.conv3d(blocks_BCTHW, taps.permute(0, 4, 6, 1, 2, 3, 5).flatten(1, 3), bias, padding=(1, 0, 0))


def _taps(size: int, kernel: int, stride: int, padding: int) -> tuple[int, int, int]:
    """The first tap of an axis that meets a pixel, the end of those that do, and the padding that they need."""
    out = (size + 2 * padding - kernel) // stride + 1
    first, last = max(0, padding - (out - 1) * stride), min(kernel, size + padding)
    fits = (size + 2 * (padding - first) - (last - first)) // stride + 1 == out
    return (first, last, padding - first) if fits and out > 0 else (0, kernel, padding)


class Conv3d(nn.Conv3d):
    """A convolution that knows four things about CPUs.

    Only taps that meet the map are computed: at 8×32×32 MiniC3D's last 7×7 kernel sees 2×2 pixels. Pixels that need a
    gradient are convolved by 2×2 blocks where the shape is MiniC3D's, which is faster (`convolve_pixels`). Maps of at
    most two frames or 2×2 pixels are convolved in fp32: there torch 2.14's bf16 weight gradient now and then holds
    uninitialised memory (not finite in 1–11 of 12 tries at T = 2 or H = W = 2; in none of 48 at three or more of each,
    where it stays within 0.4 % of fp32's). Nor is bf16 trusted where the output is one pixel wide and the stride more
    than one: on AMX units it is silently wrong there (pytorch issue 169688). One that is dilated, or padded by a word
    or with other values than zeros, is torch's own in fp32.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if input.device.type != "cpu":
            return super().forward(input)
        if isinstance(self.padding, str) or self.padding_mode != "zeros" or set(self.dilation) != {1}:
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.to(self.weight.dtype))
        one_wide = self.stride[-1] > 1 and self._width(input.shape[-1]) == 1
        if min(input.shape[-3:]) <= 2 or one_wide:
            with torch.autocast("cpu", enabled=False):
                return self._met(input.to(self.weight.dtype))
        shape = (self.kernel_size, self.stride, self.padding, self.groups, input.dim())
        if self.in_channels <= PIXEL_CHANNELS and shape == (KERNEL, STRIDE, PADDING, 1, 5) and input.requires_grad:
            return convolve_pixels(input, self.weight, self.bias)
        return self._met(input)

    def _met(self, input: Tensor) -> Tensor:  # noqa: A002
        paddings = [int(padding) for padding in self.padding]
        cut = [_taps(*axis) for axis in zip(input.shape[-3:], self.kernel_size, self.stride, paddings, strict=True)]
        t, y, x = (slice(first, last) for first, last, _ in cut)
        rooms = [room for _, _, room in cut]
        return F.conv3d(input, self.weight[:, :, t, y, x], self.bias, self.stride, rooms, groups=self.groups)

    def _width(self, width: int) -> int:
        """How many pixels wide the output is."""
        return (width + 2 * int(self.padding[-1]) - self.kernel_size[-1]) // self.stride[-1] + 1


def guarded(network: nn.Module) -> nn.Module:
    """The network, of which torch's and torchvision's 3-D convolutions are `Conv3d`; weights and names stay."""
    from torchvision.models.video.resnet import Conv3DNoTemporal, Conv3DSimple

    for module in network.modules():
        if type(module) in (nn.Conv3d, Conv3DNoTemporal, Conv3DSimple):
            module.__class__ = Conv3d
    return network


class MiniC3D(nn.Module):
    """Three convolutions of 3×7×7 with stride 1×2×2, each followed by ReLU and a max pool.

    `norm="none"` is VDSD's ConvNet3D (arXiv 2312.00362, its code's `networks.py`): 3,641,216 + 129·K weights in torch's
    default initialisation; average pool of stride 1 over 2 frames and all that is left of the space, dropout, a 1×1×1
    convolution, and the maximum over the time steps that are left. (Its code pools 2×2 pixels above 64 pixels and 1×1
    below, which is the same where it fits and leaves one pixel.)

    `norm="batch"` is Video-DC's MiniC3D-BN (arXiv 2412.21197, its code's `MyConv3d`): batch normalisation after each
    convolution, Kaiming initialisation (normal, fan out), global average pool, dropout, a linear layer initialised with
    a deviation of 0.01.

    Args:
        classes: K.
        frames: T of the clips, at least 1.
        size: H = W of the clips, at least 1 pixel.
        channels: C of what it sees: 3, or what a front puts out.
        norm: normalisation after each convolution.
    """

    def __init__(
        self, classes: int, frames: int, size: int, channels: int = 3, *, norm: Literal["none", "batch"] = "none"
    ) -> None:
        super().__init__()
        self.norm = norm
        self.pools, left_THW = _pools(frames, size)
        self.convs = nn.ModuleList(
            Conv3d(c_in, c_out, KERNEL, STRIDE, PADDING) for c_in, c_out in itertools.pairwise((channels, *WIDTHS))
        )
        self.norms = nn.ModuleList(nn.BatchNorm3d(c) if norm == "batch" else nn.Identity() for c in WIDTHS)
        self.dropout = SeededDropout(DROPOUT)
        self.time_pool = (min(2, left_THW[0]), left_THW[1], left_THW[2])
        if norm == "batch":
            self.head: nn.Module = nn.Linear(WIDTHS[-1], classes)
            self._initialise()
        else:
            self.head = nn.Conv3d(WIDTHS[-1], classes, 1)

    def embed(self, x_BCTHW: Tensor) -> Tensor:
        """`emb_BD`: what the convolutions put out, flattened (`norm="none"`) or averaged over T, H, W (`norm="batch"`).

        D is 2,048 for 16×112×112 and 256 for 8×64×64 without normalisation, 128 with it.
        """
        maps_BCTHW = self._convolve(x_BCTHW)
        return maps_BCTHW.mean((2, 3, 4)) if self.norm == "batch" else maps_BCTHW.flatten(1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`logits_BK` of normalised clips."""
        maps_BCTHW = self._convolve(x_BCTHW)
        if self.norm == "batch":
            logits_BK: Tensor = self.head(self.dropout(maps_BCTHW.mean((2, 3, 4))))
            return logits_BK
        pooled_BCT11 = F.avg_pool3d(maps_BCTHW, self.time_pool, stride=1)
        logits_BKT: Tensor = self.head(self.dropout(pooled_BCT11)).flatten(2)
        return logits_BKT.max(dim=2).values

    def _convolve(self, x_BCTHW: Tensor) -> Tensor:
        """ReLU comes after the pool: it is monotone, so the values are the same, and fewer."""
        for conv, norm, pool in zip(self.convs, self.norms, self.pools, strict=True):
            x_BCTHW = F.relu(F.max_pool3d(norm(conv(x_BCTHW)), pool))
        return x_BCTHW

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
