"""What users bring: methods, students and fronts in files of their own, known by name and content."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

from vidistill.flows.parameters import Cell, DataRequest, Experiment, placeless
from vidistill.storage.errors import RequestError
from vidistill.storage.files import expanded
from vidistill.tasks.learning.own import named
from vidistill.tasks.methods import REGISTRY, find_method
from vidistill.tasks.stage import Runtime

Request = TypeVar("Request", bound=DataRequest)
TAKEN = {*REGISTRY, "full", "teacher", "expert"}


def with_own(request: Request, runtime: Runtime) -> tuple[Request, Runtime]:
    """The request with users' students and fronts by the names that keys hold, and a runtime that knows their files.

    Raises:
        RequestError: a file, class or function is not there, or two of one file differ by capitals alone.
    """
    networks: dict[str, str] = {}

    def settled(spec: str) -> str:
        name, places = named(spec)
        for one, place in places.items():
            met = networks.setdefault(one, place)
            if met.rpartition(":")[2] != place.rpartition(":")[2]:
                raise RequestError(f"{met} and {place} would both be called {one}: rename one.")
        return name

    request = request.model_copy(update={"front": settled(request.front)})
    if isinstance(request, Experiment):
        request = request.with_students(settled)
        runtime = runtime.model_copy(update={"methods": _methods(request)})
    return request, runtime.model_copy(update={"networks": networks})


def _methods(experiment: Experiment) -> dict[str, str]:
    """Where workers find the classes of users' files.

    Raises:
        RequestError: a class has the name of a method that there is, or two classes have one name.
    """
    found: dict[str, str] = {}
    for cell in experiment.cells:
        if cell.method in {*REGISTRY, "full"}:
            continue
        source = find_method(cell.method)
        if source.name in TAKEN:
            raise RequestError(f"{cell.method} would be called {source.name!r}, as other rows are: rename the class.")
        if found.setdefault(source.name, source.spec) != source.spec:
            raise RequestError(f"Two classes would be called {source.name!r}, that of {cell.method} too: rename one.")
    return found


def without_places(experiment: Experiment) -> Experiment:
    """With the names of users' files and weights alone: where they lie changes no result."""
    experiment, pool = experiment.with_students(_file_name), experiment.pool
    named_parts = {
        name: part.model_copy(update={"pretrained": _local_name(part.pretrained)})
        for name, part in (("autoencoder", pool.autoencoder), ("latte", pool.latte))
    }
    changes = {
        "cells": tuple(map(_cell_without_places, experiment.cells)),
        "front": _file_name(experiment.front),
        "pool": pool.model_copy(update=named_parts),
        "student": experiment.student.model_copy(update=placeless(dict(experiment.student))),
    }
    return experiment.model_copy(update=changes)


def _cell_without_places(cell: Cell) -> Cell:
    changes: dict[str, Any] = {
        "method": Path(cell.method).name,
        "options": {name: _local_name(value) for name, value in cell.options.items()},
    }
    if cell.student:
        changes["student"] = placeless(cell.student)
    return cell.model_copy(update=changes)


def _local_name(value: Any) -> Any:
    """The name of a file or folder that is here; all else, such as a name on the Hugging Face Hub, as it is."""
    path = expanded(value) if isinstance(value, str) else None
    return path.name if path and path.exists() else value


def _file_name(spec: str) -> str:
    """File names for paths: `rgb:/home/me/net.py:Net` → `rgb:net.py:Net`."""
    return re.sub(r"[^:]*/([^/:]+\.py:)", r"\1", spec)
