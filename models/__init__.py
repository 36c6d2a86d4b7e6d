"""Networks: torch modules only, no file access, no Prefect, no other room. Importing this loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

NETWORKS: dict[str, str] = {
    "minic3d": "MiniC3D: three 3D convolutions without normalisation, the network of the common benchmark (VDSD)",
    "minic3d_bn": "MiniC3D-BN: the same convolutions with batch normalisation and a pooled linear head (Video-DC)",
    "cnn_gru": "CNN+GRU: a 2D ConvNet on each frame, a GRU over the frames (hidden = features/8)",
    "cnn_lstm": "CNN+LSTM: a 2D ConvNet on each frame, an LSTM over the frames (hidden = features/8)",
    "c3d": "C3D: eight 3D convolutions without normalisation, two linear layers of 4,096 (Tran et al. 2015)",
    "video_swin_t": "Video Swin-T: windowed attention over space and time, torchvision's swin3d_t without weights",
}


def build(name: str, *, classes: int, frames: int, size: int) -> nn.Module:
    """A freshly initialised network for clips of `frames` frames of `size`×`size` pixels.

    It maps normalised clips `x_BCTHW` to `logits_BK`, and its `embed` maps them to `emb_BD`. The weights come from
    torch's global generator: seed that first.

    Raises:
        ValueError: `name` is not one of `NETWORKS`.
    """
    if name in ("minic3d", "minic3d_bn"):
        from vidistill.models.minic3d import MiniC3D

        return MiniC3D(classes, frames, size, norm="batch" if name == "minic3d_bn" else "none")
    if name in ("cnn_gru", "cnn_lstm"):
        from vidistill.models.frame_rnn import FrameRNN

        return FrameRNN(classes, size, cell="lstm" if name == "cnn_lstm" else "gru")
    if name == "c3d":
        from vidistill.models.c3d import C3D

        return C3D(classes, frames, size)
    if name == "video_swin_t":
        from vidistill.models.video_swin import VideoSwin

        return VideoSwin(classes)
    raise ValueError(f"No network is called {name!r}: choose one of {', '.join(NETWORKS)}.")
