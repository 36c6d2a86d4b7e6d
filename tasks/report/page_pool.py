"""A pool of generated clips as pictures, charts and a table of its quality.

Legend: N clips, T frames, H height, W width; clips are uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidistill.tasks.generate.quality import in_words
from vidistill.tasks.report import pictures
from vidistill.tasks.report.data import NeighbourShown, PoolShown
from vidistill.tasks.videos.strips import GAP, strip

POOL_BYTES = 6_000_000
Moving = tuple[str, str]
"""The addresses of a moving picture and of its first frame."""


@dataclass(frozen=True)
class Measure:
    """One number of a pool's quality beside what it is to be compared with."""

    name: str
    value: str
    beside: str
    what: str


@dataclass(frozen=True)
class PoolPictures:
    pool: PoolShown
    measures: list[Measure]
    loss: pictures.Panel | None
    accuracy: pictures.BarChart | None
    sheet: list[tuple[str, str]]
    left_out: int
    neighbours: dict[str, list[tuple[NeighbourShown, Moving, Moving]]]


def pool_pictures(pools: Sequence[PoolShown]) -> list[PoolPictures]:
    """All that is drawn of each pool; sheets of more classes are left out where the page would grow large."""
    return [_pictured(pool) for pool in pools]


def _pictured(pool: PoolShown) -> PoolPictures:
    sheet: list[tuple[str, str]] = []
    for class_name, clips_NTHWC in pool.sheet:
        if sum(len(address) for _, address in sheet) > POOL_BYTES:
            break
        sheet.append((class_name, pictures.data_uri(_strips(clips_NTHWC))))
    shares = pictures.Series("c0", "named by the teacher", (), list(pool.accuracy_by_class.values()))
    return PoolPictures(
        pool=pool,
        measures=measures(pool),
        loss=_loss(pool) if pool.loss else None,
        accuracy=pictures.bar_chart(list(pool.accuracy_by_class), [shares]) if pool.accuracy_by_class else None,
        sheet=sheet,
        left_out=pool.classes_left_out + len(pool.sheet) - len(sheet),
        neighbours={
            name: [(one, pictures.looping(one.made_THWC), pictures.looping(one.real_THWC)) for one in pairs]
            for name, pairs in pool.neighbours.items()
        },
    )


def _loss(pool: PoolShown) -> pictures.Panel:
    line = pictures.Series("c0", f"Latte: ends at {pool.loss[-1]:.3g}", pool.steps, pool.loss)
    return pictures.line_panel("Training loss of Latte", [line])


def measures(pool: PoolShown) -> list[Measure]:
    """A pool's quality in words; nothing where it was not measured."""
    found = pool.quality
    if not found:
        return []
    chance = 1 / len(pool.accuracy_by_class)
    return [
        Measure("clips whose class the teacher names", f"{found['accuracy']:.1%}", f"{chance:.1%}", "by chance"),
        Measure("Fréchet video distance to half of the training clips",
                in_words(found["fvd"]), in_words(found["fvd_real"]),
                "between halves of the training clips without a common group, as many clips"),
        Measure("correlation with the nearest training clip, median", f"{found['nearest_median']:.2f}",
                f"{found['nearest_real']:.2f}", "of a training clip with one of another group"),
        Measure("clips copied", f"{found['copied']:.1%}", "1.0%",
                "by definition: more like a training clip than 99 of 100 training clips are like one of another group"),
        Measure("training clips that are seen as copies, through the autoencoder", f"{found['control']:.1%}", "100.0%",
                "where every copy is seen"),
    ]  # fmt: skip


def pool_document(pool: PoolShown) -> dict[str, Any]:
    """What scripts read of a pool."""
    names = ("key", "facts", "warnings", "quality", "accuracy_by_class", "steps", "loss")
    return {name: getattr(pool, name) for name in names}


def _strips(clips_NTHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Clips one below the other, each as a row of its frames: (1, height, width, 3)."""
    rows = [strip(clip_THWC)[0] for clip_THWC in clips_NTHWC]
    padded = [np.pad(row, ((0, GAP), (0, 0), (0, 0)), constant_values=127) for row in rows]
    sheet_HWC: NDArray[np.uint8] = np.concatenate(padded)[:-GAP]
    return sheet_HWC[None]
