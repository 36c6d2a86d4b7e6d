"""Quality of a pool: does the teacher know its classes, is it distributed as real clips are, is it copied from them?

Shapes: N generated clips, M real training clips, D features of the teacher, P numbers of a thumbnail,
K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidistill.models.regions import resize
from vidistill.storage.clips import PRELOAD_BYTES, Clips
from vidistill.storage.parameters import Parameters
from vidistill.storage.pool import Pool
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.generate.autoencoder import decoded, encoded, load_codec
from vidistill.tasks.generate.sheet import contact_sheet
from vidistill.tasks.learning.evaluate import predict_test
from vidistill.tasks.learning.teacher import features, load_teacher
from vidistill.tasks.learning.training import Device, Precision
from vidistill.tasks.stage import Job, Work, stage

FACTS, SHEET = "quality.json", "sheet.png"
CONTROLS = 64
"""Training clips at most that are encoded and decoded, to see whether copies are seen."""
THUMBNAIL = 14
"""Pixels across the frames that are compared. The teacher's features do not serve: of training clips of ten classes of
UCF101 that went through an autoencoder at 25 dB they find 16 in 100, thumbnails all."""
AT_ONCE = 256
"""Clips of either side that are compared together."""
Features = NDArray[np.float64]
Thumbnails = NDArray[np.float32]
Look = tuple[int, int, Thumbnails]
"""The number of a look, the row of its first clip here, and thumbnails of as many clips, (B, P)."""
Nearest = tuple[NDArray[np.int64], NDArray[np.int64], Thumbnails]
"""Of each clip the row of its nearest one, the number of the look in which that is nearest, and how they correlate."""


class QualityParameters(Parameters):
    precision: Precision = "auto"


class Neighbour(Parameters):
    """A generated clip's row, the row of its nearest training clip, and how alike they are.

    Attributes:
        correlation: of their thumbnails.
        view: of the training clip, that is nearest.
        mirrored: whether it is nearest when it is mirrored.
    """

    row: int
    train_row: int
    correlation: float
    view: int = 0
    mirrored: bool = False

    def shown(self, clips: Clips) -> NDArray[np.uint8]:
        """The training clip as it is nearest, (T, H, W, 3)."""
        return look_of(clips, self.train_row, self.view, self.mirrored)


class Quality(Parameters):
    """What is known of a pool.

    Attributes:
        accuracy: share of the clips whose class the teacher, which never saw them, names.
        accuracy_by_class: the same, class by class.
        fvd: Fréchet distance of the pool to one half of the training clips, in the teacher's features; none where a
            half is a single clip.
        fvd_real: that of the other half, which has other groups: what sampling alone makes of it. Both are of as many
            clips as the other half has, or the pool where that is less, since fewer clips are farther away.
        nearest: a row a generated clip, the training clip that correlates most with it, in any of its views, mirrored
            where the data set allows it: all that the generator has seen.
        nearest_median: median correlation with it.
        nearest_real: median correlation of a training clip with the nearest one of another group: those of one group
            are often one scene.
        copied: share of the clips more like a training clip than 99 of 100 training clips are like one of another
            group.
        control: the same share of training clips, of all views and mirrored, that the pool's autoencoder encodes and
            decodes: copies, of which a measure that sees copies misses few.
    """

    accuracy: float
    accuracy_by_class: dict[str, float]
    fvd: float | None
    fvd_real: float | None
    nearest: tuple[Neighbour, ...]
    nearest_median: float
    nearest_real: float
    copied: float
    control: float


def quality_job(pool: ArtifactRef, train: ArtifactRef, teacher: ArtifactRef) -> Job:
    return quality(QualityParameters(), {"pool": pool, "clips": train, "teacher": teacher}, label="quality of the pool")


@stage("pool-quality", version=5, threads="all")  # 5: thumbnails are scaled as clips are when they are decoded
def quality(work: Work) -> None:
    device = Device.of(work, QualityParameters.model_validate(work.job.parameters).precision)
    pool, clips = Pool(work.store, work.ref("pool")), Clips(work.store, work.ref("clips"))
    network = load_teacher(work.store, work.ref("teacher"), clips, device)
    right_N = predict_test(network, pool, device, clips.table).numpy().argmax(1) == pool.labels_N
    made_ND = features(network, pool, np.arange(len(pool)), device)
    real_MD = features(network, clips, np.arange(len(clips)), device)
    groups_M = groups_of(clips)
    copies = reconstructed(work, clips, device)
    every = chain(thumbnails(pool, range(len(pool))), thumbnails(clips, range(len(clips))), copies)
    own = [np.full(len(pool), ""), groups_M, np.full(len(copies), "")]  # who was made is of no group
    rows, shown, alike = all_nearest(every, copies.shape[1], clips, np.concatenate(own))
    row_N, look_N = rows[: len(pool)], shown[: len(pool)]
    alike_N, among_M, of_copies = np.split(alike, [len(pool), len(pool) + len(clips)])
    close = np.quantile(among_M, 0.99)
    first_M = first_half(groups_M)
    half_HD, other_HD = real_MD[first_M], real_MD[~first_M]
    count = min(len(made_ND), len(other_HD))
    mirrors = 2 if clips.table.flips else 1
    neighbours = [
        Neighbour(row=row, train_row=int(near), correlation=float(close_by), view=int(look) // mirrors,
                  mirrored=bool(look % mirrors))
        for row, (near, look, close_by) in enumerate(zip(row_N, look_N, alike_N, strict=True))
    ]  # fmt: skip
    found = Quality(
        accuracy=float(right_N.mean()),
        accuracy_by_class={name: float(right_N[pool.rows_of(label)].mean()) for label, name in enumerate(pool.classes)},
        fvd=frechet_distance(spread(made_ND, count), half_HD),
        fvd_real=frechet_distance(spread(other_HD, count), half_HD),
        nearest=tuple(neighbours),
        nearest_median=float(np.median(alike_N)),
        nearest_real=float(np.median(among_M)),
        copied=float((alike_N > close).mean()),
        control=float((of_copies > close).mean()),
    )
    (work.folder / FACTS).write_text(json.dumps(found.model_dump(mode="json")))
    Image.fromarray(contact_sheet(pool, lambda row: neighbours[row].shown(clips))).save(work.folder / SHEET)
    told = found.model_dump(include={"accuracy", "fvd", "fvd_real", "copied", "control"})
    work.record(counts={"clips": len(pool), "train": len(clips)}, **told, **device.facts())


def reconstructed(work: Work, clips: Clips, device: Device) -> Thumbnails:
    """Of training clips, encoded and decoded by the pool's autoencoder at the size that it generates.

    One after another of another view, and every other round of them mirrored.
    """
    codec_ref = work.store.manifest(work.ref("pool")).inputs["autoencoder"][0]
    codec = load_codec(work.store, codec_ref, device)
    source = Clips(work.store, work.store.manifest(codec_ref).inputs["clips"][0])
    found, size, views = [], clips.shape_THWC[1], clips.table.views
    for number, row in enumerate(np.linspace(0, len(source) - 1, min(len(source), CONTROLS)).astype(int)):
        shown_THWC = look_of(source, row, number % views, clips.table.flips and number // views % 2 == 1)
        clip_THWC = decoded(codec, encoded(codec, np.ascontiguousarray(shown_THWC)[None], device), device)[0]
        found.append(thumbnail(resize(clip_THWC[None], size, size)[0]))
    return np.stack(found)


def look_of(clips: Clips, row: int, view: int, mirrored: bool) -> NDArray[np.uint8]:
    """A clip as a generator may have seen it, (T, H, W, 3)."""
    clip_THWC: NDArray[np.uint8] = clips.read([row], view)[0]
    return clip_THWC[:, :, ::-1] if mirrored else clip_THWC


def looks(clips: Clips) -> Iterator[Look]:
    """Of all that a generator has seen of the training clips: each view, and each mirrored where they may be."""
    side, mirrors = min(THUMBNAIL, clips.shape_THWC[1]), 2 if clips.table.flips else 1
    for view in range(clips.table.views):
        for first in range(0, len(clips), AT_ONCE):
            rows = range(first, min(first + AT_ONCE, len(clips)))
            shown_BP = np.stack([*thumbnails(clips, rows, view)])
            yield view * mirrors, first, shown_BP
            if clips.table.flips:
                mirrored = shown_BP.reshape(len(rows), -1, side, 3)[:, :, ::-1]
                yield view * mirrors + 1, first, mirrored.reshape(len(rows), -1)


def thumbnails(source: Pool | Clips, rows: Iterable[int], view: int = 0) -> Iterator[Thumbnails]:
    return (thumbnail(source.read([row], view)[0]) for row in rows)


def thumbnail(clip_THWC: NDArray[np.uint8]) -> Thumbnails:
    """A clip in small, its numbers in a row, of mean 0 and length 1: two of them multiply to their correlation."""
    side = min(THUMBNAIL, clip_THWC.shape[1])
    small_P = resize(clip_THWC[None], side, side).reshape(-1).astype(np.float32)
    small_P -= small_P.mean()
    length = np.linalg.norm(small_P)
    return small_P / length if length else small_P


def groups_of(clips: Clips) -> NDArray[np.str_]:
    """The group of each clip; each is one by itself where the data name none, or a single one."""
    groups = np.array([video.group or video.path for video in clips.table.videos])
    return groups if len(set(groups)) > 1 else np.array([video.path for video in clips.table.videos])


def first_half(groups_M: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Which clips are of one half: every other group, in the order of the clips."""
    _, first, number_M = np.unique(groups_M, return_index=True, return_inverse=True)
    half_M: NDArray[np.bool_] = first.argsort().argsort()[number_M] % 2 == 0
    return half_M


def spread(rows_ND: Features, count: int) -> Features:
    """So many of the rows, evenly from the first to the last."""
    chosen_ND: Features = rows_ND[np.linspace(0, len(rows_ND) - 1, count).astype(int)]
    return chosen_ND


def load_quality(folder: Path) -> Quality:
    return Quality.model_validate_json((folder / FACTS).read_bytes())


def in_words(distance: float | None) -> str:
    return "not measured" if distance is None else f"{distance:.2f}"


def frechet_distance(a_ND: Features, b_MD: Features) -> float | None:
    """‖μ − μ'‖² + Tr(C + C' − 2(C·C')^½) of two samples (Heusel et al. 2017, Eq. 6); none where one has a single row.

    With C = R'R and C' = Q'Q the last trace is the sum of the singular values of R·Q': no matrix root, and samples
    smaller than D do no harm.
    """
    if min(len(a_ND), len(b_MD)) < 2:
        return None
    root_a, root_b = _root(a_ND), _root(b_MD)
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    apart = ((a_ND.mean(0) - b_MD.mean(0)) ** 2).sum()
    return float(apart + (root_a**2).sum() + (root_b**2).sum() - 2 * shared)


def _root(sample_ND: Features) -> Features:
    """R with R'R the covariance."""
    scaled_ND = (sample_ND - sample_ND.mean(0)) / np.sqrt(len(sample_ND) - 1)
    return np.linalg.qr(scaled_ND).R


def all_nearest(shown: Iterable[Thumbnails], numbers: int, clips: Clips, groups_N: NDArray[np.str_]) -> Nearest:
    """The `nearest` training clips of so many that at most 1 GiB of their thumbnails is held, and then the next.

    Args:
        shown: N thumbnails of P numbers each.
        numbers: P.
        clips: the training clips, which are read again for every GiB.
        groups_N: the group of each.
    """
    shown, groups_M = iter(shown), groups_of(clips)
    row: Any = np.dtype((np.float32, numbers))
    held = AT_ONCE * max(1, PRELOAD_BYTES // (row.itemsize * AT_ONCE))
    found = []
    for first in range(0, len(groups_N), held):
        groups_B = groups_N[first : first + held]
        block = islice(shown, len(groups_B))
        found.append(nearest(np.fromiter(block, row, len(groups_B)), looks(clips), groups_B, groups_M))
    rows, looks_N, alike = zip(*found, strict=True)
    return np.concatenate(rows), np.concatenate(looks_N), np.concatenate(alike)


def nearest(a_NP: Thumbnails, looks: Iterable[Look], groups_N: NDArray[np.str_], groups_M: NDArray[np.str_]) -> Nearest:
    """For each row of the first the nearest other clip.

    Args:
        a_NP: thumbnails.
        looks: of the others, M in all of each: a clip is as near as its nearest look.
        groups_N: the group of each of the first: no clip of it is its nearest.
        groups_M: that of the others.
    """
    row_N, look_N = np.zeros((2, len(a_NP)), np.int64)
    alike_N = np.full(len(a_NP), -np.inf, np.float32)
    for look, first_row, b_RP in looks:
        for first in range(0, len(a_NP), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            alike_BR = a_NP[part] @ b_RP.T
            alike_BR[groups_N[part, None] == groups_M[first_row : first_row + len(b_RP)]] = -np.inf
            better = alike_BR.max(1) > alike_N[part]
            row_N[part] = np.where(better, first_row + alike_BR.argmax(1), row_N[part])
            look_N[part] = np.where(better, look, look_N[part])
            alike_N[part] = np.maximum(alike_BR.max(1), alike_N[part])
    return row_N, look_N, alike_N
