"""Embeddings of clips, a cached stage that all selections of a run share, and the methods that choose by them.

Shapes: N clips, B clips a batch, T frames, H height, W width, D features.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.generate.autoencoder import check_installed, known_by
from vidistill.tasks.learning.teacher import features, load_teacher
from vidistill.tasks.learning.training import Device, Precision
from vidistill.tasks.methods import Given, Material, Method, chosen_of
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from torch import Tensor

TEACHER, EMBEDDINGS, FACTS = "teacher", "embeddings", "embedding"
BATCH = 8
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Embeddings = NDArray[np.float64]
Pick = Callable[[Embeddings, int], NDArray[np.int64]]
"""From the embeddings of a class's generated clips and the class to the indices of the chosen ones."""


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
    path = Path(parameters.embedding).expanduser()
    there = path.exists()
    name = _known_by(parameters.embedding, _stamp(path) if there else 0)
    job = embed(EmbeddingParameters(embedding=name, precision=parameters.precision), {"clips": clips}, label=label)
    return job.model_copy(update={"places": {FACTS: str(path.absolute() if there else parameters.embedding)}})


@cache
def _known_by(place: str, stamp: int) -> str:  # noqa: ARG001
    """The name of weights, their content hashed once for all rows of a run; `stamp` is when they were changed last."""
    return known_by(place)


def _stamp(path: Path) -> int:
    return max(one.stat().st_mtime_ns for one in (path, *path.rglob("*")))


@stage(EMBEDDINGS, version=1, threads="all")
def embed(work: Work) -> None:
    parameters = EmbeddingParameters.model_validate(work.job.parameters)
    device = Device.of(work, parameters.precision)
    clips = Clips(work.store, work.ref("clips"))
    if parameters.embedding == TEACHER:
        network = load_teacher(work.store, work.ref("teacher"), clips, device)
        emb_ND = features(network, clips, np.arange(len(clips)), device)
    else:
        emb_ND = videomae_features(work.job.places.get(FACTS, parameters.embedding), clips, device, work.progress)
    zarr.create_array(work.folder, name=EMBEDDINGS, data=emb_ND.astype(np.float32))
    facts = {"dimensions": emb_ND.shape[1], **device.facts()}
    work.record(counts={"clips": len(clips)}, **facts)


def load_embeddings(folder: Path) -> Embeddings:
    """A row a clip: float64 (N, D), stored as float32."""
    return np.asarray(zarr.open_array(folder, path=EMBEDDINGS, mode="r")[...], dtype=np.float64)


def videomae_features(place: str, clips: Clips, device: Device, progress: Callable[[int, int], None]) -> Embeddings:
    """The mean of VideoMAE's last tokens: float64 (N, D).

    Clips are resized to the network's frames (the nearest ones, evenly spread) and size, normalised as ImageNet.

    Raises:
        RequestError: the weights are not there or not VideoMAE's.
    """
    import torch

    network = load_videomae(place).to(device.torch_device).eval().requires_grad_(False)
    frames, size = network.config.num_frames, network.config.image_size
    found = []
    with torch.inference_mode(), device.autocast():
        for first in range(0, len(clips), BATCH):
            clips_NTHWC = clips.read(range(first, min(first + BATCH, len(clips))))
            x_BTCHW = videomae_input(clips_NTHWC, frames, size, device)
            found.append(network(pixel_values=x_BTCHW).last_hidden_state.mean(1).double().cpu().numpy())
            progress(min(first + BATCH, len(clips)), len(clips))
    return np.concatenate(found)


def videomae_input(clips_NTHWC: NDArray[np.uint8], frames: int, size: int, device: Device) -> Tensor:
    """x_BTCHW float32, normalised by ImageNet's mean and deviation."""
    import torch

    places_T = np.linspace(0, clips_NTHWC.shape[1] - 1, frames).round().astype(int)
    x_BTCHW = torch.from_numpy(clips_NTHWC[:, places_T]).to(device.torch_device).permute(0, 1, 4, 2, 3).float() / 255
    x_FCHW = torch.nn.functional.interpolate(x_BTCHW.flatten(0, 1), size=(size, size), mode="bicubic", antialias=True)
    values = (torch.tensor(value, device=x_FCHW.device)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    mean_C11, std_C11 = values
    return ((x_FCHW.clamp(0, 1) - mean_C11) / std_C11).view(len(clips_NTHWC), frames, 3, size, size)


def load_videomae(place: str) -> Any:
    """VideoMAE with the weights of a folder or of a name on the Hub, all of them.

    Raises:
        RequestError: see `videomae_features`.
    """
    transformers: Any = importlib.import_module("transformers")
    try:
        network, found = transformers.VideoMAEModel.from_pretrained(place, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(
            f"VideoMAE {place!r} cannot be loaded ({why}): give a folder that has it, or embedding=teacher."
        ) from error
    if absent := sorted(found["missing_keys"]):
        raise RequestError(
            f"The weights {place!r} do not fit VideoMAE ({len(absent)} are missing, such as {absent[0]}): give a "
            "checkpoint of VideoMAE, or embedding=teacher."
        )
    return network


class EmbeddingSelector(Method):
    """A method that chooses among a class's generated clips by their embeddings.

    Attributes:
        learns: whether it is also given the embeddings of the real training clips, to learn from them.
    """

    needs = ("pool",)
    learns: ClassVar[bool] = False
    Parameters = EmbeddingParameters

    def inputs(self, given: Given) -> dict[str, list[ArtifactRef]]:
        made = super().inputs(given)
        own = EmbeddingParameters(embedding=self.parameters.embedding, precision=self.parameters.precision)
        made[EMBEDDINGS] = [given.add(embeddings_job(given, made["pool"][0], own, "the pool"))]
        if self.learns:
            made["real"] = [given.add(embeddings_job(given, given.train, own, "training clips"))]
        return made

    def distil(self, material: Material) -> DistilledSet:
        pool, emb_ND = material.pool(), load_embeddings(material.inputs(EMBEDDINGS)[0])
        pick, rows = self.picker(material), []
        for label in material.labels:
            own = pool.rows_of(label)
            rows.append(own[pick(emb_ND[own], label)])
        return chosen_of(pool, np.concatenate(rows), self.facts(emb_ND.shape[1]))

    @abstractmethod
    def picker(self, material: Material) -> Pick:
        """What chooses `material.ipc` clips of a class; trained here where there is anything to train."""

    def facts(self, dimensions: int) -> dict[str, Any]:
        """What embedded the clips, and what the row of a method with a head of its own says of it."""
        made = embedded_by(self.parameters.embedding, dimensions)
        if self.learns:
            made["mark"] = (
                f"no published weights: its head was trained here on real training clips, embedded by {made[FACTS]}"
            )
        return made


def embedded_by(embedding: str, dimensions: int) -> dict[str, Any]:
    """What a set's facts say of its embeddings."""
    name = Path(embedding).name
    by = "the data set's own teacher" if name == TEACHER else f"VideoMAE {name}"
    return {FACTS: by, "dimensions": dimensions}


def real_embeddings(material: Material) -> Embeddings:
    """Those of the real training clips, in the order of their rows."""
    return load_embeddings(material.inputs("real")[0])


def highest(score_N: NDArray[np.floating[Any]], count: int) -> NDArray[np.int64]:
    """Indices of the highest scores, highest first; of equals the first."""
    return np.argsort(-score_N, kind="stable")[:count].astype(np.int64)
