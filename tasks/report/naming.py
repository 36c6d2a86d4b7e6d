"""Rows of one name whose networks or teachers differ, as those of a grid of several fronts do, are told apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

from vidistill.tasks.report.data import Named

Of = TypeVar("Of", bound=Named)
First = dict[tuple[Hashable, ...], str]


def told_apart(rows: Iterable[Of], beside: Iterable[Named] = ()) -> list[Of]:
    """Each row with the network that it is `by`, where those before it, or beside it, have its name and another."""
    first: First = {}
    for one in beside:
        _another(first, one)
    return [row.model_copy(update={"by": _another(first, row)}) for row in rows]


def _another(first: First, row: Named) -> str:
    """The row's network, else its teacher, where the first of its name and student had another; else nothing."""
    found = ""
    for role, own in (("network", row.network), ("teacher", row.teacher)):
        if own and first.setdefault((role, row.method, row.variant, row.student), own) != own:
            found = found or own
    return found
