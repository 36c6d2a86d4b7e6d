"""ConvNet: the image network of dataset condensation.

Legend: B images, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

WIDTH = 128


class InstanceNorm(nn.GroupNorm):
    """A group a channel, in the precision of its weights: on a CPU bf16 takes five times as long (torch 2.14)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW.to(self.weight.dtype))


def block(c_in: int, width: int = WIDTH) -> nn.Sequential:
    """Convolution 3×3, instance normalisation, ReLU, average pool 2×2."""
    return nn.Sequential(nn.Conv2d(c_in, width, 3, padding=1), InstanceNorm(width), nn.ReLU(), nn.AvgPool2d(2))


class ConvNet2D(nn.Module):
    """ConvNetD3 (Zhao, Mopuri and Bilen 2021, Appendix A); VDSD's static memory is made with `depth=4`.

    Args:
        classes: K.
        size: H = W of the images, at least 2^depth pixels.
        depth: blocks.
    """

    def __init__(self, classes: int, size: int, *, depth: int = 3) -> None:
        super().__init__()
        self.cnn = nn.Sequential(*(block(3 if number == 0 else WIDTH) for number in range(depth)), nn.Flatten())
        self.head = nn.Linear(WIDTH * (size // 2**depth) ** 2, classes)

    def embed(self, x_BCHW: Tensor) -> Tensor:
        """`emb_BD`: what the blocks put out, flattened."""
        emb_BD: Tensor = self.cnn(x_BCHW)
        return emb_BD

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`logits_BK` of normalised images."""
        logits_BK: Tensor = self.head(self.embed(x_BCHW))
        return logits_BK
