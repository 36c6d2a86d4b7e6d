"""Views: what is done to the clips and targets of a batch before a network learns from them.

Shapes: B clips, C colours, T frames, H height, W width, K classes. `x_BCTHW` is normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from vidistill.storage.clips import Clips, ClipTable
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.ahead import Ahead
from vidistill.tasks.learning.training import Device, Order, TrainingParameters, generator

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

PLAIN = TrainingParameters(crop_scale=1.0, cutmix=0.0, label_smoothing=0.0)
"""Clips as they are, but for the data set's flips: what experts see."""


def view(x_BCTHW: Tensor, parameters: TrainingParameters, flips: bool, random: np.random.Generator) -> Tensor:
    """Crops and colours of whole clips, and flips where the data set allows them."""
    if parameters.crop_scale < 1:
        x_BCTHW = training.crop_some(x_BCTHW, parameters.crop_scale, random)
    if parameters.jitter:
        x_BCTHW = recolour(x_BCTHW, parameters.jitter, random)
    return training.flip_some(x_BCTHW, random.random(len(x_BCTHW)) < 0.5) if flips else x_BCTHW


def recolour(x_BCTHW: Tensor, strength: float, random: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation of each clip, the same in all of its frames; every fifth clip is grey.

    Brightness moves by up to `strength` standard deviations, contrast and saturation by a factor of 1 ± `strength`.
    """
    import torch

    def drawn(low: float, high: float) -> Tensor:
        values_B = random.uniform(low, high, len(x_BCTHW))
        return torch.from_numpy(values_B).to(x_BCTHW)[:, None, None, None, None]

    grey_B1THW = x_BCTHW.mean(1, keepdim=True)
    saturation_B = drawn(1 - strength, 1 + strength) * (drawn(0, 1) >= 0.2)
    x_BCTHW = grey_B1THW + (x_BCTHW - grey_B1THW) * saturation_B
    mean_B = x_BCTHW.mean((1, 2, 3, 4), keepdim=True)
    return mean_B + (x_BCTHW - mean_B) * drawn(1 - strength, 1 + strength) + drawn(-strength, strength)


def cutmix(x_BCTHW: Tensor, targets_BK: Tensor, alpha: float, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019) through time: half of the batches get a box of other clips, the same in every frame."""
    import torch

    if not alpha or random.random() < 0.5:
        return x_BCTHW, targets_BK
    height, width = x_BCTHW.shape[3:]
    rows, columns = draw_box(random, alpha, height, width)
    other_B = torch.from_numpy(random.permutation(len(x_BCTHW))).to(x_BCTHW.device)
    mixed_BCTHW = x_BCTHW.clone()
    mixed_BCTHW[:, :, :, rows, columns] = x_BCTHW[other_B][:, :, :, rows, columns]
    share = mixed_BCTHW[0, 0, 0, rows, columns].numel() / (height * width)
    return mixed_BCTHW, (1 - share) * targets_BK + share * targets_BK[other_B]


def draw_box(random: np.random.Generator, alpha: float, height: int, width: int) -> tuple[slice, slice]:
    """CutMix's box: area share 1 − λ, clipped at the border."""
    side = np.sqrt(1 - random.beta(alpha, alpha))
    y, x = random.integers(height), random.integers(width)
    half_y, half_x = int(height * side) // 2, int(width * side) // 2
    return slice(max(0, y - half_y), y + half_y), slice(max(0, x - half_x), x + half_x)


def smoothed(targets_BK: Tensor, smoothing: float) -> Tensor:
    """Label smoothing (Szegedy et al. 2016): a share of the probability is spread over all classes."""
    return targets_BK * (1 - smoothing) + smoothing / targets_BK.shape[1]


def in_batches(
    read: Callable[[slice], NDArray[np.uint8]], count: int, table: ClipTable, device: Device
) -> Iterator[Tensor]:
    """x_BCTHW of so many clips, 32 at a time, normalised as `table` says; `read` gives those of a part, NTHWC."""
    for first in range(0, count, 32):
        yield training.to_input(read(slice(first, first + 32)), table.mean, table.std, device)


def centre_clips(
    clips: Clips, rows_N: Sequence[int] | NDArray[np.int64], device: Device, table: ClipTable | None = None
) -> Iterator[Tensor]:
    """x_BCTHW of these rows, 32 at a time, normalised as the set itself is, or as `table` says."""
    return in_batches(lambda part: clips.read(rows_N[part]), len(rows_N), table or clips.table, device)


@dataclass(frozen=True)
class RealBatches:
    """Batches of real clips: another stored view a video and epoch.

    Attributes:
        clips: the training split.
        order: over the rows that are used.
        device: where the clips go.
        parameters: what is done to them.
        stream: tells who draws: a teacher, or a student of all clips.
        rows_N: the rows that are used; all of them where it is None.
    """

    clips: Clips
    order: Order
    device: Device
    parameters: TrainingParameters = PLAIN
    stream: int = streams.TEACHER_VIEWS
    rows_N: NDArray[np.int64] | None = None

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """x_BCTHW and targets_BK of a step; a set that is not in memory is read a step ahead."""
        table = self.clips.table
        rows_B, clips_NTHWC, random = self._read(step) if self.clips.in_memory else self._ahead(step)
        x_BCTHW = training.to_input(clips_NTHWC, table.mean, table.std, self.device)
        targets_BK = training.one_hot(self.clips.labels_N[rows_B], len(table.classes), self.device)
        x_BCTHW = view(x_BCTHW, self.parameters, table.flips, random)
        return cutmix(x_BCTHW, smoothed(targets_BK, self.parameters.label_smoothing), self.parameters.cutmix, random)

    def _read(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.uint8], np.random.Generator]:
        """Rows, clips and the generator of all that is drawn after them."""
        rows_B = self.order.rows(step)
        if self.rows_N is not None:
            rows_B = self.rows_N[rows_B]
        random = generator(self.order.seed, step, self.stream)
        return rows_B, self.clips.read(rows_B, random.integers(self.clips.table.views, size=len(rows_B))), random

    @cached_property
    def _ahead(self) -> Ahead[tuple[NDArray[np.int64], NDArray[np.uint8], np.random.Generator]]:
        return Ahead(self._read)
