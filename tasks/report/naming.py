"""Rows of one name whose networks or teachers differ, as those of a grid of several fronts do, are told apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import TypeVar

from vidistill.tasks.report.data import Named, RowPlan

Of = TypeVar("Of", bound=Named)
First = dict[tuple[Hashable, ...], str]


def told_apart(rows: Iterable[Of], beside: Iterable[Named] = ()) -> list[Of]:
    """Each row with the network that it is `by`, where those before it, or beside it, have its name and another."""
    first: First = {}
    for one in beside:
        _another(first, (one.method, one.variant, one.student), one.network, one.teacher)
    return [
        row.model_copy(update={"by": _another(first, (row.method, row.variant, row.student), row.network, row.teacher)})
        for row in rows
    ]


def named_sets(plans: Iterable[RowPlan]) -> Iterator[tuple[str, RowPlan]]:
    """Each row that has sets, by the name of these: whatever its student is, sets that differ have two names."""
    first: First = {}
    for plan in plans:
        if plan.sets:
            teacher = plan.teacher if plan.mixed or plan.kb else ""
            by = _another(first, (plan.set_name,), plan.network, teacher)
            yield plan.set_name + plan.model_copy(update={"by": by}).told, plan


def _another(first: First, name: tuple[str, ...], network: str, teacher: str) -> str:
    """The network, else the teacher, where the first of this name had another; else nothing."""
    found = ""
    for role, own in (("network", network), ("teacher", teacher)):
        if own and first.setdefault((role, *name), own) != own:
            found = found or own
    return found
