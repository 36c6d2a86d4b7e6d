"""Accuracy against bytes: what each row keeps a class, which rows nobody beats at their size, and a picture of both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidistill.storage.distilled import DistilledSet
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.coded.recode import RAW_BYTES, RAW_BYTES_HARD
from vidistill.tasks.learning.evaluate import Score
from vidistill.tasks.methods import STORED
from vidistill.tasks.report.data import KINDS, Row, RowPlan
from vidistill.tasks.report.naming import named_sets
from vidistill.tasks.report.pictures import LEFT, PANEL_WIDTH, RIGHT, Axis, Tick, vertical
from vidistill.tasks.report.tables import budget_of, percent, row_label, spread

COLUMNS = ("Method", "kB a class", "Budget", "Top-1 %", "of full %")
POINT = {"crf", "scale", "frames", "clips", "bytes", "students", "top1"}
"""What a search says of each point: facts of a method of a user's own that say else are no search."""


def coded_bytes(store: Store, plan: RowPlan, scores: Mapping[ArtifactRef, Score]) -> dict[str, int]:
    """Of rows whose clips were scored as compressed video: their bytes as such, and what the method itself stored."""
    folders = [store.folder(ref) for ref in plan.sets]
    facts = [DistilledSet.facts_of(folder) for folder in folders]
    if not facts or not all("coded" in one for one in facts):
        return {}
    with_all = [scores[ref].training_bytes for ref in plan.scores]
    logits = plan.recipe.partition("+")[0] in STORED
    sizes = [DistilledSet.training_bytes(folder, logits=logits) for folder in folders]
    raw = [
        (one.get(RAW_BYTES, size) if logits else one.get(RAW_BYTES_HARD, one.get(RAW_BYTES, size))) + whole - size
        for one, size, whole in zip(facts, sizes, with_all, strict=True)
    ]
    return {"bytes_coded": round(np.mean(with_all)), "bytes": round(np.mean(raw))}


def searches(store: Store, plans: Iterable[RowPlan]) -> dict[str, list[dict[str, Any]]]:
    """What each search for a quantiser tried, by method, budget and labels; no top-1 of what no student tried."""
    found = {}
    for name, plan in named_sets(plans):
        tried = DistilledSet.facts_of(store.folder(plan.sets[0])).get("search")
        if tried and isinstance(tried, list) and all(isinstance(one, dict) and one.keys() >= POINT for one in tried):
            found[f"{name}{plan.budget}, {plan.recipe}"] = [
                one if one["students"] else one | {"top1": None} for one in tried
            ]
    return found


def kilobytes(row: Row, classes: int) -> float:
    """What a row keeps, in kilobytes a class: of the forms that it was scored in the smaller."""
    return (row.bytes if row.bytes_coded is None else row.bytes_coded) / classes / 1000


def front(rows: Sequence[Row], classes: int) -> list[Row]:
    """The rows that no other beats with as many bytes or fewer (Pareto), the smallest first."""

    def place(row: Row) -> tuple[float, float]:
        return kilobytes(row, classes), -row.top1_mean

    best: list[Row] = []
    for row in sorted(rows, key=place):
        if not best or row.top1_mean > best[-1].top1_mean or place(row) == place(best[-1]):
            best.append(row)
    return best


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic scale from values to drawing units: ticks at 1, 2 and 5 times powers of ten, else in its middle."""

    low: float
    high: float
    start: float = LEFT
    end: float = PANEL_WIDTH - RIGHT

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[Tick]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 2, 5) if self.high / self.low < 200 else (1,)
        every = [factor * 10.0**power for power in powers for factor in factors]
        middle = float(f"{math.sqrt(self.low * self.high):.3g}")
        shown = [value for value in every if self.low <= value <= self.high] or [middle]
        return [Tick(self.at(value), f"{value:g}") for value in shown]


@dataclass(frozen=True)
class Point:
    """A row, and the titles of all that lie where it does; a square where its clips are compressed video."""

    colour: str
    title: str
    x: float
    y: float
    square: bool
    on_front: bool


@dataclass(frozen=True)
class BytesChart:
    """Rows of one student and one kind of labels; `full` is the height of the line of all clips, if there is one."""

    heading: str
    x_axis: LogAxis
    y_axis: Axis
    points: list[Point]
    front: str
    full: tuple[float, str] | None
    legend: list[tuple[str, bool, str]]
    lines: list[tuple[bool, list[str]]]


def bytes_charts(rows: Sequence[Row], classes: int) -> list[BytesChart]:
    """A chart for each student, its training and kind of labels that has rows of a budget: these are ranked apart."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if not row.whole and row.bytes:
            groups.setdefault((row.student, row.training, row.labels), []).append(row)
    whole = {(row.student, row.training): row for row in rows if row.method == "full"}
    names = dict.fromkeys(_drawn_as(row) for group in groups.values() for row in group)
    colours = {name: f"c{index % 8}" for index, name in enumerate(name for name in names if name != "Random")}
    return [
        _chart(", ".join(filter(None, [*trained, f"{kind} labels"])), groups[*trained, kind], whole.get(trained),
               classes, colours)
        for trained in sorted({(student, training) for student, training, _ in groups})
        for kind in KINDS if (*trained, kind) in groups
    ]  # fmt: skip


def _drawn_as(row: Row) -> str:
    """A method's clips and the same as compressed video are of one colour."""
    own = row.set_variant
    if row.bytes_coded is not None and row.method != "coded":
        own = own.removesuffix("coded").strip()
    return row_label(row.model_copy(update={"variant": f"{own} {row.training}".strip()}))


def _chart(heading: str, rows: list[Row], full: Row | None, classes: int, colours: Mapping[str, str]) -> BytesChart:
    sizes = [kilobytes(row, classes) for row in rows]
    x_axis = LogAxis(min(sizes) / 1.3, max(sizes) * 1.3)
    y_axis = vertical(0.0, 1.1 * max([row.top1_mean for row in (*rows, *([full] if full else []))] + [0.01]))
    best = front(rows, classes)
    places = [(x_axis.at(size), y_axis.at(row.top1_mean)) for row, size in zip(rows, sizes, strict=True)]
    said: dict[tuple[float, float], list[str]] = {}
    for row, size, place in zip(rows, sizes, places, strict=True):
        words = f"{row_label(row)}, {budget_of(row)}: {size:.1f} kB a class, {percent(row.top1_mean)} %"
        said.setdefault(place, []).append(words)
    points = [
        Point(colours.get(_drawn_as(row), "random"), "; ".join(said[place]), *place, row.bytes_coded is not None,
              row in best)
        for row, place in sorted(zip(rows, places, strict=True), key=lambda pair: not pair[0].is_random)  # Random below
    ]  # fmt: skip
    line = None if full is None else (y_axis.at(full.top1_mean), f"all clips: {percent(full.top1_mean)} %")
    legend = dict.fromkeys(
        (colours.get(_drawn_as(row), "random"), row.bytes_coded is not None, row_label(row)) for row in rows
    )
    ordered = sorted(rows, key=lambda row: kilobytes(row, classes))
    lines = [(row in best, _cells(row, full, classes)) for row in ordered]
    return BytesChart(
        heading, x_axis, y_axis, points, _stairs(best, x_axis, y_axis, classes), line, list(legend), lines
    )


def _stairs(best: Sequence[Row], x_axis: LogAxis, y_axis: Axis, classes: int) -> str:
    """The front as an SVG path: what the best row of so many bytes or fewer reaches."""
    steps = [f"{x_axis.at(kilobytes(row, classes))} {y_axis.at(row.top1_mean)}" for row in best]
    turns = [f"H{step.split()[0]}V{step.split()[1]}" for step in steps[1:]]
    return f"M{steps[0]}{''.join(turns)}H{x_axis.end}"


def _cells(row: Row, full: Row | None, classes: int) -> list[str]:
    share = "–" if full is None or not full.top1_mean else f"{100 * row.top1_mean / full.top1_mean:.0f}"
    name = row_label(row) if row.recipe == row.labels else f"{row_label(row)} · {row.recipe}"
    return [name, f"{kilobytes(row, classes):.1f}", budget_of(row), spread(row), share]
