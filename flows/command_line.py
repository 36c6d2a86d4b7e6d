"""The command line that asks for an experiment: what differs from the defaults, and nothing of this machine."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from vidistill.flows.parameters import Cell, Experiment, name_of
from vidistill.flows.wording import OPTIONS


def command_of(experiment: Experiment, *, places: bool = False) -> str:
    """`vidistill run …` for the same experiment, from the folder that holds the data and the files of users' methods.

    It says no more than the experiment: no store, no device, and of paths the last part alone, unless their `places`
    are wanted.
    """
    if not places:
        cells = tuple(one.model_copy(update={"method": Path(one.method).name}) for one in experiment.cells)
        experiment = experiment.model_copy(update={"data": name_of(experiment.data), "cells": cells})
    data, methods = experiment.data, dict.fromkeys(cell.method for cell in experiment.cells)
    words = ["vidistill", "run", "--data", data, "--method", ",".join(methods)]
    for name, value in _changes(Experiment(data=data, cells=(Cell(method="random"),)), experiment):
        option = OPTIONS.get(name)
        if option:
            words += [option, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
        elif name not in {"data", "cells"}:
            words += ["--set", f"{name}={said(value)}"]
    return shlex.join([*words, *_cells(experiment)])


def _cells(experiment: Experiment) -> list[str]:
    """Options of plain cells by the method's name; variants and whatever else a cell has of its own as they are."""
    plain = all(cell.model_fields_set <= {"method", "options", "recipes"} for cell in experiment.cells)
    recipes = {cell.recipes for cell in experiment.cells}
    twice = [name for name, count in Counter(cell.method for cell in experiment.cells).items() if count > 1]
    if not plain or twice or len(recipes) > 1:
        cells = [cell.model_dump(mode="json", exclude_defaults=True) for cell in experiment.cells]
        return ["--set", f"cells={said(cells)}"]
    words = [word for names in recipes if names for word in ("--recipes", ",".join(names))]
    for cell in experiment.cells:
        name = cell.method.rpartition(":")[2].lower()  # a user's method is known by its class
        for option, value in cell.options.items():
            words += ["--set", f"{name}.{option}={said(value)}"]
    return words


def _changes(before: BaseModel, after: BaseModel, prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted names and values of what differs."""
    found: list[tuple[str, Any]] = []
    for name in type(after).model_fields:
        known, value = getattr(before, name), getattr(after, name)
        if isinstance(value, BaseModel) and isinstance(known, type(value)):
            found += _changes(known, value, f"{prefix}{name}.")
        elif value != known:
            found.append((prefix + name, to_jsonable_python(value)))
    return found


def said(value: Any) -> str:
    """In one line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()
