"""What a run would do, why, and about how long it takes; nothing is written."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vidistill.flows.execution import data_runtime, find_videos, refuse_inside
from vidistill.flows.experiment import build
from vidistill.flows.parameters import SPRITES, Experiment
from vidistill.storage.opening import open_store
from vidistill.storage.store import ArtifactRef, Manifest, Store
from vidistill.tasks.stage import Job, Runtime
from vidistill.tasks.videos.decode import DecodeParameters
from vidistill.tasks.videos.index import IndexTable
from vidistill.tasks.videos.scan import Video
from vidistill.tasks.videos.sprites import CLASSES, SpritesParameters
from vidistill.tasks.videos.sprites_stage import sprites_job

if TYPE_CHECKING:
    from rich.console import Console

PIXELS_A_SECOND = 2.5e6
"""Trained pixels a second where this store holds no measurement: MiniC3D on two cores, forward and backward."""
STORED_SHARE = 0.4
"""Compressed bytes of real clips as a share of raw ones."""


@dataclass(frozen=True)
class Planned:
    """One job of a plan."""

    job: Job
    cached: bool
    why: str
    seconds: float
    bytes: float


def describe(experiment: Experiment, runtime: Runtime, console: Console) -> None:
    """Print the plan of an experiment: counts a stage, reasons, and an estimate of time and disk."""
    planned = plan_of(experiment, runtime)
    for kind in dict.fromkeys(one.job.stage for one in planned):
        own = [one for one in planned if one.job.stage == kind]
        todo = [one for one in own if not one.cached]
        done = f"{len(own) - len(todo)} cached" if len(todo) < len(own) else ""
        run = f"{len(todo)} to run, about {_duration(sum(one.seconds for one in todo))}" if todo else ""
        console.print(f"[bold]{kind:12}[/bold] {', '.join(filter(None, [run, done]))}", highlight=False)
        for why, count in Counter(one.why for one in todo).most_common(3):
            console.print(f"{'':13}{count} × {why}", highlight=False, style="dim", soft_wrap=True)
    todo = [one for one in planned if not one.cached]
    seconds, size = sum(one.seconds for one in todo), sum(one.bytes for one in todo)
    console.print(
        f"\n{len(todo)} of {len(planned)} stages to run: about {_duration(seconds)} and {size / 1e6:.0f} MB "
        f"in {runtime.store}" if todo else f"\nEverything is cached in {runtime.store}.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def check(experiment: Experiment, runtime: Runtime) -> None:
    """Find what would end a run, before anything is started for it. Hashes and probes are remembered for the run.

    Raises:
        RequestError: the experiment asks for what is not there.
    """
    refuse_inside(experiment, runtime)
    if experiment.data == SPRITES:
        table = _expected_sprites(experiment.sprites)
    else:
        table = find_videos(experiment, data_runtime(experiment, runtime), runtime.threads)
    build(experiment, table)


def plan_of(experiment: Experiment, runtime: Runtime) -> list[Planned]:
    """Every job of an experiment, with whether it is cached and why not.

    Raises:
        RequestError: the experiment asks for what is not there.
    """
    store, first = open_store(runtime.store), []
    if experiment.data == SPRITES:
        job = sprites_job(experiment.sprites)
        first = [job]
        if not store.has(job.ref):
            table = _expected_sprites(experiment.sprites)
            return _explained([*first, *build(experiment, table).jobs.values()], store, experiment.decode)
    runtime = data_runtime(experiment, runtime)
    table = find_videos(experiment, runtime, workers=2)
    return _explained([*first, *build(experiment, table).jobs.values()], store, experiment.decode)


def _expected_sprites(parameters: SpritesParameters) -> IndexTable:
    """The index that sprites will have, but for the files' content."""
    videos = tuple(
        Video(path=f"{split}/{name}/{number}.mp4", label=label, split=split, group=str(number), bytes=0,
              sha256="unmade", width=parameters.size, height=parameters.size,
              frames=parameters.frames, duration_seconds=None, codec="")
        for split, count in (("train", parameters.train_per_class), ("test", parameters.test_per_class))
        for label, name in enumerate(CLASSES)
        for number in range(count)
    )  # fmt: skip
    return IndexTable(layout="folders", classes=CLASSES, flips=False, videos=videos, rejected=())


def _explained(jobs: list[Job], store: Store, decode: DecodeParameters) -> list[Planned]:
    known: dict[str, list[Manifest]] = defaultdict(list)
    for ref in store.refs():
        if store.has(ref):
            known[ref.kind].append(store.manifest(ref))
    alike: dict[tuple[str, str], list[Manifest]] = defaultdict(list)
    for manifest in (one for manifests in known.values() for one in manifests):
        for name in {_sort(manifest.parameters), ""}:
            alike[manifest.kind, name].append(manifest)
    rates = {name: _rate(manifests, decode) for name, manifests in alike.items()}
    missing = {job.ref for job in jobs if not store.has(job.ref)}
    planned = []
    for job in jobs:
        why = reason(job, store, known[job.stage], missing) if job.ref in missing else ""
        units = work_units(job.stage, job.parameters, decode)
        rate = rates.get((job.stage, _sort(job.parameters)), rates.get((job.stage, ""), 1 / PIXELS_A_SECOND))
        seconds = units * rate
        planned.append(Planned(job, job.ref not in missing, why, seconds, _bytes(job, decode)))
    return planned


def reason(job: Job, store: Store, known: list[Manifest], missing: set[ArtifactRef]) -> str:
    """Why a job has to run: damage, changed inputs, changed parameters, a newer stage, or nothing like it before."""
    problem = store.problem(job.ref)
    if problem is not None and problem != "no artifact":
        return f"damaged: {problem}"
    needed = sorted({ref.kind for refs in job.inputs.values() for ref in refs if ref in missing})
    if not known:
        return "no artifact of this kind yet"
    if needed:
        return f"its input is made anew: {', '.join(needed)}"
    nearest = min(known, key=lambda manifest: len(list(differences(manifest, job))))
    found = list(differences(nearest, job))
    return ", ".join(found[:3]) + (" …" if len(found) > 3 else "")


def differences(manifest: Manifest, job: Job) -> Iterator[str]:
    """What distinguishes a job from an artifact of its kind, in words."""
    if manifest.version != job.version:
        yield f"stage version {manifest.version} → {job.version}"
    for name, refs in job.inputs.items():
        if manifest.inputs.get(name, []) != refs:
            yield f"another {name}"
    yield from _changed(manifest.parameters, job.parameters, "")


def _changed(before: Any, after: Any, name: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            yield from _changed(before.get(key), after.get(key), f"{name}.{key}" if name else key)
    elif name == "videos" and isinstance(before, list | tuple) and isinstance(after, list | tuple):
        yield from _changed_videos(before, after)
    elif before != after:
        short = len(str(before)) + len(str(after)) < 60
        yield f"{name} {before} → {after}" if short else f"another {name}"


def _changed_videos(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Which videos of a block are new, gone or changed."""
    old, new = ({video["path"]: video for video in videos} for videos in (before, after))
    changed = [path for path in new.keys() & old.keys() if new[path] != old[path]]
    for what, paths in (("new", new.keys() - old.keys()), ("gone", old.keys() - new.keys()), ("changed", changed)):
        if paths:
            more = f" and {len(paths) - 1} more videos are" if len(paths) > 1 else " is"
            yield f"{min(paths)}{more} {what}"


def work_units(kind: str, parameters: Mapping[str, Any], decode: DecodeParameters) -> float:
    """How much a job has to do, in pixels that pass through a network (or a decoder)."""
    pixels = decode.frames * decode.size**2
    if kind in {"block", "tracks"}:  # CSRT tracks about a video a second
        return len(parameters["videos"]) * (pixels if kind == "block" else PIXELS_A_SECOND)
    if kind == "detector":
        return float(parameters["steps"] * parameters["batch_size"] * parameters["side"] ** 2)
    if kind in {"teacher", "expert"}:
        return float(parameters.get("expert", parameters)["epochs"] * 400 * pixels)
    if kind == "autoencoder":
        return float(parameters["steps"] * parameters["batch_frames"] * decode.size**2)
    if kind == "latte":
        return float(max(parameters["steps"], 1) * parameters["batch_size"] * pixels)
    if kind == "pool-part":
        return float(parameters["count"] * parameters["sampler"]["steps"] * pixels)
    if kind == "score":
        student = parameters["student"]
        return float(student["steps"] * student["optimiser"]["batch_size"] * pixels)
    if kind == "coded-search":
        asked = parameters["search"]
        points = len(asked["crfs"]) * len(asked["scales"])
        return float(points * asked["steps"] * asked["optimiser"]["batch_size"] * pixels)
    if kind == "distilled":
        options = parameters["options"]
        clips = parameters["ipc"] * options.get("syn_steps", 1) + options.get("batch_real", 0)
        return float(max(options.get("iterations", 1), 1) * clips * len(parameters["labels"]) * pixels)
    return pixels


def _rate(manifests: list[Manifest], decode: DecodeParameters) -> float:
    """Seconds a unit, from what jobs of this kind have taken in this store."""
    return statistics.median(
        manifest.seconds / work_units(manifest.kind, manifest.parameters, decode) for manifest in manifests
    )


def _sort(parameters: Mapping[str, Any]) -> str:
    """Which method or network a job runs: those of one kind take very different times."""
    return str(parameters.get("method") or parameters.get("network") or "")


def _bytes(job: Job, decode: DecodeParameters) -> float:
    pixels = decode.frames * decode.size**2 * 3
    if job.stage == "block":
        return float(len(job.parameters["videos"]) * job.parameters["sampling"]["views"] * pixels * STORED_SHARE)
    if job.stage in {"distilled", "relabelled"}:
        return float(job.parameters.get("ipc", 1) * len(job.parameters.get("labels", [0])) * pixels)
    return {"teacher": 15e6, "report": 6e6}.get(job.stage, 1e4)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
