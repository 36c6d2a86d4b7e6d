"""Distil: run any method of the registry on its material, by groups of classes where the method works by groups."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet, joined
from vidistill.storage.errors import RunError
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.generate.pool import open_pool
from vidistill.tasks.learning.teacher import load_teacher
from vidistill.tasks.learning.training import Device
from vidistill.tasks.methods import Material, MethodSource, find_method
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
    groups = source.method(options).groups(classes, ipc)
    jobs = []
    for number, labels in enumerate(groups):
        parameters = DistilParameters(
            method=source.name, method_version=source.method.version, method_digest=source.digest,
            options=options.model_dump(mode="json"), ipc=ipc, seed=seed, labels=labels,
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
        raise RunError(f"The file of the method {parameters.method} changed during the run: run again.")
    options = source.method.Parameters.model_validate(parameters.options)
    clips = Clips(work.store, work.ref("clips"))
    device = Device.of(work, getattr(options, "precision", "auto"))
    material = Material(
        clips=clips,
        ipc=parameters.ipc,
        seed=parameters.seed,
        labels=parameters.labels,
        device=device,
        teacher=lambda: load_teacher(work.store, work.ref("teacher"), clips, device),
        inputs=lambda name: [work.store.folder(ref) for ref in work.refs(name)],
        progress=work.progress,
        checkpoint=work.checkpoint,
        last_checkpoint=work.last_checkpoint,
        pool=lambda: open_pool(work.store, work.ref("pool"), clips, parameters.ipc),
        kb=parameters.kb,
        soft=parameters.soft,
    )
    made = source.method(options).distil(material)
    made.save(work.folder)
    if parameters.kb is None:
        _check(made, parameters)
    else:
        _check_bytes(made, parameters, DistilledSet.training_bytes(work.folder))
    work.record(seeds=[parameters.seed], counts={"clips": len(made)}, **device.facts())


def _check(made: DistilledSet, parameters: DistilParameters) -> None:
    """A method owes exactly `ipc` instances for each of its classes."""
    got = {label: int((made.labels_N == label).sum()) / made.clips_an_instance for label in parameters.labels}
    owed = parameters.ipc * len(parameters.labels) * made.clips_an_instance
    if len(made) != owed or set(got.values()) != {parameters.ipc}:
        raise RunError(f"The method {parameters.method} owes {parameters.ipc} clips a class and returned {got}.")


def _check_bytes(made: DistilledSet, parameters: DistilParameters, size: int) -> None:
    """A method owes a clip of each of its classes and no byte more than `kb` kilobytes a class, with logits to come."""
    logits = len(made) * len(made.classes) if parameters.soft else 0
    allowed = int(parameters.kb * 1000 * len(parameters.labels)) if parameters.kb else 0
    if size + logits > allowed:
        raise RunError(f"The method {parameters.method} may keep {allowed} bytes and keeps {size + logits}.")
    if missing := set(parameters.labels) - set(made.labels_N.tolist()):
        raise RunError(f"The method {parameters.method} keeps no clip of {made.classes[min(missing)]!r}.")


@stage("joined", version=1)
def join(work: Work) -> None:
    made = joined([DistilledSet.load(work.store.folder(ref)) for ref in work.refs("parts")])
    made.save(work.folder)
    work.record(counts={"clips": len(made)})
