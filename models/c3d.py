"""C3D (Tran et al. 2015, arXiv 1412.0767): eight convolutions of 3×3×3, five max pools, two wide linear layers.

Legend: B clips, C channels, T frames, H height, W width, D features, K classes.
"""

from __future__ import annotations

import itertools
import math

import torch.nn.functional as F
from torch import Tensor, nn

from vidistill.models.dropout import SeededDropout
from vidistill.models.minic3d import Conv3d

LAYERS = (
    (64, (1, 2, 2)), (128, (2, 2, 2)), (256, None), (256, (2, 2, 2)), (512, None), (512, (2, 2, 2)), (512, None),
    (512, (2, 2, 2)),
)  # fmt: skip
"""The channels of each convolution, and the pool after it."""
FC, DROPOUT = 4096, 0.5


class C3D(nn.Module):
    """C3D for clips of any length and size; at 16×112×112 it is the published network, 78.4 M weights for 101 classes.

    Pools round up, as those of Caffe did, in which C3D was made: its last one leaves 4×4 of 7×7 pixels, and an axis of
    one frame or pixel stays as it is. So the convolutions leave ⌈T/16⌉×⌈H/32⌉×⌈W/32⌉ of 512 channels; the first linear
    layer (fc6) reads all of them, 8,192 at 16×112×112 and 2,048 at 8×56×56, and both keep their width of 4,096.

    There is no normalisation. The initialisation is not stated; Kaiming's (normal, fan in) is chosen because with
    torch's default the signal shrinks at each of the ten layers. The classifier's weights have a deviation of 0.01.

    Args:
        classes: K.
        frames: T of the clips, at least 1.
        size: H = W of the clips, at least 1 pixel.
    """

    def __init__(self, classes: int, frames: int, size: int, channels: int = 3) -> None:
        super().__init__()
        widths = [channels, *(width for width, _ in LAYERS)]
        self.convs = nn.ModuleList(Conv3d(*pair, 3, padding=1) for pair in itertools.pairwise(widths))
        self.fc6 = nn.Linear(widths[-1] * math.ceil(frames / 16) * math.ceil(size / 32) ** 2, FC)
        self.fc7 = nn.Linear(FC, FC)
        self.head = nn.Linear(FC, classes)
        self.dropouts = nn.ModuleList([SeededDropout(DROPOUT), SeededDropout(DROPOUT)])
        self._initialise()

    def embed(self, x_BCTHW: Tensor) -> Tensor:
        """`emb_BD`: the activations of fc6, which are the paper's C3D features (D = 4,096; §4, not normalised here)."""
        for conv, (_, pool) in zip(self.convs, LAYERS, strict=True):
            x_BCTHW = conv(x_BCTHW)
            if pool:  # before ReLU, which is monotone: the same values, of fewer
                x_BCTHW = F.max_pool3d(x_BCTHW, pool, ceil_mode=True)
            x_BCTHW = F.relu(x_BCTHW)
        return F.relu(self.fc6(x_BCTHW.flatten(1)))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`logits_BK` of normalised clips."""
        after_fc6, after_fc7 = self.dropouts
        hidden_BD = F.relu(self.fc7(after_fc6(self.embed(x_BCTHW))))
        logits_BK: Tensor = self.head(after_fc7(hidden_BD))
        return logits_BK

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.head.weight, std=0.01)
