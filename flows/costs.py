"""What jobs cost by default, told from their parameters and inputs: seconds and bytes.

Seconds are those of one thread of the machine on which they were measured (AMD EPYC, bf16, nothing else running);
`estimates` corrects them by how fast a machine is, and by what jobs have taken there. A *pass* is a network's forward
and backward pass of one clip; the forward one alone is a third of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vidistill.flows.look import Look
from vidistill.flows.passes import METHODS, Data, of_gradients
from vidistill.models import parted
from vidistill.storage.clips import PRELOAD_BYTES
from vidistill.storage.store import ArtifactRef, Manifest
from vidistill.tasks.generate.autoencoder import MEASURED_FRAMES
from vidistill.tasks.generate.quality import THUMBNAIL

NETWORKS = {
    "r2plus1d_small": 0.1e-6, "r2plus1d_small_in": 0.1e-6, "r2plus1d_small_gn": 0.1e-6, "r3d_18": 6e-6,
    "minic3d": 0.8e-6, "minic3d_bn": 0.8e-6, "cnn_gru": 5.3e-6, "cnn_lstm": 6.9e-6, "c3d": 6.6e-6,
    "video_swin_t": 2.6e-6, "": 0.8e-6,
}  # fmt: skip
"""Seconds a pass and pixel."""
WEIGHTS = {
    "r2plus1d_small": 0.4e6, "r3d_18": 133e6, "cnn_gru": 68e6, "cnn_lstm": 90e6, "c3d": 211e6, "video_swin_t": 111e6,
    "": 14.6e6,
}  # fmt: skip
"""Bytes of a network's weights, of clips of 8×56×56."""
GENERATORS = {"micro": 1.9e6, "tiny": 3.7e6, "mini": 5.5e6, "S": 33e6, "B": 130e6, "L": 457e6, "XL": 674e6}
"""Weights of Latte."""
COMPILED = 1.3
"""What a generator's steps gain when they are compiled (`tests/benchmarks/latte_speed.py`)."""
MUON = 1.3e-8
"""Seconds an update by Muon takes more than one by AdamW, a weight (the same)."""
GIVEN_BYTES, ENCODED, DECODED = 335e6, 5.5e-5, 1.2e-4
"""Of Stable Diffusion's autoencoder, in fp32 without bf16 units: bytes of its weights, seconds a pixel either way."""
READ, COMPARED = 2e-8, 2.6e-11
"""Seconds a pixel of a clip that is read and made a thumbnail, and a number of a pair of thumbnails."""
STORED, CODED = 0.55, 0.036
"""Bytes of a compressed clip a byte of its pixels, and of one that is coded as video a pixel."""


@dataclass(frozen=True)
class Cost:
    """What a job costs by default, and what it is like.

    Attributes:
        seconds: of one thread.
        bytes: of its artifact.
        alike: names of jobs that it is like, the most distant ones first.
    """

    seconds: float
    bytes: float
    alike: tuple[str, ...]


def cost_of(job: Manifest, look: Look) -> Cost:
    """What a job costs.

    Raises:
        LookupError: nobody knows the inputs that tell.
    """
    seconds, size = COSTS.get(job.kind, _unknown)(job, look)
    parameters = job.parameters
    network = job.kind not in WITHOUT_NETWORK
    who = parameters.get("method") or _options(parameters).get("network") or parameters.get("size") or ""
    recipe = parameters.get("recipe") or {}
    names = [str(who), str(recipe.get("labels", "")), *_shape(job, look)]
    alike = ["networks" if network else "files", job.kind]
    for name in names:
        alike.append(f"{alike[-1]} {name}")
    return Cost(seconds, size, tuple(dict.fromkeys(alike)))


def _shape(job: Manifest, look: Look) -> list[str]:
    names = [name for name in ("clips", "train") if name in job.inputs]
    if job.kind == "block":
        sampling = job.parameters["sampling"]
        return [f"{sampling['views']}×{sampling['frames']}×{sampling['size']}"]
    if not names:
        return []
    data = look.data(job.inputs[names[0]][0])
    return [f"{data.frames}×{data.size}"]


def _set(ref: ArtifactRef, look: Look) -> int:
    """Clips of a distilled set."""
    made = look.known(ref)
    if made.kind == "distilled":
        return _kept(made.parameters, look.data(made.inputs["clips"][0]))
    parts = made.inputs["parts"] if "parts" in made.inputs else made.inputs["distilled"]
    return sum(_set(part, look) for part in parts)


def _kept(parameters: Mapping[str, Any], data: Data) -> int:
    """Clips of a set: as many as were asked for, or as have room in the kilobytes of a class."""
    classes = len(parameters["labels"])
    if parameters.get("kb") is None:
        return int(parameters["ipc"] * classes)
    return min(data.clips, classes * max(1, int(1000 * parameters["kb"] / (CODED * data.pixels))))


def _options(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = parameters.get("options") or parameters.get("expert") or parameters
    return found


def _rate(network: str) -> float:
    return NETWORKS.get(parted(network)[1], NETWORKS[""])


def _weights(network: str) -> float:
    return WEIGHTS.get(parted(network)[1], WEIGHTS[""])


def _passes(training: Mapping[str, Any], clips: int) -> int:
    """Clips that a teacher or a student takes until it is trained."""
    batch = min(training["optimiser"]["batch_size"], clips)
    return int(max(training["least_steps"] * batch, training["epochs"] * clips))


def _sprites(job: Manifest, look: Look) -> tuple[float, float]:  # noqa: ARG001
    own = job.parameters
    pixels = 8 * (own["train_per_class"] + own["test_per_class"]) * own["frames"] * own["size"] ** 2
    return 0.17e-6 * pixels, 0.08 * pixels


def _index(job: Manifest, look: Look) -> tuple[float, float]:  # noqa: ARG001
    return 0.1, 1e5


def _block(job: Manifest, look: Look) -> tuple[float, float]:  # noqa: ARG001
    sampling, videos = job.parameters["sampling"], job.parameters["videos"]
    pixels = sampling["views"] * sampling["frames"] * sampling["size"] ** 2
    read = sum(video["bytes"] for video in videos)
    return 0.25 + len(videos) * (0.003 + 2e-8 * pixels) + 1e-7 * read, 3 * STORED * len(videos) * pixels


def _clips(job: Manifest, look: Look) -> tuple[float, float]:
    clips = sum(len(look.known(block).parameters["videos"]) for block in job.inputs["blocks"])
    return 0.02 + 1e-4 * clips, 150.0 * clips


def _trained(job: Manifest, look: Look) -> tuple[float, float]:
    """A teacher, or an expert, which keeps its weights after each epoch."""
    own, data = _options(job.parameters), look.data(job.inputs["clips"][0])
    expert = job.kind == "expert"
    kept, passes = (own["epochs"] + 1, own["epochs"] * data.clips) if expert else (1, _passes(own, data.clips))
    many = own.get("ensemble", 1)
    return 0.5 + many * passes * data.pixels * _rate(own["network"]), many * kept * _weights(own["network"])


def _trial(job: Manifest, look: Look) -> tuple[float, float]:
    """A student of four fifths of the clips, scored on the rest."""
    data, own = look.data(job.inputs["clips"][0]), job.parameters
    passes = _passes(own["student"], round(0.8 * data.clips)) + data.clips / 15
    return 0.3 + passes * data.pixels * _rate(own["network"]), 1e3


def _reference(job: Manifest, look: Look) -> tuple[float, float]:
    """The score of a teacher, or of an expert."""
    tested = look.data(job.inputs["test"][0])
    network = _options(look.known((job.inputs.get("teacher") or job.inputs["expert"])[0]).parameters)["network"]
    return 0.3 + tested.clips / 3 * tested.pixels * _rate(network), 1e3


def _score(job: Manifest, look: Look) -> tuple[float, float]:
    own, data = job.parameters["student"], look.data(job.inputs["train"][0])
    tested = look.data(job.inputs["test"][0]).clips
    trained = _passes(own, _set(job.inputs["distilled"][0], look) if "distilled" in job.inputs else data.clips)
    rate = _rate(job.parameters["network"])
    seconds = (trained + tested / 3) * rate
    if "teacher" in job.inputs:
        seconds += trained / 3 * _rate(look.known(job.inputs["teacher"][0]).parameters["network"])
    return 0.3 + seconds * data.pixels, 1e3


def _distilled(job: Manifest, look: Look) -> tuple[float, float]:
    own, options, data = job.parameters, job.parameters["options"], look.data(job.inputs["clips"][0])
    clips = _kept(own, data)
    size = 3 * STORED * clips * data.pixels if own.get("kb") is None else 1000 * own["kb"] * len(own["labels"])
    passes = METHODS.get(own["method"], of_gradients)(options, own["ipc"], len(own["labels"]), data)
    network = str(options.get("network") or options.get("expert", {}).get("network", ""))
    seconds = passes * data.pixels * _rate(network)
    seconds += 0.05 * clips if own["method"] == "coded" else 0.0
    if own["method"] == "vst_unet":
        seconds += 4e-6 * options["epochs"] * _latent_places(job.inputs["pool"][0], look)
    return 0.1 + seconds, size


def _latent_places(pool: ArtifactRef, look: Look) -> float:
    """Frames, rows and columns of all latents of a pool."""
    made = look.known(pool)
    latte = look.known(made.inputs["latte"][0])
    codec, source = look.known(made.inputs["autoencoder"][0]), look.data(latte.inputs["clips"][0])
    return look.data(pool).clips * source.pixels / float(codec.parameters["factor"]) ** 2


def _joined(job: Manifest, look: Look) -> tuple[float, float]:
    return 0.1, sum(_distilled(look.known(part), look)[1] for part in job.inputs["parts"])


def _relabelled(job: Manifest, look: Look) -> tuple[float, float]:
    data, clips = look.data(job.inputs["clips"][0]), _set(job.inputs["distilled"][0], look)
    return 0.2 + clips / 3 * data.pixels * _rate(""), 3 * STORED * clips * data.pixels


def _recoded(job: Manifest, look: Look) -> tuple[float, float]:
    clips = _set(job.inputs["distilled"][0], look) * job.parameters.get("variants", 1)
    return 0.1 + 0.05 * clips, 2e3 * clips


def _embeddings(job: Manifest, look: Look) -> tuple[float, float]:
    data = look.data(job.inputs["clips"][0])
    return 0.2 + data.clips / 3 * data.pixels * _rate(""), 1e3 * data.clips


def _search(job: Manifest, look: Look) -> tuple[float, float]:
    """Students of points of the grid, and clips coded at each point, at most all."""
    from vidistill.tasks.coded.search import SearchParameters

    own, data = SearchParameters.model_validate(job.parameters["search"]), look.data(job.inputs["clips"][0])
    points = len(own.crfs) * len(own.scales) * len(own.frames)
    students = sum(size * many for size, many in own.rounds(points))
    steps, tested = own.student.least_steps, data.clips * data.views / 15  # a fifth is tested
    passes = students * (steps * min(own.student.optimiser.batch_size, data.clips) + tested)
    return passes * data.pixels * _rate(own.network) + points * 0.02 * data.clips, 2e3


def _autoencoder(job: Manifest, look: Look) -> tuple[float, float]:
    own, data = job.parameters, look.data(job.inputs["clips"][0])
    if own["pretrained"]:
        return MEASURED_FRAMES * data.size**2 * (2 * ENCODED + DECODED), GIVEN_BYTES
    return own["steps"] * own["batch_frames"] * data.size**2 * 1.3e-6 * own["width"] / 16, 2e6


def _latents(job: Manifest, look: Look) -> tuple[float, float]:
    data, codec = look.data(job.inputs["clips"][0]), look.known(job.inputs["autoencoder"][0]).parameters
    pixels = data.clips * data.pixels * job.record.get("counts", {}).get("views", data.looks)
    return pixels * (ENCODED if codec["pretrained"] else 1e-6), 2 * pixels * codec["channels"] / codec["factor"] ** 2


def _latte(job: Manifest, look: Look) -> tuple[float, float]:
    own, data = job.parameters, look.data(job.inputs["clips"][0])
    seconds = own["steps"] * own["batch_size"] * _generated(job, data, look)
    if own.get("compile"):
        seconds /= COMPILED
    if own.get("recompute"):
        seconds *= 4 / 3
    if own.get("muon_lr"):
        seconds += own["steps"] * MUON * GENERATORS[own["size"]]
    return 1 + seconds, 4 * GENERATORS[own["size"]]


def _generated(latte: Manifest, data: Data, look: Look) -> float:
    """Seconds a clip and training step of a generator, whose tokens are `factor * patch` pixels a side."""
    own, latents = latte.parameters, look.known(latte.inputs["latents"][0])
    factor = look.known(latents.inputs["autoencoder"][0]).parameters["factor"]
    tokens: float = data.pixels / (factor * own["patch"]) ** 2
    return 7e-5 * tokens * GENERATORS[own["size"]] / GENERATORS["micro"]


def _pool_part(job: Manifest, look: Look) -> tuple[float, float]:
    own, latte = job.parameters, look.known(job.inputs["latte"][0])
    codec, data = look.known(job.inputs["autoencoder"][0]).parameters, look.data(latte.inputs["clips"][0])
    steps = own["sampler"]["steps"] * max(1, len(own["sampler"].get("chunks", ())))
    passes = 2 if own["sampler"]["guidance"] > 1 else 1  # with the label and without it, forward
    guided = own["count"] * steps * passes / 3
    latents = 2 * codec["channels"] / codec["factor"] ** 2
    seconds = guided * _generated(latte, data, look)
    seconds += own["count"] * data.pixels * DECODED if codec["pretrained"] else 0.0
    return 0.3 + seconds, own["count"] * data.pixels * (3 * STORED + latents)


def _resized(job: Manifest, look: Look) -> tuple[float, float]:
    part = look.known(job.inputs["part"][0])
    frames = look.data(look.known(part.inputs["latte"][0]).inputs["clips"][0]).frames
    pixels = part.parameters["count"] * frames * job.parameters["size"] ** 2
    return 0.1 + 2e-8 * pixels, 3 * STORED * pixels


def _quality(job: Manifest, look: Look) -> tuple[float, float]:
    """What the teacher says of each clip; and thumbnails, in which each is compared with all looks of all training
    clips, which are read again for each GiB.
    """
    pool, data = (look.data(job.inputs[name][0]) for name in ("pool", "clips"))
    known = (2 * pool.clips + data.clips) / 3 * data.pixels * _rate("")
    clips, numbers = pool.clips + data.clips, 3 * data.frames * min(THUMBNAIL, data.size) ** 2
    read = clips + data.clips * data.views * math.ceil(4 * numbers * clips / PRELOAD_BYTES)
    return 1 + known + READ * read * data.pixels + COMPARED * clips * data.clips * data.looks * numbers, 1e6


def _detector(job: Manifest, look: Look) -> tuple[float, float]:  # noqa: ARG001
    own = job.parameters
    return own["steps"] * own["batch_size"] * own["side"] ** 2 * 1e-6, 1e6


def _tracks(job: Manifest, look: Look) -> tuple[float, float]:  # noqa: ARG001
    return 0.5 + 1.0 * len(job.parameters["videos"]), 1e4 * len(job.parameters["videos"])


def _crops(job: Manifest, look: Look) -> tuple[float, float]:
    videos = len(look.known(job.inputs["tracks"][0]).parameters["videos"])
    own, data = job.parameters, look.data(job.inputs["clips"][0])
    pixels = videos * own["frames"] * own["height"] * own["width"]
    return 0.5 + videos * (0.05 + data.pixels / 3 * _rate("")), 3 * STORED * pixels


def _report(job: Manifest, look: Look) -> tuple[float, float]:  # noqa: ARG001
    return 0.5 + 0.1 * len(job.parameters["rows"]), 0.1e6 * (1 + len(job.parameters["rows"]))


def _unknown(job: Manifest, look: Look) -> tuple[float, float]:  # noqa: ARG001
    return 0.5, 1e4


COSTS: dict[str, Callable[[Manifest, Look], tuple[float, float]]] = {
    "sprites": _sprites, "index": _index, "block": _block, "clips": _clips, "teacher": _trained, "expert": _trained,
    "score": _score, "distilled": _distilled, "joined": _joined, "relabelled": _relabelled, "coded-search": _search,
    "recoded": _recoded, "embeddings": _embeddings, "autoencoder": _autoencoder, "latents": _latents, "latte": _latte,
    "pool-part": _pool_part, "pool-part-resized": _resized, "pool-quality": _quality, "detector": _detector,
    "tracks": _tracks, "crops": _crops, "report": _report, "trial": _trial, "teacher-score": _reference,
    "expert-score": _reference,
}  # fmt: skip
WITHOUT_NETWORK = {
    "sprites", "index", "block", "clips", "joined", "recoded", "pool", "report", "pool-part-resized", "tracks", "front",
    "action-sprites", "sequences", "segment-report",
}  # fmt: skip
