"""Quality of a pool: does the teacher know its classes, is it distributed as real clips are, is it copied from them?

Shapes: N generated clips, M real training clips, D features of the teacher, K classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidistill.storage.clips import Clips
from vidistill.storage.parameters import Parameters
from vidistill.storage.pool import Pool
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.generate.autoencoder import decoded, encoded, load_codec
from vidistill.tasks.generate.sample import scaled
from vidistill.tasks.generate.sheet import contact_sheet
from vidistill.tasks.learning import training
from vidistill.tasks.learning.teacher import features, load_teacher
from vidistill.tasks.learning.training import Device, Precision
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from torch import nn

FACTS, SHEET = "quality.json", "sheet.png"
CONTROLS = 64
"""Training clips at most that are encoded and decoded, to see whether copies are seen."""
Features = NDArray[np.float64]


class QualityParameters(Parameters):
    precision: Precision = "auto"


class Neighbour(Parameters):
    """A generated clip's row, the row of its nearest training clip, and how far they are from each other.

    Attributes:
        distance: Euclidean, in the teacher's features.
        levels: root mean square of the pixels' differences, in levels of 255.
    """

    row: int
    train_row: int
    distance: float
    levels: float


class Quality(Parameters):
    """What is known of a pool.

    Attributes:
        accuracy: share of the clips whose class the teacher, which never saw them, names.
        accuracy_by_class: the same, class by class.
        fvd: Fréchet distance of the pool to one half of the training clips, in the teacher's features.
        fvd_real: that of the other half: what sampling alone makes of it. Both are of as many clips as a half has, or
            the pool where that is less, since fewer clips are farther away.
        nearest: a row a generated clip, its nearest training clip in the teacher's features.
        nearest_median: median distance to it.
        nearest_real: median distance of a training clip to its nearest other one.
        copied: share of the clips nearer to a training clip than 99 of 100 training clips are to another.
        control: the same share of training clips that the pool's autoencoder encodes and decodes: copies, of which a
            measure that sees copies misses few.
    """

    accuracy: float
    accuracy_by_class: dict[str, float]
    fvd: float
    fvd_real: float
    nearest: tuple[Neighbour, ...]
    nearest_median: float
    nearest_real: float
    copied: float
    control: float


def quality_job(pool: ArtifactRef, train: ArtifactRef, teacher: ArtifactRef) -> Job:
    return quality(QualityParameters(), {"pool": pool, "clips": train, "teacher": teacher}, label="quality of the pool")


@stage("pool-quality", version=2, threads="all")  # 2: distances of equally many clips, and copies as a control
def quality(work: Work) -> None:
    device = Device.of(work, QualityParameters.model_validate(work.job.parameters).precision)
    pool, clips = Pool(work.store, work.ref("pool")), Clips(work.store, work.ref("clips"))
    network = load_teacher(work.store, work.ref("teacher"), clips, device)
    batches = (pool.read(range(first, min(first + 32, len(pool)))) for first in range(0, len(pool), 32))
    inputs = (training.to_input(batch, clips.table.mean, clips.table.std, device) for batch in batches)
    right_N = training.predict(network, inputs, device).numpy().argmax(1) == pool.labels_N
    made_ND = features(network, pool, np.arange(len(pool)), device)
    real_MD = features(network, clips, np.arange(len(clips)), device)
    nearest_N, distances_N = nearest(made_ND, real_MD)
    _, among_M = nearest(real_MD, real_MD, itself=True)
    close = np.quantile(among_M, 0.01)
    _, of_copies_N = nearest(reconstructed(network, work, clips, device), real_MD)
    count = min(len(made_ND), len(real_MD) // 2)
    neighbours = [
        Neighbour(row=row, train_row=int(near), distance=float(distance), levels=levels(pool, row, clips, int(near)))
        for row, (near, distance) in enumerate(zip(nearest_N, distances_N, strict=True))
    ]
    found = Quality(
        accuracy=float(right_N.mean()),
        accuracy_by_class={name: float(right_N[pool.rows_of(label)].mean()) for label, name in enumerate(pool.classes)},
        fvd=frechet_distance(spread(made_ND, count), real_MD[::2]),
        fvd_real=frechet_distance(spread(real_MD[1::2], count), real_MD[::2]),
        nearest=tuple(neighbours),
        nearest_median=float(np.median(distances_N)),
        nearest_real=float(np.median(among_M)),
        copied=float((distances_N < close).mean()),
        control=float((of_copies_N < close).mean()),
    )
    (work.folder / FACTS).write_text(json.dumps(found.model_dump(mode="json")))
    Image.fromarray(contact_sheet(pool, clips, nearest_N.tolist())).save(work.folder / SHEET)
    work.record(counts={"clips": len(pool), "train": len(clips)}, **_summary(found), **device.facts())


def reconstructed(network: nn.Module, work: Work, clips: Clips, device: Device) -> Features:
    """Features of training clips, encoded and decoded by the pool's autoencoder at the size that it generates."""
    import torch

    codec_ref = work.store.manifest(work.ref("pool")).inputs["autoencoder"][0]
    codec = load_codec(work.store, codec_ref, device)
    source = Clips(work.store, work.store.manifest(codec_ref).inputs["clips"][0])
    found, size = [], clips.shape_THWC[1]
    for row in np.linspace(0, len(source) - 1, min(len(source), CONTROLS)).astype(int):
        clip_THWC = decoded(codec, encoded(codec, source.read([row]), device), device)[0]
        clip_THWC = clip_THWC if len(clip_THWC[0]) == size else scaled(clip_THWC, size)
        x_BCTHW = training.to_input(clip_THWC[None], clips.table.mean, clips.table.std, device)
        with torch.inference_mode(), device.autocast():
            found.append(network.embed(x_BCTHW).double().cpu().numpy())  # type: ignore[operator]
    return np.concatenate(found)


def spread(rows_ND: Features, count: int) -> Features:
    """So many of the rows, evenly from the first to the last."""
    chosen_ND: Features = rows_ND[np.linspace(0, len(rows_ND) - 1, count).astype(int)]
    return chosen_ND


def load_quality(folder: Path) -> Quality:
    return Quality.model_validate_json((folder / FACTS).read_text())


def _summary(found: Quality) -> dict[str, Any]:
    return {name: getattr(found, name) for name in ("accuracy", "fvd", "fvd_real", "copied", "control")}


def frechet_distance(a_ND: Features, b_MD: Features) -> float:
    """‖μ − μ'‖² + Tr(C + C' − 2(C·C')^½) of two samples (Heusel et al. 2017, Eq. 6), of any number of rows above one.

    With C = R'R and C' = Q'Q the last trace is the sum of the singular values of R·Q': no matrix root, and samples
    smaller than D do no harm.
    """
    root_a, root_b = _root(a_ND), _root(b_MD)
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    apart = ((a_ND.mean(0) - b_MD.mean(0)) ** 2).sum()
    return float(apart + (root_a**2).sum() + (root_b**2).sum() - 2 * shared)


def _root(sample_ND: Features) -> Features:
    """R with R'R the covariance."""
    scaled_ND = (sample_ND - sample_ND.mean(0)) / np.sqrt(len(sample_ND) - 1)
    return np.linalg.qr(scaled_ND).R


def nearest(a_ND: Features, b_MD: Features, *, itself: bool = False) -> tuple[NDArray[np.int64], Features]:
    """For each row of the first its nearest row of the second, and their distance; `itself`: none is its own."""
    rows, distances = [], []
    for number, row_D in enumerate(a_ND):
        away_M = np.linalg.norm(b_MD - row_D, axis=1)
        if itself:
            away_M[number] = np.inf
        rows.append(int(away_M.argmin()))
        distances.append(float(away_M[rows[-1]]))
    return np.array(rows, dtype=np.int64), np.array(distances)


def levels(pool: Pool, row: int, clips: Clips, train_row: int) -> float:
    """Root mean square of two clips' differences, in levels of 255."""
    difference = pool.read([row]).astype(np.float64) - clips.read([train_row])
    return float(np.sqrt((difference**2).mean()))
