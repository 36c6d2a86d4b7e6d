"""Plots of a benchmark as SVG files, to be read in black and white: shapes and dashes tell methods apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from vidistill.tasks.report.bytes import LogAxis, kilobytes
from vidistill.tasks.report.data import Row
from vidistill.tasks.report.pictures import Axis
from vidistill.tasks.report.scores import rows_in
from vidistill.tasks.report.tables import budget_of, row_label

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 56, 216, 30, 46
LEGEND, LETTER, ENTRY = WIDTH - RIGHT + 100, 7, 16
"""Where names of the legend begin, the width of a letter, at most about, and the height of a line."""
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "plus")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
BARRED_CLASSES = 40


@dataclass(frozen=True)
class Series:
    """Points of one method: (x, top-1, its deviation), by rising x."""

    name: str
    points: tuple[tuple[float, float, float], ...]


def write_plots(document: dict[str, Any], out: Path) -> dict[str, list[str]]:
    """Write every plot for which a report has two budgets of a method; the names of the files by student and labels."""
    plots = _plots(rows_in(document), document["classes"])
    for of_student in plots.values():
        for name, svg in of_student.items():
            (out / name).write_text(svg, encoding="utf-8")
    return {title: list(of_student) for title, of_student in plots.items()}


def _plots(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, dict[str, str]]:
    kinds: dict[str, tuple[str, Callable[[Row], float]]] = {
        "bytes": ("kilobytes a class", lambda row: kilobytes(row, len(classes))),
        "seconds": ("seconds to make the set", lambda row: row.seconds),
        "instances": ("clips a class", lambda row: row.ipc or 0),
    }
    plots: dict[str, dict[str, str]] = {}
    for student, training, labels in dict.fromkeys((row.student, row.training, row.labels) for row in rows):
        of_student = [row for row in rows if (row.student, row.training) == (student, training)]
        full = next((row for row in of_student if row.method == "full"), None)
        own = [row for row in of_student if row.labels == labels and not row.whole]
        title, found = ", ".join(filter(None, [student, training, f"{labels} labels"])), dict[str, str]()
        for kind, (words, place) in kinds.items():
            series = series_of(own, place)
            if any(len(one.points) > 1 for one in series):
                found[f"{kind}-{_slug(title)}.svg"] = curve_svg(title, words, series, full.top1_mean if full else None)
        gains = class_gains(own, classes)
        if found and gains:
            found[f"gains-{_slug(title)}.svg"] = bars_svg(*gains, title)
        if found:
            plots[title] = found
    return plots


def series_of(rows: Sequence[Row], place: Callable[[Row], float]) -> list[Series]:
    """A series a method and recipe; rows that have no place on a logarithmic axis are left out."""
    points: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        if place(row) > 0:
            name = row_label(row) if row.recipe == row.labels else f"{row_label(row)}, {row.recipe}"
            points.setdefault(name, []).append((place(row), row.top1_mean, row.top1_std))
    return [Series(name, tuple(sorted(found))) for name, found in points.items()]


def curve_svg(title: str, words: str, series: Sequence[Series], full: float | None) -> str:
    """Top-1 over a logarithmic axis, a line and a shape a method, deviations as bars, all clips as a dashed line."""
    xs = [x for one in series for x, _, _ in one.points]
    tops = [y + spread for one in series for _, y, spread in one.points] + ([full] if full is not None else [])
    x_axis = LogAxis(min(xs) / 1.4, max(xs) * 1.4, LEFT, WIDTH - RIGHT)
    y_axis = Axis(0.0, min(1.0, 1.1 * max(tops)) or 1.0, HEIGHT - BOTTOM, TOP)
    parts = [*_frame(title, words, x_axis, y_axis)]
    if full is not None:
        at = y_axis.at(full)
        parts.append(f'<path d="M{LEFT} {at}H{WIDTH - RIGHT}" class="full"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{at + 4}">all clips</text>')
    for number, one in enumerate(series):
        parts += _drawn(one, number, x_axis, y_axis)
    return _svg(parts, width=max(WIDTH, LEGEND + LETTER * max(len(one.name) for one in series)),
                height=max(HEIGHT, TOP + ENTRY * (len(series) + 1)))  # fmt: skip


def _drawn(one: Series, number: int, x_axis: LogAxis, y_axis: Axis) -> list[str]:
    shape, dash = SHAPES[number % len(SHAPES)], DASHES[number // len(SHAPES) % len(DASHES)]
    places = [(x_axis.at(x), y_axis.at(y)) for x, y, _ in one.points]
    line = "L".join(f"{x} {y}" for x, y in places)
    parts = [f"<g><title>{escape(one.name)}</title>", f'<path d="M{line}" stroke-dasharray="{dash}"/>']
    for (x, _), (_, y, spread) in zip(places, one.points, strict=True):
        if spread:
            parts.append(
                f'<path d="M{x} {y_axis.at(max(0.0, y - spread))}V{y_axis.at(min(y_axis.high, y + spread))}"/>'
            )
    parts += [_mark(shape, x, y) for x, y in places]
    key = TOP + 8 + ENTRY * number
    x = LEGEND - 20
    parts += [f'<path d="M{x - 14} {key}H{x + 14}" stroke-dasharray="{dash}"/>', _mark(shape, x, key)]
    return [*parts, f'<text x="{LEGEND}" y="{key + 4}">{escape(one.name)}</text>', "</g>"]


def _mark(shape: str, x: float, y: float) -> str:
    drawn = {
        "circle": f"M{x - 4} {y}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
        "square": f"M{x - 4} {y - 4}h8v8h-8Z",
        "triangle": f"M{x} {y - 5}l5 9h-10Z",
        "diamond": f"M{x} {y - 5}l5 5l-5 5l-5 -5Z",
        "cross": f"M{x - 4} {y - 4}l8 8m0 -8l-8 8",
        "plus": f"M{x - 5} {y}h10m-5 -5v10",
    }[shape]
    return f'<path class="mark" d="{drawn}"/>'


def class_gains(rows: Sequence[Row], classes: Sequence[str]) -> tuple[str, list[tuple[str, float]]] | None:
    """Of the row that leads Random by most: its name, and each class's accuracy minus Random's, the largest first."""
    leading = [row for row in rows if row.difference_mean is not None]
    best = max(leading, key=lambda row: row.difference_mean or 0.0, default=None)
    if best is None:
        return None
    against = next(row for row in rows if row.is_random and row.setting == best.setting)
    pairs = zip(classes, best.per_class, against.per_class, strict=True)
    gains = sorted(((name, own - other) for name, own, other in pairs), key=lambda pair: -pair[1])
    return f"{row_label(best)}, {best.recipe}, {budget_of(best)} a class: accuracy of each class minus Random's", gains


def bars_svg(words: str, gains: list[tuple[str, float]], title: str) -> str:
    """A bar a class; of many classes the first and the last twenty."""
    if len(gains) > BARRED_CLASSES:
        words += f" (first and last {BARRED_CLASSES // 2} of {len(gains)})"
        gains = [*gains[: BARRED_CLASSES // 2], *gains[-BARRED_CLASSES // 2 :]]
    height = TOP + 22 + 16 * len(gains) + 10
    largest = max(0.05, *(abs(gain) for _, gain in gains))
    axis = Axis(-largest, largest, 220, WIDTH - 60)
    parts = [f'<text x="8" y="16">{escape(title)}</text>', f'<text x="8" y="34">{escape(words)}</text>',
             f'<path d="M{axis.at(0)} {TOP + 12}V{height - 8}"/>']  # fmt: skip
    for number, (name, gain) in enumerate(gains):
        y, ends, side = TOP + 16 + 16 * number, sorted((axis.at(0), axis.at(gain))), "up" if gain > 0 else "down"
        parts += [
            f'<rect x="{ends[0]}" y="{y}" width="{ends[1] - ends[0]:.1f}" height="11" class="{side}"/>',
            f'<text x="212" y="{y + 10}" text-anchor="end">{escape(name)}</text>',
            f'<text x="{WIDTH - 52}" y="{y + 10}">{100 * gain:+.1f}</text>',
        ]
    return _svg(parts, height=height)


def _frame(title: str, words: str, x_axis: LogAxis, y_axis: Axis) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = [
        f'<text x="8" y="16">{escape(title)}: top-1 %</text>',
        f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>',
    ]
    parts += [
        f'<text x="{tick.position}" y="{bottom + 16}" text-anchor="middle">{tick.label}</text>' for tick in x_axis.ticks
    ]
    for tick in y_axis.ticks:
        label = f"{100 * float(tick.label):g}"
        parts.append(f'<path d="M{LEFT} {tick.position}H{WIDTH - RIGHT}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{tick.position + 4}" text-anchor="end">{label}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [*parts, f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(words)}</text>']


def _svg(parts: Sequence[str], *, width: int = WIDTH, height: int = HEIGHT) -> str:
    style = (
        "text{font:12px sans-serif;fill:#111}path{fill:none;stroke:#111}.mark{fill:#fff;stroke-width:1.4}"
        ".grid{stroke:#ddd}.full{stroke-dasharray:10 4}.up{fill:#444}.down{fill:#fff;stroke:#111}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return "\n".join(
        [head, f"<style>{style}</style>", f'<rect width="{width}" height="{height}" fill="#fff"/>', *parts, "</svg>\n"]
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
