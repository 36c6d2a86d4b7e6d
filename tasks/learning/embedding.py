"""Embeddings of clips, a cached stage: made once for all methods, budgets and seeds that choose by them.

Shapes: N clips, D features.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.clips import Clips
from vidistill.storage.files import expanded
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning.teacher import features, load_teacher
from vidistill.tasks.learning.training import Device, Precision
from vidistill.tasks.learning.videomae import load_videomae, videomae_features
from vidistill.tasks.learning.weights import check_installed, known_by, unchanged
from vidistill.tasks.piecewise import pieces, taken_over
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from vidistill.tasks.methods import Given

TEACHER, EMBEDDINGS, FACTS = "teacher", "embeddings", "embedding"
VIDEOMAE_VERSION = 2  # a classifier's norm after the mean of tokens
PIECE = 32
"""Clips whose embeddings are kept together, in a chunk of their own."""
Embeddings = NDArray[np.float64]


class EmbeddingParameters(Parameters):
    """What clips are embedded by. Published (S4, §3.2): VideoMAE, D = 1,408.

    Without weights at hand the data set's own teacher is the next best that knows its classes.
    """

    embedding: str = Field(TEACHER, description="teacher; or VideoMAE of transformers: a folder, or a name on the Hub.")
    precision: Precision = "auto"


def embeddings_job(given: Given, clips: ArtifactRef, parameters: EmbeddingParameters, what: str) -> Job:
    """The job that embeds training clips or a pool.

    Raises:
        RequestError: the weights look like a path and are not there, or transformers is not installed.
    """
    label = f"embed {what} by {Path(parameters.embedding).name}"
    if parameters.embedding == TEACHER:
        own = EmbeddingParameters(precision=parameters.precision)
        return embed(own, {"clips": clips, "teacher": given.add(given.teacher)}, label=label)
    check_installed("transformers", "VideoMAE")
    path = expanded(parameters.embedding)
    own = EmbeddingParameters(embedding=parameters.embedding, precision=parameters.precision)
    job = embed(placeless(own), {"clips": clips}, label=label, version=VIDEOMAE_VERSION)
    return job.model_copy(update={"places": {FACTS: str(path.absolute() if path.exists() else parameters.embedding)}})


def train_embeddings(given: Given, precision: Precision) -> ArtifactRef:
    """The teacher's features of the training clips, one job whoever asks."""
    return given.add(embeddings_job(given, given.train, EmbeddingParameters(precision=precision), "training clips"))


def placeless(parameters: Any) -> Any:
    """Parameters whose `embedding` is what a key calls its weights, wherever they lie."""
    name = parameters.embedding
    return parameters.model_copy(update={"embedding": name if name == TEACHER else known_by(name)})


@stage(EMBEDDINGS, version=1, threads="all")  # 2: VideoMAE's
def embed(work: Work) -> None:
    parameters = EmbeddingParameters.model_validate(work.job.parameters)
    device = Device.of(work, parameters.precision)
    clips = Clips(work.store, work.ref("clips"))
    if parameters.embedding == TEACHER:
        teacher = load_teacher(work.store, work.ref("teacher"), clips, device)
        embedding_of = partial(features, teacher, clips, device=device)
    else:
        place = unchanged(work.job.places.get(FACTS, parameters.embedding), parameters.embedding)
        videomae = load_videomae(place).to(device.torch_device)
        embedding_of = partial(videomae_features, videomae, clips, device=device)
    first, count = taken_over(work), math.ceil(len(clips) / PIECE)
    array = zarr.open_array(work.folder, path=EMBEDDINGS, mode="r+") if first else None
    for number in pieces(work, first, count):
        rows_B = np.arange(number * PIECE, min((number + 1) * PIECE, len(clips)))
        emb_BD = embedding_of(rows_B)
        if array is None:
            array = _array(work.folder, (len(clips), emb_BD.shape[1]))
        array[rows_B[0] : rows_B[-1] + 1] = emb_BD.astype(np.float32)
        work.progress(int(rows_B[-1]) + 1, len(clips))
    assert array is not None
    work.record(counts={"clips": len(clips)}, dimensions=array.shape[1], **device.facts())


def _array(folder: Path, shape_ND: tuple[int, int]) -> zarr.Array[Any]:
    chunks = (PIECE, shape_ND[1])
    return zarr.create_array(
        folder, name=EMBEDDINGS, shape=shape_ND, chunks=chunks, dtype="float32", config={"write_empty_chunks": True}
    )


def load_embeddings(folder: Path) -> Embeddings:
    """A row a clip: float64 (N, D), stored as float32."""
    return np.asarray(zarr.open_array(folder, path=EMBEDDINGS, mode="r")[...], dtype=np.float64)
