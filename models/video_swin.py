"""Video Swin-T (Liu et al. 2022, arXiv 2106.13230): torchvision's `swin3d_t`, without its published weights.

Legend: B clips, C channels, T frames, H height, W width, D features, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.video import swin3d_t

from vidistill.models.dropout import SeededDropout
from vidistill.models.minic3d import Conv3d


class StochasticDepth(SeededDropout):
    """A residual branch left out for a share `p` of the clips, drawn from a generator of its own."""

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        return x_BTHWC * super().forward(x_BTHWC.new_ones(len(x_BTHWC), 1, 1, 1, 1))


class VideoSwin(nn.Module):
    """Tokens of 2×4×4 pixels, windows of 8×7×7 tokens (less where the clip has less), depths 2-2-6-2, 96 channels.

    27,850,470 weights and 769·K. An axis that its tokens do not divide is padded with zeros, so every size works:
    8×56×56 gives 4×14×14 tokens, 16×112×112 gives 8×28×28. Published with AdamW; SGD trains it too.

    Args:
        classes: K.

    Attributes:
        features: D = 768, the length of an embedding.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.swin = swin3d_t(weights=None, num_classes=classes)
        proj = self.swin.patch_embed.proj
        self.swin.patch_embed.proj = Conv3d(3, proj.out_channels, proj.kernel_size, proj.stride)
        for block in self.swin.modules():
            if isinstance(block, SwinTransformerBlock):
                block.register_module("stochastic_depth", StochasticDepth(block.stochastic_depth.p))
        self.features: int = self.swin.num_features

    def embed(self, x_BCTHW: Tensor) -> Tensor:
        """`emb_BD`: the normalised tokens of the last stage, averaged over T, H, W."""
        tokens_BTHWD = self.swin.norm(self.swin.features(self.swin.patch_embed(x_BCTHW)))
        emb_BD: Tensor = tokens_BTHWD.mean((1, 2, 3))
        return emb_BD

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`logits_BK` of normalised clips."""
        logits_BK: Tensor = self.swin.head(self.embed(x_BCTHW))
        return logits_BK
