"""DSA (Zhao and Bilen 2021): one differentiable augmentation, drawn once, for real and synthetic clips alike.

"Siamese": every clip of a matching step, real or synthetic, is augmented by the same ω, and here every frame of a clip
is too. Parameters are those of the published code. Flips are drawn only where the data set allows them.

Shapes: B clips, C colours, T frames, H height, W width. `x_BCTHW` is normalised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from vidistill.tasks.learning import streams
from vidistill.tasks.learning.training import generator

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]
Strategy = Literal["none", "dsa"]

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP_SHARE, CUTOUT_SHARE, SCALE_RATIO, ROTATE_DEGREES = 0.125, 0.5, 1.2, 15.0


@dataclass(frozen=True)
class Augmentation:
    """ω: which augmentation, and three uniform numbers in [0, 1) that place it."""

    kind: Kind
    u: tuple[float, float, float]

    def __call__(self, x_BCTHW: Tensor) -> Tensor:
        return _APPLY[self.kind](x_BCTHW, *self.u)


def draw(strategy: Strategy, flips: bool, *seed: int) -> Augmentation | None:
    """One of the six augmentations (five without flips), each as likely, with its ω; none for `none`."""
    if strategy == "none":
        return None
    random = generator(*seed, streams.DSA)
    kinds = [kind for kind in get_args(Kind) if flips or kind != "flip"]
    kind = kinds[int(random.integers(len(kinds)))]
    return Augmentation(kind, (random.random(), random.random(), random.random()))


def apply(augmentation: Augmentation | None, x_BCTHW: Tensor) -> Tensor:
    return x_BCTHW if augmentation is None else augmentation(x_BCTHW)


def _color(x_BCTHW: Tensor, brightness: float, saturation: float, contrast: float) -> Tensor:
    """Brighter or darker, greyer or more colourful, flatter or harder; a clip's contrast is about its own mean."""
    x_BCTHW = x_BCTHW + (brightness - 0.5) * BRIGHTNESS
    grey_B1THW = x_BCTHW.mean(1, keepdim=True)
    x_BCTHW = (x_BCTHW - grey_B1THW) * (saturation * SATURATION) + grey_B1THW
    mean_B1111 = x_BCTHW.mean((1, 2, 3, 4), keepdim=True)
    return (x_BCTHW - mean_B1111) * (contrast + CONTRAST) + mean_B1111


def _crop(x_BCTHW: Tensor, y: float, x: float, _unused: float) -> Tensor:
    """Shifted by up to an eighth of the side; what comes in is zero."""
    import torch

    height, width = x_BCTHW.shape[3:]
    reach_y, reach_x = int(height * CROP_SHARE + 0.5), int(width * CROP_SHARE + 0.5)
    padded = torch.nn.functional.pad(x_BCTHW, (reach_x, reach_x, reach_y, reach_y))
    top, left = int(y * (2 * reach_y + 1)), int(x * (2 * reach_x + 1))
    return padded[..., top : top + height, left : left + width]


def _cutout(x_BCTHW: Tensor, y: float, x: float, _unused: float) -> Tensor:
    """A box of half the side becomes zero; its middle is anywhere, that of an even box also beyond the last row."""
    height, width = x_BCTHW.shape[3:]
    box_y, box_x = int(height * CUTOUT_SHARE + 0.5), int(width * CUTOUT_SHARE + 0.5)
    top, left = int(y * (height + 1 - box_y % 2)) - box_y // 2, int(x * (width + 1 - box_x % 2)) - box_x // 2
    kept_HW = x_BCTHW.new_ones(height, width)
    kept_HW[max(0, top) : top + box_y, max(0, left) : left + box_x] = 0
    return x_BCTHW * kept_HW


def _flip(x_BCTHW: Tensor, side: float, _v: float, _w: float) -> Tensor:
    return x_BCTHW.flip(-1) if side < 0.5 else x_BCTHW


def _scale(x_BCTHW: Tensor, y: float, x: float, _unused: float) -> Tensor:
    """Each side by a factor between 1/1.2 and 1.2."""
    low, high = 1 / SCALE_RATIO, SCALE_RATIO
    return _affine(x_BCTHW, [[low + x * (high - low), 0.0], [0.0, low + y * (high - low)]])


def _rotate(x_BCTHW: Tensor, turn: float, _v: float, _w: float) -> Tensor:
    """By up to 15 degrees either way."""
    angle = (turn - 0.5) * 2 * math.radians(ROTATE_DEGREES)
    return _affine(x_BCTHW, [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _affine(x_BCTHW: Tensor, matrix: list[list[float]]) -> Tensor:
    """All frames through one matrix about the centre; zero outside."""
    import torch

    b, c, t, h, w = x_BCTHW.shape
    frames_BXHW = x_BCTHW.transpose(1, 2).reshape(b, t * c, h, w)
    theta_23 = x_BCTHW.new_tensor([[*matrix[0], 0.0], [*matrix[1], 0.0]])
    grid = torch.nn.functional.affine_grid(theta_23.expand(b, 2, 3), [b, t * c, h, w], align_corners=True)
    turned = torch.nn.functional.grid_sample(frames_BXHW, grid, align_corners=True)
    return turned.view(b, t, c, h, w).transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)


_APPLY = {"color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate}
