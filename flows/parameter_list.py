"""What `vidistill parameters` says: the names that `--set` takes, their defaults and what they mean."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.table import Table

from vidistill.flows.command_line import said
from vidistill.flows.parameters import Cell, Experiment
from vidistill.tasks.distil import blaming
from vidistill.tasks.methods import find_method

LONGEST = 40
"""Characters of a default that are shown."""


def list_parameters(names: list[str], console: Console) -> None:
    """Print the parameters of an experiment, or those of methods, or of `pool`.

    Raises:
        RequestError: there is no such method.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("--set", no_wrap=True)
    table.add_column("default", overflow="fold", max_width=20)
    table.add_column("meaning")
    for name in names or [""]:
        for cells in listed(name):
            table.add_row(*cells)
    console.print(table)
    if not names:
        console.print("\nThose of methods and of generated pools: vidistill parameters dm, vidistill parameters pool.")


def listed(name: str) -> Iterator[tuple[str, str, str]]:
    """Those of a method, of `pool`, or, without a name, the others."""
    if name in ("", "pool"):
        usual = Experiment(data="sprites", cells=(Cell(method="random"),))
        yield from (one for one in described(usual) if one[0].startswith("pool.") == bool(name))
        return
    source = find_method(name)
    with blaming(source):
        options = source.method.Parameters()
    yield from described(options, f"{source.name}.")


def described(parameters: BaseModel, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted name, value and description of each parameter, those of groups below the group's name."""
    for name, field in type(parameters).model_fields.items():
        value = getattr(parameters, name)
        if isinstance(value, BaseModel):
            yield from described(value, f"{prefix}{name}.")
        elif prefix or name not in {"data", "cells"}:
            shown = said(to_jsonable_python(value))
            yield prefix + name, shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…", field.description or ""
