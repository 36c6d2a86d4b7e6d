"""Where a matched set begins, how it stays within the range of pixels, and what is kept of it in the end.

Shapes: N clips of the set, C colours, T frames, H height, W width. `x_NCTHW` is float32 and normalised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet, materialised, variants
from vidistill.tasks.learning.loop import Curve
from vidistill.tasks.learning.pixels import initial, pixel_range, to_pixels
from vidistill.tasks.learning.rows import draw_rows
from vidistill.tasks.learning.training import Device
from vidistill.tasks.match.core import Learnt
from vidistill.tasks.methods import Material

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Start:
    """Where a set begins: x_NCTHW, labels_N, and the paths of the real clips it began as ("" for noise)."""

    x_NCTHW: Tensor
    labels_N: NDArray[np.int64]
    sources: tuple[str, ...]


def start_clips(
    material: Material, init: Literal["real", "noise"], copies: int = 1, frames_NF: NDArray[np.int64] | None = None
) -> Start:
    """`material.ipc` random real clips of each class, or normal noise, each `copies` times over, in class order.

    Of each these frames alone, where they are given.

    Raises:
        RequestError: a class has fewer clips than that.
    """
    clips = material.clips
    rows_N = draw_rows(clips, material.labels, material.ipc, material.seed).repeat(copies)
    x_NCTHW = initial(clips, rows_N, init, material.seed, material.device, frames_NF)
    sources = tuple(clips.table.videos[row].path if init == "real" else "" for row in rows_N)
    return Start(x_NCTHW, clips.labels_N[rows_N], sources)


def keep_in_range(clips: Clips, device: Device, name: str = "clips") -> Callable[[Learnt], None]:
    """A projection onto what uint8 can hold, so that what is learnt is what is stored."""
    low_C, high_C = pixel_range(clips, device)

    def project(learnt: Learnt) -> None:
        learnt[name].clamp_(low_C, high_C)

    return project


def kept(
    material: Material, form: str, stored: dict[str, NDArray[Any]], labels_N: NDArray[np.int64],
    sources: tuple[str, ...], curve: Curve, **facts: Any,
) -> DistilledSet:  # fmt: skip
    """The set that keeps `stored` and makes its clips by a form, with the loss for the report."""
    shape_NTHWC = (len(labels_N), *material.clips.shape_THWC)
    return DistilledSet(
        **variants(materialised(form, stored, shape_NTHWC)),
        labels_N=labels_N,
        classes=material.clips.classes,
        sources=sources,
        facts={**curve.facts, **facts},
        form=form,
        stored=stored,
    )


def norm_arrays(material: Material) -> dict[str, NDArray[np.float32]]:
    """What forms with networks keep to normalise."""
    table = material.clips.table
    return {"mean": np.array(table.mean, dtype=np.float32), "std": np.array(table.std, dtype=np.float32)}


def finished(material: Material, start: Start, x_NCTHW: Tensor, curve: Curve, **facts: Any) -> DistilledSet:
    """The set of these clips as uint8, with the loss for the report and how far the clips moved."""
    pairs = zip(x_NCTHW.detach(), start.x_NCTHW, strict=True)
    moved = float(np.mean([float((x_CTHW - begun_CTHW).abs().mean()) for x_CTHW, begun_CTHW in pairs]))
    return DistilledSet(
        clips_NTHWC=to_pixels(x_NCTHW.detach(), material.clips),
        labels_N=start.labels_N,
        classes=material.clips.classes,
        sources=start.sources,
        facts={**curve.facts, "moved_in_std": moved, **facts},
    )
