"""Video Swin-T (Liu et al. 2022, arXiv 2106.13230): torchvision's blocks, without its published weights.

Legend: B clips, C channels, T frames, H height, W width, D features, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d, SwinTransformer3d

from vidistill.models.dropout import SeededDropout
from vidistill.models.minic3d import Conv3d

WINDOW, CHANNELS = (8, 7, 7), 96
PUBLISHED_SIZE = 112
"""From this size on patches have the published 4×4 pixels."""


class WindowAttention(ShiftedWindowAttention3d):
    """torchvision's attention, its relative positions right where a window is smaller than 8×7×7 tokens.

    torchvision takes the first n rows and columns of the table of the full window, which for a smaller one are the
    positions of other tokens; here each pair of tokens gets the bias of its own offset.
    """

    def get_relative_position_bias(self, window_size: list[int]) -> Tensor:
        """(1, heads, n, n) for windows of n = t·h·w tokens.

        Looked up as an embedding: the gradient of `table[index]` is summed in an order of chance on several threads.
        """
        t, h, w = window_size
        index: Tensor = self.relative_position_index.view(*WINDOW, *WINDOW)  # type: ignore[operator]
        own_NN = index[:t, :h, :w, :t, :h, :w].reshape(t * h * w, t * h * w)
        return F.embedding(own_NN, self.relative_position_bias_table).permute(2, 0, 1).unsqueeze(0)


class VideoSwin(nn.Module):
    """Windows of 8×7×7 tokens (less where the clip has less), depths 2-2-6-2, 96 channels: some 28 M weights.

    A token is 2×4×4 pixels from 112 pixels on, as published; smaller clips have smaller patches' worth of detail to
    give, and a seventh of their side (2×8×8 at 56²) leaves one window of 4×7×7 tokens for eight frames. An axis that
    its tokens do not divide is padded with zeros, so every size works.

    Args:
        classes: K.
        size: H = W of the clips.
        channels: C of what it sees.
    """

    def __init__(self, classes: int, size: int, channels: int = 3) -> None:
        super().__init__()
        side = 4 if size >= PUBLISHED_SIZE else max(1, round(size / WINDOW[-1]))
        self.swin = SwinTransformer3d(
            [2, side, side], CHANNELS, [2, 2, 6, 2], [3, 6, 12, 24], list(WINDOW), stochastic_depth_prob=0.1,
            num_classes=classes,
        )  # fmt: skip
        patch = (2, side, side)
        self.swin.patch_embed.proj = Conv3d(channels, CHANNELS, patch, patch)
        for module in self.swin.modules():
            if isinstance(module, SwinTransformerBlock):
                module.register_module("stochastic_depth", SeededDropout(module.stochastic_depth.p, axes=1))
                module.attn.__class__ = WindowAttention  # torchvision takes no other attention than its own

    def embed(self, x_BCTHW: Tensor) -> Tensor:
        """`emb_BD`, D = 768: the normalised tokens of the last stage, averaged over T, H, W."""
        tokens_BTHWD = self.swin.norm(self.swin.features(self.swin.patch_embed(x_BCTHW)))
        emb_BD: Tensor = tokens_BTHWD.mean((1, 2, 3))
        return emb_BD

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`logits_BK` of normalised clips."""
        logits_BK: Tensor = self.swin.head(self.embed(x_BCTHW))
        return logits_BK
