"""The report: results in, one self-contained HTML page, its JSON, and a markdown table out. It reads no artifact.

Legend: T frames, H height, W width, C colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from vidistill.tasks.report import pictures
from vidistill.tasks.report.bytes import COLUMNS as BYTES_COLUMNS
from vidistill.tasks.report.bytes import bytes_charts
from vidistill.tasks.report.confusion import matrices
from vidistill.tasks.report.data import ClipPair, CropSet, CropShown, Curve, LineageEntry, ReportData, Saliency
from vidistill.tasks.report.page_pool import pool_document, pool_pictures
from vidistill.tasks.report.statistics import LEAST_SEEDS
from vidistill.tasks.report.tables import (
    COLUMNS,
    TableLine,
    display,
    duration,
    failed_cells,
    group_of,
    heading_of,
    markdown_text,
    percent,
    row_label,
    size,
    summary,
    tables,
)

PICTURE_BYTES = 11_000_000
CROP_BYTES = 6_000_000
PICTURED_CLASSES = 10
PER_CLASS_METHODS = 6


def render_html(data: ReportData) -> str:
    """The whole page as one string: styles, charts and moving pictures inside, nothing fetched."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"display": display, "size": size, "duration": duration, "percent": percent}
    colours = _colours(data)
    clips, left_out = _clips(data.pairs)
    return environment.get_template("report.html.jinja").render(
        data=data,
        summary=summary(data),
        tables=tables(data.rows, len(data.classes)),
        fallen=[row_label(row) for row in data.rows if row.collapsed],
        least=LEAST_SEEDS,
        facets=_facets(data.curves, colours),
        losses=_loss_panels(data.losses, colours),
        bars=_bars(data, colours),
        clips=clips,
        left_out=left_out,
        motion=_motion(data.pairs),
        saliency=_saliency(data.saliency),
        crops=_crops(data.crops),
        pools=pool_pictures(data.pools),
        lineage=_by_kind(data.lineage),
        keys={entry.key for entry in data.lineage},
        columns=COLUMNS,
        matrices=matrices(data.confusions, data.classes),
        failed=[failed_cells(row) for row in data.failed],
        bytes_charts=bytes_charts(data.rows, len(data.classes)),
        bytes_columns=BYTES_COLUMNS,
        vdsd=any(row.protocol == "vdsd" for row in data.rows),
    )


def render_json(data: ReportData) -> dict[str, Any]:
    """What scripts read: `rows`, `rejected`, and all else but the clips; a number that is not finite is null."""
    document: dict[str, Any] = {
        "title": data.title,
        "created": data.created,
        "command": data.command,
        "dataset": data.dataset_summary,
        "classes": data.classes,
        "chance": 1 / len(data.classes) if data.classes else None,
        "rows": [row.model_dump(mode="json") for row in data.rows],
        "confusions": [asdict(one) for one in data.confusions],
        "failed": [row.model_dump(mode="json") for row in data.failed],
        "rejected": data.rejected,
        "curves": [curve.model_dump(mode="json") for curve in data.curves],
        "losses": [curve.model_dump(mode="json") for curve in data.losses],
        "saliency": [asdict(one) for one in data.saliency],
        "crops": [
            {"method": one.method, "ipc": one.ipc, "counts": one.counts, "detector": one.detector} for one in data.crops
        ],
        "searches": data.searches,
        "pools": [pool_document(pool) for pool in data.pools],
        "lineage": [entry.model_dump(mode="json") for entry in data.lineage],
        "notes": data.notes,
    }
    finite: dict[str, Any] = _finite(document)
    return finite


def render_markdown(data: ReportData) -> str:
    """The summary and the tables as GitHub-flavoured markdown."""
    opening, *results = summary(data)
    blocks = [opening, "\n".join(f"- {result}" for result in results)] if results else [opening]
    blocks += [f"`{command}`" for command in data.command.splitlines()]
    for table in tables(data.rows, len(data.classes)):
        blocks.append(f"## {table.title}")
        for group in table.groups:
            lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 2) + "---|"]
            lines += ["| " + " | ".join(_markdown_cells(line)) + " |" for line in group.lines]
            lines += ["| " + " | ".join(group.chance) + " |"] if group.chance else []
            blocks += [f"**{markdown_text(group.heading)}**", "\n".join(lines)]
            blocks += [] if group.random_present else ["No Random stands beside these rows."]
            blocks += [markdown_text(mark) for mark in group.marks]
    if data.failed:
        named = [f"- {' · '.join(failed_cells(row)[:4])}: {row.error}" for row in data.failed]
        blocks += ["## Rows that failed", "\n".join(map(markdown_text, named))]
    return "\n\n".join(blocks) + "\n"


def _markdown_cells(line: TableLine) -> list[str]:
    first, top1, *others = (markdown_text(cell) for cell in line.cells)
    return [f"**{first}**", f"**{top1}**", *others] if line.best else [first, top1, *others]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Facet:
    """The losses of one setting's students."""

    setting: str
    legend: list[tuple[str, str]]
    panel: pictures.Panel


def _method_of(curve: Curve) -> str:
    """`TSGF` of `tsgf soft, ipc 1, minic3d_bn`, whose setting are the words from `soft` on."""
    return display(curve.name.removesuffix(curve.setting).strip())


def _colours(data: ReportData) -> dict[str, str]:
    """A colour class for each method, in order of appearance; Random and Full data have their own."""
    names = [*map(row_label, data.rows), *map(_method_of, data.curves)]
    own = {"Random": "random", "Full data": "full"}
    others = dict.fromkeys(name for name in names if name not in own)
    return own | {name: f"c{index % 8}" for index, name in enumerate(others)}


def _facets(curves: Sequence[Curve], colours: dict[str, str]) -> list[Facet]:
    facets = []
    for setting in dict.fromkeys(curve.setting for curve in curves):
        members = [curve for curve in curves if curve.setting == setting and curve.steps]
        named = [(colours[name], name) for name in dict.fromkeys(map(_method_of, members))]
        series = [
            pictures.Series(
                colours[name], f"{name}, seed {curve.seed}: ends at {curve.loss[-1]:.3g}", curve.steps, curve.loss
            )
            for curve in members
            for name in [_method_of(curve)]
        ]
        facets.append(Facet(setting, named, pictures.line_panel("Training loss", series)))
    return facets


def _loss_panels(losses: Sequence[Curve], colours: dict[str, str]) -> list[pictures.Panel]:
    """A panel for each method and budget, whose losses are on scales of their own; α beside it where it is learned."""
    panels = []
    for name in dict.fromkeys(curve.name for curve in losses):
        method, _, budget = name.rpartition(", ")
        own = [curve for curve in losses if curve.name == name]
        colour = colours.get(display(method), "c0")
        heading = f"{display(method)}, {budget}"
        panels.append(_set_panel(heading, [(one, one.loss) for one in own], colour))
        if alphas := [(one, one.alpha) for one in own if one.alpha]:
            panels.append(_set_panel(f"{heading}: α, the student’s learning rate", alphas, colour))
    return panels


def _set_panel(heading: str, curves: Sequence[tuple[Curve, list[float]]], colour: str) -> pictures.Panel:
    series = [
        pictures.Series(colour, f"seed {one.seed}: ends at {values[-1]:.3g}", one.steps, values)
        for one, values in curves
    ]
    return pictures.line_panel(heading, series)


@dataclass(frozen=True)
class Bars:
    """The per-class accuracy of one setting's best methods."""

    heading: str
    legend: list[tuple[str, str]]
    chart: pictures.BarChart


def _bars(data: ReportData, colours: dict[str, str]) -> list[Bars]:
    charts = []
    rows = sorted((row for row in data.rows if row.per_class), key=lambda row: (row.whole, row.labels, group_of(row)))
    for _, members in groupby(rows, key=lambda row: (row.labels, group_of(row))):
        ranked = sorted(members, key=lambda row: (not row.is_random, -row.top1_mean))[:PER_CLASS_METHODS]
        series = [pictures.Series(colours[row_label(row)], row_label(row), (), row.per_class) for row in ranked]
        heading = heading_of(ranked[0], data.rows)
        if not ranked[0].whole:
            heading = f"{ranked[0].labels.capitalize()} labels · {heading}"
        charts.append(
            Bars(heading, [(one.colour, one.title) for one in series], pictures.bar_chart(data.classes, series))
        )
    return charts


@dataclass(frozen=True)
class ClassClips:
    class_name: str
    moving: list[tuple[str, str, str]]
    """(source, animated address, still address)"""


def _clips(pairs: Sequence[ClipPair]) -> tuple[list[ClassClips], int]:
    """The first real and the first distilled clip of each class, while the page stays small; how many are left out."""
    shown: list[ClassClips] = []
    spent = 0
    for pair in pairs[:PICTURED_CLASSES]:
        first = [("Real", clip) for clip in pair.real[:1]]
        first += [(display(name), clips[0]) for name, clips in pair.distilled.items() if clips]
        moving = [(source, *pictures.looping(clip)) for source, clip in first]
        spent += sum(len(animated) + len(still) for _, animated, still in moving)
        if shown and spent > PICTURE_BYTES:
            break
        shown.append(ClassClips(pair.class_name, moving))
    return shown, len(pairs) - len(shown)


def _saliency(shown: Sequence[Saliency]) -> list[tuple[Saliency, pictures.SaliencyPanel]]:
    """Each clip's once: a recipe that changes the clips of a set leaves the saliency that they were made by."""
    found: dict[str, Saliency] = {}
    for one in shown:
        found.setdefault(f"{one.class_name} {one.s_T}", one)
    return [(one, pictures.saliency_panel(one.s_T, one.epsilon, one.mask_T)) for one in found.values()]


def _motion(pairs: Sequence[ClipPair]) -> tuple[str, pictures.Motion] | None:
    """The first class's clips, each once, under the names of all that made it."""
    pair = next((pair for pair in pairs if pair.real and any(pair.distilled.values())), None)
    if pair is None or len(pair.real[0]) < 2:
        return None
    names: dict[bytes, list[str]] = {}
    clips = {"Real": pair.real[0]} | {display(name): clips[0] for name, clips in pair.distilled.items() if clips}
    for name, clip_THWC in clips.items():
        names.setdefault(clip_THWC.tobytes(), []).append(name)
    once = {"; ".join(same): clips[same[0]] for same in names.values()}
    return pair.class_name, pictures.motion_strips(once)


@dataclass(frozen=True)
class CropPictures:
    """An OptDistill set as addresses of pictures: three for each shown crop, one for each mosaic."""

    crops: CropSet
    shown: list[tuple[CropShown, list[tuple[str, str, str]]]]
    mosaics: list[tuple[str, str, str]]
    left_out: int


def _crops(sets: Sequence[CropSet]) -> list[CropPictures]:
    """Every mosaic, as far as the page stays small, and the crops that each set shows."""
    made, spent = [], 0
    for one in sets:
        shown = []
        for crop in one.shown:
            parts = [("first frame", crop.first_HWC[None]), ("track", crop.track_THWC), ("crop", crop.crop_THWC)]
            shown.append((crop, [(name, *pictures.looping(clip)) for name, clip in parts]))
        mosaics = []
        for class_name, mosaic in one.mosaics:
            if spent > CROP_BYTES:
                break
            mosaics.append((class_name, *pictures.looping(mosaic)))
            spent += len(mosaics[-1][1]) + len(mosaics[-1][2])
        made.append(CropPictures(one, shown, mosaics, len(one.mosaics) - len(mosaics)))
    return made


def _by_kind(lineage: Sequence[LineageEntry]) -> dict[str, list[LineageEntry]]:
    kinds: dict[str, list[LineageEntry]] = {}
    for entry in lineage:
        kinds.setdefault(entry.kind, []).append(entry)
    return kinds
