"""What students call what: the best of each table and the teacher, counted over their seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidistill.storage.store import Store
from vidistill.tasks.learning.evaluate import load_confusion
from vidistill.tasks.report.data import Confusion, Row, RowPlan
from vidistill.tasks.report.tables import group_of, heading_of, row_label

SHOWN_TABLES, SHOWN_CLASSES, LARGEST = 8, 16, 10


def confusions(store: Store, plans: Sequence[RowPlan], rows: Sequence[Row]) -> list[Confusion]:
    """Of each kind of all clips and of the best row of each table, where its scores say what was called what."""
    best: dict[tuple[str, ...], int] = {}
    for number, row in enumerate(rows):
        table = (row.labels, *group_of(row), row.method if row.whole else "")
        if table not in best or row.top1_mean > rows[best[table]].top1_mean:
            best[table] = number
    found = []
    for number in sorted(best.values(), key=lambda number: not rows[number].whole):
        kept = [load_confusion(store.folder(ref)) for ref in plans[number].scores]
        counts = [one for one in kept if one is not None]
        if len(counts) == len(kept):
            counts_KK = np.sum(counts, axis=0)
            row = rows[number]
            heading = [row_label(row), *([] if row.whole else [f"{row.labels} labels"]), heading_of(row, rows)]
            found.append(Confusion(" · ".join(heading), counts_KK.tolist()))
    return found[:SHOWN_TABLES]


@dataclass(frozen=True)
class Cell:
    """One entry: how many, and which share of its row in percent."""

    count: int
    percent: int
    right: bool


@dataclass(frozen=True)
class Matrix:
    """Rows by class, none where there are too many classes; the largest mistakes, in words."""

    heading: str
    rows: list[tuple[str, list[Cell]]]
    largest: list[str]


def matrices(found: Sequence[Confusion], classes: Sequence[str]) -> list[Matrix]:
    """What the page draws."""
    return [_matrix(one, classes) for one in found]


def _matrix(one: Confusion, classes: Sequence[str]) -> Matrix:
    totals = [max(1, sum(row)) for row in one.counts_KK]
    rows = [
        (name, [Cell(count, round(100 * count / total), i == j) for j, count in enumerate(row)])
        for i, (name, row, total) in enumerate(zip(classes, one.counts_KK, totals, strict=True))
    ]
    wrong = [(i, j) for i, row in enumerate(one.counts_KK) for j, count in enumerate(row) if count and i != j]
    wrong.sort(key=lambda place: -one.counts_KK[place[0]][place[1]] / totals[place[0]])
    largest = [f"{classes[i]} as {classes[j]}, {one.counts_KK[i][j]} of {totals[i]}" for i, j in wrong[:LARGEST]]
    return Matrix(one.heading, rows if len(classes) <= SHOWN_CLASSES else [], largest)
