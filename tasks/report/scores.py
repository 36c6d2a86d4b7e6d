"""Scores of a benchmark beyond accuracy, from a report's JSON: DD-Ranking's, areas under curves, published numbers.

Rows are compared where all of their setting is the same, as in the report.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vidistill.models import CONVNET, parted
from vidistill.tasks.report.bytes import kilobytes
from vidistill.tasks.report.data import Row, Setting
from vidistill.tasks.report.tables import budget_of, display, markdown_text, percent, row_label, spread

PUBLISHED = Path(__file__).parent / "published.csv"
WEIGHT = 0.5
"""w of DD-Ranking's scores (NUS-HPC-AI-Lab/DD-Ranking)."""
WITHOUT_CROPS = "crop_scale 1", "crop_scale 1.0"
Table = list[list[str]]


def rows_in(document: dict[str, Any]) -> list[Row]:
    return [Row.model_validate(row) for row in document["rows"]]


def scores_page(
    document: dict[str, Any], plots: Mapping[str, Sequence[str]] | None = None, motion: Sequence[float] = ()
) -> str:
    """Every table of a benchmark, in Markdown, and its plots.

    Args:
        document: a report's JSON.
        plots: names of SVG files beside the page, by student and labels.
        motion: how much moves in each class, for the groups of static and dynamic ones.
    """
    rows, classes = rows_in(document), document["classes"]
    seeds, clip = max((row.seeds for row in rows if not row.whole), default=0), document["dataset"]["clip"]
    said = f"{len(classes)} classes, chance {percent(1 / len(classes))} %, clips of {clip}, {seeds} seeds."
    parts = [f"# {document['title']}: benchmark", "", said, ""]
    failed = [markdown_text(f"- {row['method']} {row['variant']}: {row['error']}") for row in document["failed"]]
    parts += ["## Cells that failed", "", *failed, ""] if failed else []
    for title, words, table in (
        ("Accuracy", _ACCURACY, accuracy_table(rows)),
        ("Area under accuracy against bytes", _AREA, area_table(rows, len(classes))),
        ("Robust scores", _ROBUST, robust_table(rows)),
        ("Static and dynamic classes", _MOTION, motion_table(rows, classes, motion)),
        ("Beside published numbers", _PUBLISHED, published_table(document, rows)),
    ):
        if len(table) > 1:
            parts += [f"## {title}", "", words, "", *_markdown(table), ""]
    parts += ["## Plots", ""] if plots else []
    for title, names in (plots or {}).items():
        parts += [f"### {title}", "", *(f"![{name}]({name})" for name in names), ""]
    return "\n".join([*parts, *document["notes"], ""])


def _markdown(table: Table) -> list[str]:
    head, *lines = [f"| {' | '.join(map(markdown_text, line))} |" for line in table]
    return [head, "|---" * len(table[0]) + "|", *lines]


# DD-Ranking

_ROBUST = (
    "DD-Ranking's label-robust score: α = w·(set − Random, under the better label kind) − (1 − w)·(all clips − set, "
    "hard labels), w = 0.5, as 100·(e^α − e⁻¹)/(e − e⁻¹); augmentation-robust: the same of set − Random with crops and "
    f"without, where both were run. {100 * (1 - math.exp(-1)) / (math.e - math.exp(-1)):.1f} is a set worth as much as "
    "Random and as all clips."
)


def normalised(alpha: float) -> float:
    """(e^α − e⁻¹)/(e − e⁻¹), in percent: 0 for −1, 100 for 1."""
    return 100 * (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust(row: Row, rows: Sequence[Row]) -> float | None:
    """LRS of a method at a budget; None where a hard-label row of it, all clips or a Random is missing."""
    alike = [one for one in rows if _of_every_recipe(one) == _of_every_recipe(row)]
    own = [one for one in alike if one.maker == row.maker and (one.by == row.by or not one.teacher)]
    hard = next((one for one in own if one.recipe == "hard"), None)
    trained = row.student, row.training
    full = next((one for one in rows if one.method == "full" and (one.student, one.training) == trained), None)
    gains = {one.recipe: one.top1_mean - against.top1_mean for one in own if (against := _random_of(one, rows))}
    best = max((one for one in own if one.recipe in gains), key=lambda one: one.top1_mean, default=None)
    if hard is None or full is None or best is None:
        return None
    return normalised(WEIGHT * gains[best.recipe] - (1 - WEIGHT) * (full.top1_mean - hard.top1_mean))


def augmentation_robust(row: Row, rows: Sequence[Row]) -> float | None:
    """ARS of a row: its lead over Random with crops and without; None where one of the two was not run."""
    alike = [one for one in rows if one.maker == row.maker and one.setting._replace(training="") == row.setting]
    bare = [one for one in alike if one.training in WITHOUT_CROPS]
    with_crops, without = _random_of(row, rows), _random_of(bare[0], rows) if bare else None
    if row.training or with_crops is None or without is None:
        return None
    leads = row.top1_mean - with_crops.top1_mean, bare[0].top1_mean - without.top1_mean
    return normalised(WEIGHT * leads[0] + (1 - WEIGHT) * leads[1])


def _of_every_recipe(row: Row) -> Setting:
    return row.setting._replace(recipe="", teacher="")


def _random_of(row: Row, rows: Sequence[Row]) -> Row | None:
    return next((one for one in rows if one.is_random and one.setting == row.setting), None)


def robust_table(rows: Sequence[Row]) -> Table:
    """A line a method, budget and student; where no hard labels have the augmentation-robust score, its recipe too."""
    table = [["method", "budget", "student", "label-robust", "augmentation-robust"]]
    recipes: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if not (row.whole or row.is_random or row.training):
            recipes.setdefault((row_label(row), row.ipc, row.kb, row.student), []).append(row)
    for own in recipes.values():
        found = label_robust(own[0], rows)
        values = {row.recipe: value for row in own if (value := augmentation_robust(row, rows)) is not None}
        if found is not None or values:
            recipe = "hard" if "hard" in values else next(iter(values), None)
            robust = "–" if recipe is None else f"{values[recipe]:.1f}" + (f" ({recipe})" if recipe != "hard" else "")
            cells = ["–" if found is None else f"{found:.1f}", robust]
            table.append([row_label(own[0]), budget_of(own[0]), own[0].student, *cells])
    return table


# Areas

_AREA = (
    "The mean accuracy over the logarithm of the kilobytes a class, by trapezoids between the budgets that were run."
)


def area(points: Iterable[tuple[float, float]]) -> float:
    """The mean height of the polygon through (x, y) over log x, from the least to the largest x.

    Raises:
        ValueError: all points lie at one x.
    """
    ordered = sorted(points)
    logs = [math.log(x) for x, _ in ordered]
    if logs[0] == logs[-1]:
        raise ValueError("an area needs two points of different sizes")
    pairs = zip(zip(logs, ordered, strict=True), zip(logs[1:], ordered[1:], strict=True), strict=False)
    whole = sum((after - before) * (low[1] + high[1]) / 2 for (before, low), (after, high) in pairs)
    return whole / (logs[-1] - logs[0])


def area_table(rows: Sequence[Row], classes: int) -> Table:
    """A line for each method, recipe and student of several sizes."""
    groups: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if not row.whole and row.bytes:
            name = (row_label(row), row.recipe, row.student)
            groups.setdefault(name, []).append((kilobytes(row, classes), row.top1_mean))
    table = [["method", "recipe", "student", "kB a class", "points", "mean top-1 %"]]
    for name, points in groups.items():
        sizes = [size for size, _ in points]
        if min(sizes) < max(sizes):
            said = f"{min(sizes):.1f}–{max(sizes):.1f}"
            table.append([*name, said, str(len(points)), percent(area(points))])
    return table


# Accuracy, and groups of classes

_ACCURACY = (
    "Top-1 %, mean ± standard deviation over seeds, of every student: those of one front on the same sets, while a "
    "method that uses a network makes sets of its own for each front; † where that was another network than the "
    "student itself (cross-architecture)."
)


def accuracy_table(rows: Sequence[Row]) -> Table:
    """A line a set, a column a student."""
    students = list(dict.fromkeys(row.student for row in rows if not row.whole))
    table = [["method", "recipe", "budget", *students]]
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        if row.student in students and row.method != "teacher":
            crossed = row.network and parted(row.network)[1] != parted(row.student)[1]
            name, shown = (row_label(row), row.recipe, budget_of(row)), spread(row) + (" †" if crossed else "")
            lines.setdefault(name, {})[row.student] = shown
    return [*table, *([*name, *(found.get(one, "–") for one in students)] for name, found in lines.items())]


_MOTION = (
    "Top-1 % of the half of the classes in which least moves and of the other half, by the mean difference between "
    "neighbouring frames of training clips. Not TSGF's Table 7, which distils VDSD's two groups, whose lists are not "
    "published, each by itself."
)


def moving_halves(motion: Sequence[float]) -> tuple[list[int], list[int]]:
    """The labels of the still half and of the moving one; a class in the middle is among the still ones."""
    order = sorted(range(len(motion)), key=lambda label: motion[label])
    middle = (len(order) + 1) // 2
    return sorted(order[:middle]), sorted(order[middle:])


def motion_table(rows: Sequence[Row], classes: Sequence[str], motion: Sequence[float]) -> Table:
    if not motion:
        return []
    still, moving = moving_halves(motion)
    table = [["method", "recipe", "budget", "student", f"static ({len(still)})", f"dynamic ({len(moving)})"]]
    for row in rows:
        means = [sum(row.per_class[label] for label in group) / len(group) for group in (still, moving)]
        table.append([row_label(row), row.recipe, budget_of(row), row.student, *map(percent, means)])
    named = [", ".join(classes[label] for label in group) for group in (still, moving)]
    return [*table, ["classes", "", "", "", *named]]


# Published numbers

_PUBLISHED = (
    "Ours minus theirs. *Yes*: the same data, protocol, network and kind of labels; otherwise what differs. Means of "
    "baselines agree between papers; some of their deviations are shifted by a row, so none are shown."
)


@cache
def published() -> list[dict[str, str]]:
    """What papers print: dataset, method, ipc, metric, value, network, labels, source."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def published_table(document: dict[str, Any], rows: Sequence[Row]) -> Table:
    name = str(document["dataset"]["dataset"]).lower().replace("-", "").replace("_", "")
    table = [["method", "budget", "student", "recipe", "ours %", "published %", "difference", "source", "comparable"]]
    for one in published():
        for row in rows:
            budget = "" if row.ipc is None else str(row.ipc)
            if one["dataset"] == name and one["method"] == row.method and one["ipc"] == budget and row.kb is None:
                ours = 100 * (row.top1_mean if one["metric"] == "top1" else row.top5_mean)
                theirs = float(one["value"])
                told = [row_label(row), budget or "all", row.student, row.recipe, f"{ours:.1f}", f"{theirs:.1f}",
                        f"{ours - theirs:+.1f}", one["source"], comparable(row, one, document)]  # fmt: skip
                table.append([cell.replace("-", "−") if cell == told[6] else cell for cell in told])
    return table


CLASSES = {"miniucf": 50, "hmdb51": 51, "ucf101": 101, "kinetics400": 400, "ssv2": 174}
EVERY_CLIP = "trained on all clips outside of split 1's test list"
"""What papers do with HMDB51, and our layout `hmdb51_5236`."""
CLIPS = dict.fromkeys(("kinetics400", "ssv2"), "8 frames of 64×64")
"""Of the papers, by data set; the others are of 16 frames of 112×112."""


def comparable(row: Row, one: dict[str, str], document: dict[str, Any]) -> str:
    """`yes`, or what differs from what ours are in a report's JSON.

    Under the recipe `learned`, sets of methods that learn no labels have hard ones.
    """
    theirs = CLIPS.get(one["dataset"], "16 frames of 112×112")
    layout, clip = (str(document["dataset"].get(name, "")) for name in ("layout", "clip"))
    body, (_, made) = parted(row.student), parted(row.network)
    noted = [note for note in one["note"].split("; ") if (note, layout) != (EVERY_CLIP, "hmdb51_5236")]
    labels = ("learned", "hard") if row.recipe == "learned" else (row.labels,)
    reasons = [
        "" if row.protocol == "vdsd" else "another protocol",
        "" if row.split == "1" else f"split {row.split}",
        "" if layout != "folders" else "split by folders",
        "" if len(document["classes"]) == (many := CLASSES[one["dataset"]]) else f"{many} classes in the paper",
        "" if body == ("rgb", one["network"]) else f"{display(one['network'])} in the paper",
        "" if made in ("", CONVNET, one["network"]) else f"made with {made}",
        "" if one["labels"] in labels else f"{one['labels']} labels in the paper",
        "; ".join(noted),
        "" if clip == theirs else f"{theirs} in the paper",
        "" if row.variant == "" else "another variant",
    ]
    return ", ".join(filter(None, reasons)) or "yes"
