"""The flows as deployments run them: a form of one page, and everything that is not on it as one object, `advanced`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field, WithJsonSchema

from vidistill.flows import distill as experiments
from vidistill.flows import pool as pooling
from vidistill.flows.commands import pool_request_of, request_of
from vidistill.flows.execution import deployed_places
from vidistill.flows.parameters import (
    PRESETS,
    DataRequest,
    Experiment,
    PoolRequest,
    checked,
    load_preset,
    merged,
    name_of,
)
from vidistill.models import FRONT_NAMES, NETWORKS
from vidistill.storage.errors import RequestError
from vidistill.storage.opening import default_location
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.methods import REGISTRY
from vidistill.tasks.stage import RUNNERS, Runtime

OWN = "default"
"""Of a list: what the preset says, else what vidistill does by itself."""
SHIPPED = {file.stem: load_preset(str(file)).keys() for file in sorted(PRESETS.glob("*.yaml"))}
"""What each preset names."""


def _one_of(*names: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": list(names)})


def _beyond(model: type[DataRequest], *shown: str) -> WithJsonSchema:
    """Any of a request's parameters that the form does not show, `runtime` and `out`."""
    names = sorted({*model.model_fields, "runtime", "out"} - set(shown))
    return WithJsonSchema({"type": "object", "propertyNames": {"enum": names}})


def _preset_of(model: type[DataRequest]) -> WithJsonSchema:
    """A shipped preset of this request: of those that have no parameters beyond it, an experiment's have cells."""
    known, cells = model.model_fields.keys(), "cells" in model.model_fields
    return _one_of(OWN, *(name for name, names in SHIPPED.items() if names <= known and ("cells" in names) == cells))


ON_FORM = ("data", "ipc", "kb", "seeds")
"""And not in `advanced`, which may name students and a front that are a user's own."""
Preset = Annotated[str, _preset_of(Experiment)]
PoolPreset = Annotated[str, _preset_of(PoolRequest)]
Method = Annotated[str, _one_of(*REGISTRY)]
Methods = list[Annotated[str, _one_of("full", *REGISTRY)]]
Ipc = list[Annotated[int, Field(ge=1)]]
Kilobytes = list[Annotated[float, Field(gt=0)]]
Students = list[Annotated[str, _one_of(*NETWORKS)]]
Front = Annotated[str, _one_of(OWN, "auto", *FRONT_NAMES)]
Number = Annotated[int, Field(ge=0)]
Runner = Annotated[str, _one_of(*RUNNERS)]
Advanced = Annotated[dict[str, Any], _beyond(Experiment, *ON_FORM)]
AdvancedRefresh = Annotated[dict[str, Any], _beyond(Experiment, *ON_FORM, "cells")]
AdvancedPool = Annotated[dict[str, Any], _beyond(PoolRequest, "data")]


def distill_name() -> str:
    """Data, methods and budgets of the run that begins."""
    asked = flow_run.parameters
    named = [cell for cell in asked["advanced"].get("cells") or [] if isinstance(cell, dict) and "method" in cell]
    cells = dict.fromkeys(str(cell["method"]) for cell in named)
    methods = list(cells) or asked["methods"] or [asked["preset"]]
    budgets = [f"{name} {listed(asked[name])}" for name in ("ipc", "kb") if asked[name]]
    return " · ".join([_place(asked), ", ".join(methods), *budgets])


def pool_name() -> str:
    asked = flow_run.parameters
    clips = f"{asked['clips']} clips a class" if asked["clips"] else ""
    return " · ".join(filter(None, [_place(asked), "pool", clips]))


def _place(asked: Mapping[str, Any]) -> str:
    return name_of(asked["data"]) if asked["data"] else asked["preset"]


def listed(values: Sequence[object]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


@flow(name="distill", flow_run_name=distill_name)
def distill(
    data: str = "", preset: Preset = OWN, methods: Methods = [], ipc: Ipc = [], kb: Kilobytes = [],  # noqa: B006
    students: Students = [], front: Front = OWN, seeds: Number = 0, runner: Runner = "threads",  # noqa: B006
    advanced: Advanced = {},  # noqa: B006
) -> ArtifactRef:  # fmt: skip
    """Distil a labelled video data set, score the sets beside Random and write a report; what is made is cached.

    What is left empty, or at `default`, is as the preset says, else as vidistill does it by itself.

    Args:
        data: A folder of videos or a CSV file that the workers can read, or `sprites`, the set that vidistill renders.
        preset: An experiment that is shipped; what else is given here changes it: clear the rest for itself.
        methods: The table's methods; variants, and methods of your own, go to `cells` of advanced.
        ipc: Budgets in instances (clips) a class.
        kb: Budgets in kilobytes a class, all included, of the method `coded`.
        students: Networks that are trained on the distilled sets; those of your own go to `students` of advanced.
        front: What networks see first; one of your own goes to `front` of advanced.
        seeds: How many seeds; 0 is the default, 5.
        runner: Who does the jobs; `dask:ADDRESS` and `ray:ADDRESS` go to `runtime` of advanced.
        advanced: Every other parameter, as in a preset, and runtime, such as {"teacher": {"epochs": 20}}.
    """
    plain, runtime, out = parted(advanced, runner)
    named = {
        "data": data, "cells": [{"method": name} for name in methods], "ipc": ipc, "kb": kb, "students": students,
        "front": "" if front == OWN else front, "seeds": seeds,
    }  # fmt: skip
    request = request_of(None if preset == OWN else preset, given(named), plain)
    return experiments.distill.fn(checked(Experiment, request, "The experiment"), runtime, out)


@flow(name="pool", flow_run_name=pool_name)
def pool(
    data: str = "", preset: PoolPreset = OWN, clips: Number = 0, front: Front = OWN, runner: Runner = "threads",
    advanced: AdvancedPool = {},  # noqa: B006
) -> ArtifactRef:  # fmt: skip
    """Generate a pool of clips of a labelled video data set, or the part of it that the store lacks.

    What is left empty, or at `default`, is as the preset says, else as vidistill does it by itself.

    Args:
        data: A folder of videos or a CSV file that the workers can read, or `sprites`, the set that vidistill renders.
        preset: A pool that is shipped; what else is given here changes it: clear the rest for itself.
        clips: Generated clips a class; 0 is the default, 20.
        front: What networks see first; one of your own goes to `front` of advanced.
        runner: Who does the jobs; `dask:ADDRESS` and `ray:ADDRESS` go to `runtime` of advanced.
        advanced: Every other parameter, as in a preset, and runtime, such as {"pool": {"sampler": {"steps": 50}}}.
    """
    plain, runtime, out = parted(advanced, runner)
    if clips:
        plain = merged(plain, {"pool": {"clips_a_class": clips}})
    if front != OWN:
        plain = {"front": front} | plain
    request = pool_request_of(None if preset == OWN else preset, data, plain, [])
    return pooling.pool.fn(checked(PoolRequest, request, "The pool"), runtime, out)


def given(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in named.items() if value}


def parted(advanced: Mapping[str, Any], runner: str) -> tuple[dict[str, Any], Runtime, Path | None]:
    """The request's own parameters, the runtime, and where the report goes.

    Raises:
        RequestError: a place is told from the worker's folder, which ends with the run.
    """
    plain = dict(advanced)
    own = plain.pop("runtime", {})
    if not isinstance(own, dict):
        raise RequestError('advanced.runtime takes parameters by their names, such as {"device": "cuda"}.')
    place = {"store": default_location(), "runner": runner} | own
    out = deployed_places(own, plain.pop("out", None), "advanced.")
    return plain, checked(Runtime, place, "advanced.runtime"), out
