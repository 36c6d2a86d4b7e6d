"""Networks: torch modules only, no file access, no Prefect, no other room. Importing this loads no torch.

A network's name is its body's, or a front and a body: `centred:r2plus1d_small`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

NETWORKS: dict[str, str] = {
    "r2plus1d_small": "R(2+1)D in small: three residual blocks of split convolutions with batch norm, fast on a CPU",
    "r2plus1d_small_in": "the same with instance normalisation, for matching networks as they are initialised",
    "r2plus1d_small_gn": "the same with group normalisation",
    "minic3d": "MiniC3D: three 3D convolutions without normalisation, the network of the common benchmark (VDSD)",
    "minic3d_bn": "MiniC3D-BN: the same convolutions with batch normalisation and a pooled linear head (Video-DC)",
    "cnn_gru": "CNN+GRU: a 2D ConvNet on each frame, a GRU over the frames (hidden = features/8)",
    "cnn_lstm": "CNN+LSTM: a 2D ConvNet on each frame, an LSTM over the frames (hidden = features/8)",
    "c3d": "C3D: eight 3D convolutions without normalisation, two linear layers of 4,096 (Tran et al. 2015)",
    "r3d_18": "R3D-18: torchvision's residual 3D network (Tran et al. 2018)",
    "video_swin_t": "Video Swin-T: windowed attention over space and time, torchvision's blocks without weights",
}
CONVNET = "convnet2d"
"""Of single frames: it is no student, and stills are matched with it."""
BATCH_NORMED = ("r2plus1d_small", "minic3d_bn", "r3d_18")
FRONT_NAMES = {
    "rgb": "the clip as it is",
    "centred": "the clip minus its mean over time: what moves",
    "rgb+difference": "the clip, and each frame's difference to the next, as six channels",
}

OWN: dict[str, Callable[..., Any]] = {}
"""Users' networks and fronts by name. A network is called with those of `classes`, `frames`, `size` and `channels` that
it takes by name, and maps `x_BCTHW` to `logits_BK`; a front maps `x_BCTHW` to a clip of any number of channels."""


def parted(name: str) -> tuple[str, str]:
    """A network's front and body; `rgb` where its name has no front."""
    front, colon, body = name.rpartition(":")
    return (front, body) if colon else ("rgb", name)


def fronted(name: str, front: str) -> str:
    """The name of a network with this front; one that names a front keeps its own."""
    return name if ":" in name or front == "rgb" else f"{front}:{name}"


def known(name: str) -> bool:
    """Whether `build` makes a network of this name."""
    front, body = parted(name)
    return (front in FRONT_NAMES or front in OWN) and (body in NETWORKS or body in OWN)


def too_small(name: str, frames: int, size: int) -> str:
    """Why a network cannot see clips of so many frames and pixels; empty where they are large enough."""
    front, body = parted(name)
    fits = frames > 2 or size > 16  # else the last maps have one pixel, which has no norm
    if fits or front in OWN or body != "r2plus1d_small_in":
        return ""
    return (
        f"Clips of {frames} frames of {size} pixels are too small for {body}: take 3 frames or more, or 17 pixels, or "
        "another network."
    )


def build(name: str, *, classes: int, frames: int, size: int) -> nn.Module:
    """A freshly initialised network for clips of `frames` frames of `size`×`size` pixels.

    It maps normalised clips `x_BCTHW` to `logits_BK`, and its `embed` maps them to `emb_BD`. The weights come from
    torch's global generator: seed that first.

    Raises:
        ValueError: `name` is not one of `NETWORKS`, or its front not one of `FRONT_NAMES`, or such clips are too small.
    """
    if small := too_small(name, frames, size):
        raise ValueError(small)
    front, body = parted(name)
    if front == "rgb":
        return _body(body, classes, frames, size, 3)
    from vidistill.models.fronts import FRONTS, Fronted, channels_of

    if front in FRONTS:
        function, channels = FRONTS[front]
    elif front in OWN:
        function, channels = OWN[front], channels_of(OWN[front], frames, size)
    else:
        raise ValueError(f"No front is called {front!r}: choose one of {', '.join(FRONT_NAMES)}.")
    return Fronted(function, _body(body, classes, frames, size, channels))


def _body(name: str, classes: int, frames: int, size: int, channels: int) -> nn.Module:
    if name in OWN:
        return _own(name, {"classes": classes, "frames": frames, "size": size, "channels": channels})
    if name in ("minic3d", "minic3d_bn"):
        from vidistill.models.minic3d import MiniC3D

        return MiniC3D(classes, frames, size, channels, norm="batch" if name == "minic3d_bn" else "none")
    if name in ("cnn_gru", "cnn_lstm"):
        from vidistill.models.frame_rnn import FrameRNN

        return FrameRNN(classes, size, channels, cell="lstm" if name == "cnn_lstm" else "gru")
    if name == "c3d":
        from vidistill.models.c3d import C3D

        return C3D(classes, frames, size, channels)
    if name == "video_swin_t":
        from vidistill.models.video_swin import VideoSwin

        return VideoSwin(classes, size, channels)
    if name == "r3d_18":
        from vidistill.models.r3d import R3D18

        return R3D18(classes, channels)
    if name.startswith("r2plus1d_small"):
        from vidistill.models.r2plus1d import NORMS_BY_NAME, R2Plus1DSmall

        if name in NORMS_BY_NAME:
            return R2Plus1DSmall(classes, channels, norm=NORMS_BY_NAME[name])
    raise ValueError(f"No network is called {name!r}: choose one of {', '.join(NETWORKS)}.")


def _own(name: str, given: dict[str, int]) -> nn.Module:
    taken = inspect.signature(OWN[name]).parameters
    if given["channels"] != 3 and "channels" not in taken:
        raise ValueError(f"The network {name} takes no `channels`, and its front puts out {given['channels']}.")
    from vidistill.models.dropout import with_seeds
    from vidistill.models.minic3d import guarded

    return with_seeds(guarded(OWN[name](**{each: value for each, value in given.items() if each in taken})))
