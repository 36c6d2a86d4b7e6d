"""Distil: run any method of the registry on its material, by groups of classes where the method works by groups."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from vidistill.storage import coded
from vidistill.storage.causes import clear_errors
from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet, joined
from vidistill.storage.errors import RunError, TransientError, VidistillError
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.generate.pool import open_pool
from vidistill.tasks.learning.teacher import load_teacher
from vidistill.tasks.learning.training import Device
from vidistill.tasks.methods import Material, MethodSource, Need, find_method, unnamed
from vidistill.tasks.stage import Job, Work, stage


class DistilParameters(Parameters):
    """What a distilled set depends on. A user's method is known by the digest of its file."""

    method: str
    method_version: int
    method_digest: str
    options: dict[str, Any]
    ipc: int = Field(ge=1)
    seed: int
    labels: tuple[int, ...]
    kb: float | None = Field(None, gt=0, exclude_if=lambda kb: kb is None)
    soft: bool = Field(False, exclude_if=lambda soft: not soft)


def distil_jobs(
    source: MethodSource, options: Parameters, ipc: int, seed: int, classes: int, inputs: dict[str, list[ArtifactRef]],
    label: str, *, kb: float | None = None, soft: bool = False,
) -> list[Job]:  # fmt: skip
    """The jobs that make one set, the last of them the set itself.

    A method that works by groups has a job a group (the group is in its key) and one that joins them.
    """
    with blaming(source):
        method = source.method(options)
        groups, used = method.groups(classes, ipc), method.used(kb)
    jobs = []
    for number, labels in enumerate(groups):
        parameters = DistilParameters(
            method=source.name, method_version=source.method.version, method_digest=source.digest,
            options=used.model_dump(mode="json"), ipc=ipc, seed=seed, labels=labels,
            kb=kb, soft=soft and kb is not None,
        )  # fmt: skip
        part = f" group {number + 1}/{len(groups)}" if len(groups) > 1 else ""
        jobs.append(distil(parameters, inputs, label=label + part))
    return jobs if len(jobs) == 1 else [*jobs, join({}, {"parts": [job.ref for job in jobs]}, label=f"{label} joined")]


@stage("distilled", version=1, threads="one")
def distil(work: Work) -> None:
    parameters = DistilParameters.model_validate(work.job.parameters)
    source = find_method(work.runtime.methods.get(parameters.method, parameters.method))
    if source.digest != parameters.method_digest:
        raise TransientError(f"The file of the method {parameters.method} changed during the run: run again.")
    options = source.method.Parameters.model_validate(parameters.options)
    clips = Clips(work.store, work.ref("clips"))
    device = Device.of(work, getattr(options, "precision", "auto"))
    material = Material(
        clips=clips,
        ipc=parameters.ipc,
        seed=parameters.seed,
        labels=parameters.labels,
        device=device,
        teacher=lambda: load_teacher(work.store, _needed(work, "teacher"), clips, device),
        inputs=lambda name: [work.store.folder(ref) for ref in work.refs(name)],
        progress=work.progress,
        checkpoint=work.checkpoint,
        last_checkpoint=work.last_checkpoint,
        pool=lambda: open_pool(work.store, _needed(work, "pool"), clips, parameters.ipc),
        kb=parameters.kb,
        soft=parameters.soft,
        more_clips=lambda name: next((Clips(work.store, ref) for ref in work.refs(name)), None),
    )
    with blaming(source), clear_errors(work.store.root):
        returned: object = source.method(options).distil(material)
    made = _checked(returned, parameters, clips)
    made.save(work.folder)
    if parameters.kb is not None:
        _check_bytes(made, parameters, DistilledSet.training_bytes(work.folder))
    work.record(seeds=[parameters.seed], counts={"clips": len(made)}, **device.facts())


def _needed(work: Work, need: Need) -> ArtifactRef:
    refs = work.refs(need)
    return refs[0] if refs else unnamed(need)


def _checked(made: object, parameters: DistilParameters, clips: Clips) -> DistilledSet:
    """A method owes a set in clips of the run's shape, of `ipc` instances a class where the budget is not in bytes."""
    name = f"The method {parameters.method}"
    if not isinstance(made, DistilledSet):
        kind = "nothing" if made is None else f"a {type(made).__name__}"
        raise RunError(f"{name} returned {kind}: `distil` owes a DistilledSet, such as material.chosen(rows) makes.")
    if made.clips_NTHWC.shape[1:] != clips.shape_THWC:
        raise RunError(f"{name} owes clips of shape {clips.shape_THWC} and returned {made.clips_NTHWC.shape[1:]}.")
    if made.classes != clips.classes:
        raise RunError(f"{name} owes a set of the classes {clips.classes} and returned one of {made.classes}.")
    if parameters.kb is not None:
        return made
    got = {label: int((made.labels_N == label).sum()) / made.clips_an_instance for label in parameters.labels}
    owed = parameters.ipc * len(parameters.labels) * made.clips_an_instance
    if len(made) != owed or set(got.values()) != {parameters.ipc}:
        raise RunError(f"{name} owes {parameters.ipc} clips a class and returned {got}, {len(made)} in all.")
    return made


@contextmanager
def blaming(source: MethodSource) -> Iterator[None]:
    """Have what a method raises by accident name the method and the line of its file; a note holds the way there.

    Raises:
        RunError: for any error that is not one of ours already.
    """
    try:
        yield
    except VidistillError:
        raise
    except (Exception, SystemExit) as error:
        raise _blamed(source, error) from error


def _blamed(source: MethodSource, error: BaseException) -> RunError:
    file = source.spec.rpartition(":")[0] if source.digest else sys.modules[source.method.__module__].__file__
    frames = traceback.extract_tb(error.__traceback__)
    own = [number for number, frame in enumerate(frames) if file and Path(frame.filename) == Path(file)]
    said = "".join(traceback.format_exception_only(error)).strip()
    place = f" in {Path(frames[own[-1]].filename).name}, line {frames[own[-1]].lineno}" if own else ""
    blamed = RunError(f"The method {source.name} failed{place}: {' '.join(said.split()).rstrip('.')}.")
    if own:
        blamed.add_note("".join(traceback.format_list(frames[own[0] :])) + said)
    return blamed


def _check_bytes(made: DistilledSet, parameters: DistilParameters, size: int) -> None:
    """A method owes a clip of each of its classes and no byte more than `kb` kilobytes a class, with logits to come."""
    size_of_one = 1 if made.form == coded.FORM else 4
    logits = size_of_one * len(made) * len(made.classes) if parameters.soft else 0
    allowed = int(parameters.kb * 1000 * len(parameters.labels)) if parameters.kb else 0
    if size + logits > allowed:
        raise RunError(f"The method {parameters.method} may keep {allowed} bytes and keeps {size + logits}.")
    if missing := set(parameters.labels) - set(made.labels_N.tolist()):
        raise RunError(f"The method {parameters.method} keeps no clip of {made.classes[min(missing)]!r}.")


@stage("joined", version=2)  # 2: one curve for all parts
def join(work: Work) -> None:
    made = joined([DistilledSet.load(work.store.folder(ref)) for ref in work.refs("parts")])
    made.save(work.folder)
    work.record(counts={"clips": len(made)})
