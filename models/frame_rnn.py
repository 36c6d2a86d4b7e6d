"""CNN+GRU and CNN+LSTM: a 2D ConvNet on each frame, a recurrent layer over the frames.

Legend: B clips, C channels, T frames, H height, W width, F features of a frame, D hidden features, K classes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from vidistill.models import cpu
from vidistill.models.convnet2d import WIDTH, block

DEPTH, REDUCTION = 3, 8


_without_cudnn = threading.Lock()


@contextmanager
def _differentiable(x: Tensor) -> Iterator[None]:
    """Without cuDNN where gradients are taken: its layers give none in evaluation mode, and no second ones.

    One thread at a time, since the switch is the process's.
    """
    if not (x.is_cuda and torch.is_grad_enabled()):
        yield
        return
    with _without_cudnn, torch.backends.cudnn.flags(enabled=False):
        yield


def _computable(rnn: nn.Module) -> AbstractContextManager[object]:
    """fp32 for an LSTM on a CPU without bf16 units: oneDNN has none in bf16 there."""
    return nullcontext() if cpu.has_bf16() or isinstance(rnn, nn.GRU) else torch.autocast("cpu", enabled=False)


class FrameRNN(nn.Module):
    """VDSD's `VideoConvNet` students (arXiv 2312.00362, its code's `networks.py`).

    Three blocks of convolution 3×3, instance normalisation, ReLU and a 2×2 average pool on each frame; one recurrent
    layer that starts from zeros; the mean of its outputs over time; a linear layer.

    A frame of 64×64 has F = 8,192 features. Both layers have F/8 hidden features, as VDSD's GRU has; its LSTM has all F
    (0.54 G weights). F grows with the square of the size: at 112×112 VDSD crops 24 pixels a side first.

    Args:
        classes: K.
        size: H = W of the clips, at least 8 pixels.
        channels: C of what it sees.
        cell: the recurrent layer.
    """

    def __init__(self, classes: int, size: int, channels: int = 3, *, cell: Literal["gru", "lstm"] = "gru") -> None:
        super().__init__()
        blocks = [block(channels if depth == 0 else WIDTH) for depth in range(DEPTH)]
        self.cnn = nn.Sequential(*blocks, nn.Flatten())
        frame_features = WIDTH * (size // 2**DEPTH) ** 2
        hidden = frame_features // REDUCTION
        rnn = nn.GRU if cell == "gru" else nn.LSTM
        self.rnn: nn.GRU | nn.LSTM = rnn(frame_features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def embed(self, x_BCTHW: Tensor) -> Tensor:
        """`emb_BD`: the recurrent layer's outputs, averaged over time."""
        frames_NCHW = x_BCTHW.transpose(1, 2).flatten(0, 1)
        features_BTF = self.cnn(frames_NCHW).unflatten(0, (x_BCTHW.shape[0], x_BCTHW.shape[2]))
        with _differentiable(features_BTF), _computable(self.rnn):
            states_BTD: Tensor = self.rnn(features_BTF)[0]
        return states_BTD.mean(1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`logits_BK` of normalised clips."""
        logits_BK: Tensor = self.head(self.embed(x_BCTHW))
        return logits_BK
