"""The report: results in, one self-contained HTML page, its JSON, and a markdown table out. It reads no artifact.

Legend: T frames, H height, W width, C colours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.parameters import Parameters
from vidistill.tasks import pictures

LabelKind = Literal["hard", "soft", "online"]

TRAINING_CLIPS = "training clips"
"""The key of `ReportData.dataset_summary` from which the summary takes the share of the clips that was kept."""

NO_BREAK = "\N{NO-BREAK SPACE}"
PICTURE_BYTES = 11_000_000
PICTURED_CLASSES = 10
PER_CLASS_METHODS = 6


class Row(Parameters):
    """One method at one budget on one student: shares in [0, 1], means and deviations over seeds.

    Attributes:
        ipc: distilled clips a class; None for all of them, as `full` has.
        bytes: stored size of the set, with its soft labels or, for online ones, the teacher's weights.
        seconds: time to make the set. peak_memory_bytes: of the stage's own process.
        flops: of the student's whole training.
        artifact: the key of the distilled set.
        per_class: mean accuracy of each class. top1: one value a seed.
        difference_mean: paired over seeds against Random of the same recipe, ipc and student.
        difference_error: the standard error of that difference.
    """

    dataset: str
    split: str
    protocol: str
    recipe: str
    method: str
    variant: str
    ipc: int | None
    student: str
    labels: LabelKind
    top1_mean: float
    top1_std: float
    top5_mean: float
    auc_mean: float
    f1_mean: float
    bytes: int
    seconds: float
    peak_memory_bytes: int
    flops: int
    seeds: int
    artifact: str
    per_class: list[float]
    top1: list[float]
    difference_mean: float | None = None
    difference_error: float | None = None


class Curve(Parameters):
    """One student's training; a name such as `tsgf soft ipc 1 minic3d_bn` is method, variant, then setting."""

    name: str
    seed: int
    steps: list[int]
    loss: list[float]
    accuracy: list[float] | None


class LineageEntry(Parameters):
    """One artifact that this report rests on; `inputs` names the keys of others."""

    kind: str
    key: str
    parameters: dict[str, Any]
    inputs: dict[str, list[str]]
    seconds: float
    bytes: int
    created: str


@dataclass
class Saliency:
    """TSGF's frame saliency s, its threshold ε and the gradient mask M of one clip."""

    method: str
    class_name: str
    s_T: list[float]
    epsilon: float
    mask_T: list[float]


@dataclass
class ClipPair:
    """Real and distilled clips of one class, each uint8 (T, H, W, 3); `distilled` by method or `method/variant`."""

    class_name: str
    real: list[NDArray[np.uint8]]
    distilled: dict[str, list[NDArray[np.uint8]]]


@dataclass
class ReportData:
    """All that a report shows."""

    title: str
    created: str
    dataset_summary: dict[str, str | int]
    classes: list[str]
    rows: list[Row]
    curves: list[Curve] = field(default_factory=list)
    pairs: list[ClipPair] = field(default_factory=list)
    saliency: list[Saliency] = field(default_factory=list)
    lineage: list[LineageEntry] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
    environment.filters |= {"size": size, "duration": duration, "percent": percent}
    colours = _colours(data)
    clips, left_out = _clips(data.pairs)
    return environment.get_template("report.html.jinja").render(
        data=data,
        summary=summary(data),
        tables=tables(data.rows),
        facets=_facets(data.curves, colours),
        bars=_bars(data, colours),
        clips=clips,
        left_out=left_out,
        motion=_motion(data.pairs),
        saliency=[(one, pictures.saliency_panel(one.s_T, one.epsilon, one.mask_T)) for one in data.saliency],
        lineage=_by_kind(data.lineage),
        keys={entry.key for entry in data.lineage},
        columns=COLUMNS,
        vdsd=any(row.protocol == "vdsd" for row in data.rows),
    )


def render_json(data: ReportData) -> dict[str, Any]:
    """What scripts read: `rows`, `rejected`, and all else but the clips; a number that is not finite is null."""
    document: dict[str, Any] = {
        "title": data.title,
        "created": data.created,
        "dataset": data.dataset_summary,
        "classes": data.classes,
        "rows": [row.model_dump(mode="json") for row in data.rows],
        "rejected": data.rejected,
        "curves": [curve.model_dump(mode="json") for curve in data.curves],
        "saliency": [asdict(one) for one in data.saliency],
        "lineage": [entry.model_dump(mode="json") for entry in data.lineage],
        "notes": data.notes,
    }
    finite: dict[str, Any] = _finite(document)
    return finite


def render_markdown(data: ReportData) -> str:
    """The summary and the tables as GitHub-flavoured markdown."""
    blocks = [summary(data)]
    for table in tables(data.rows):
        blocks.append(f"## {table.title}")
        for group in table.groups:
            lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 2) + "---|"]
            lines += ["| " + " | ".join(_markdown_cells(line)) + " |" for line in group.lines]
            blocks += [f"**{_markdown_text(group.heading)}**", "\n".join(lines)]
            blocks += [] if group.random_present else ["Random was not run under this recipe."]
    return "\n\n".join(blocks) + "\n"


def _markdown_cells(line: TableLine) -> list[str]:
    first, top1, *others = (_markdown_text(cell) for cell in line.cells)
    return [f"**{first}**", f"**{top1}**", *others] if line.best else [first, top1, *others]


def _markdown_text(text: str) -> str:
    return re.sub(r"([|*_<>`\[\]\\])", r"\\\1", text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Tables


COLUMNS = ("Method", "Top-1 %", "vs Random", "Top-5 %", "AUC", "F1 %", "Stored", "Time", "Peak memory", "FLOPs",
           "Seeds", "Artifact")  # fmt: skip
_NAMES = {
    "full": "Full data", "random": "Random", "herding": "Herding", "k_center": "k-Center", "tsgf": "TSGF", "dc": "DC",
    "static_dc": "Static-DC", "dm": "DM", "mtt": "MTT", "frepo": "FRePo", "dm_vdsd": "DM+VDSD", "mtt_vdsd": "MTT+VDSD",
    "frepo_vdsd": "FRePo+VDSD", "idtd": "IDTD", "sfvd": "SFVD", "sfvd_t": "SFVD-T", "optdistill": "OptDistill",
    "full_pool": "Full pool", "pool_random": "Pool, random", "mae_score": "MAE score", "csta": "CSTA",
    "dm_mmd": "DM-MMD", "vst_unet": "VST-UNet", "tac_dt": "TAC-DT",
}  # fmt: skip


@dataclass(frozen=True)
class TableLine:
    cells: list[str]
    best: bool
    random: bool
    artifact: str


@dataclass(frozen=True)
class TableGroup:
    heading: str
    lines: list[TableLine]
    random_present: bool


@dataclass(frozen=True)
class Table:
    title: str
    explanation: str
    groups: list[TableGroup]


_EXPLANATIONS = {
    "hard": "One class index a clip.",
    "soft": "The teacher's probabilities, stored with the set and counted in its size.",
    "online": "The teacher is asked at every augmented view; its weights are counted in the size.",
}


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table a label kind, so that kinds are never ranked together, and the rows that keep all clips apart.

    Within a table, rows compete only where data, protocol, recipe, student and budget are the same.
    """
    shown = [
        Table(
            f"{kind.capitalize()} labels",
            _EXPLANATIONS[kind],
            _groups([row for row in budgeted if row.labels == kind], rows),
        )
        for kind in ("hard", "soft", "online")
        if (budgeted := [row for row in rows if row.ipc is not None]) and any(row.labels == kind for row in budgeted)
    ]
    if whole := [row for row in rows if row.ipc is None]:
        shown.append(Table("All clips", "What the budget gives up; not ranked with the rest.", _groups(whole, rows)))
    return shown


def _setting(row: Row) -> tuple[str, ...]:
    budget = "" if row.ipc is None else f"{row.ipc:09d}"
    return (row.dataset, row.split, row.protocol, row.student, budget, row.recipe, row.labels)


def _groups(rows: Iterable[Row], every: Sequence[Row]) -> list[TableGroup]:
    groups = []
    for _, members in groupby(sorted(rows, key=lambda row: (_setting(row), -row.top1_mean)), key=_setting):
        competing = list(members)
        groups.append(_group(competing, _heading(competing[0], every)))
    return groups


def _group(rows: list[Row], heading: str) -> TableGroup:
    whole = rows[0].ipc is None
    best = percent(max(row.top1_mean for row in rows))
    ranked = len(rows) > 1 and not whole
    lines = [
        TableLine(_cells(row), ranked and percent(row.top1_mean) == best, row.method == "random", row.artifact)
        for row in rows
    ]
    return TableGroup(heading, lines, whole or any(line.random for line in lines))


def _heading(row: Row, every: Sequence[Row]) -> str:
    """Student, budget and labels, then whatever else differs between the rows of this report."""
    budget = f"{row.labels} labels" if row.ipc is None else f"{row.ipc} per class"
    varying = [str(getattr(row, name)) for name in ("dataset", "split", "protocol", "recipe")
               if len({getattr(one, name) for one in every}) > 1]  # fmt: skip
    return " · ".join([row.student, budget, *varying])


def _cells(row: Row) -> list[str]:
    return [
        _label(row), spread(row), difference(row), percent(row.top5_mean), f"{row.auc_mean:.3f}", percent(row.f1_mean),
        size(row.bytes), duration(row.seconds), size(row.peak_memory_bytes), flops(row.flops), str(row.seeds),
        row.artifact[:10],
    ]  # fmt: skip


def _label(row: Row) -> str:
    return _display(row.method if row.variant in {"", "default", row.method} else f"{row.method}/{row.variant}")


def _display(name: str) -> str:
    """`tsgf/no mask` or `tsgf no mask` → `TSGF · no mask`."""
    method, *variant = re.split(r"[/\s]+", name, maxsplit=1)
    return " · ".join([_NAMES.get(method, method), *variant])


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def spread(row: Row) -> str:
    return percent(row.top1_mean) if row.seeds < 2 else f"{percent(row.top1_mean)} ± {percent(row.top1_std)}"


def difference(row: Row) -> str:
    if row.difference_mean is None:
        return "–"
    error = "" if row.difference_error is None else f" ± {percent(row.difference_error)}"
    return f"{100 * row.difference_mean:+.1f}{error}".replace("-", "−")


def _scaled(value: float, unit: str, prefixes: str) -> str:
    power = max(0, min(len(prefixes) - 1, int(math.log10(max(value, 1)) / 3 + 1e-9)))
    shown = value / 1000**power
    return (
        f"{shown:.0f} {prefixes[power].strip()}{unit}"
        if power == 0 or shown >= 100
        else f"{shown:.1f} {prefixes[power]}{unit}"
    )


def size(count: float) -> str:
    """Decimal units: 602112 → `602 kB`."""
    return _scaled(count, "B", " kMGTP")


def flops(count: float) -> str:
    return _scaled(count, "FLOP", " kMGTPE")


def duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


# Summary


def summary(data: ReportData) -> str:
    """The result in words, from the rows alone: the best method of each label kind and budget against its Random."""
    if not data.rows:
        return "No method was scored."
    first = data.rows[0]
    same = [row for row in data.rows if (row.dataset, row.split, row.protocol, row.student)
            == (first.dataset, first.split, first.protocol, first.student)]  # fmt: skip
    kinds = ([row for row in same if row.labels == kind and row.ipc is not None] for kind in ("soft", "hard", "online"))
    sentences = [_kind_sentence(rows, data) for rows in kinds if any(row.method != "random" for row in rows)]
    full = [f"{_label(row)} reaches {_spread_percent(row)}." for row in same if row.ipc is None]
    opening = (
        f"Top-1 accuracy on the test split of {first.dataset} with the student {first.student}, "
        "± the standard deviation over seeds; "
        "in brackets the paired difference from Random under the same recipe, ± its standard error."
    )
    return " ".join([opening, *sentences, *full])


def _kind_sentence(rows: list[Row], data: ReportData) -> str:
    budgets = sorted({row.ipc for row in rows if row.ipc is not None})
    clauses = [_budget_clause([row for row in rows if row.ipc == ipc], data) for ipc in budgets]
    return f"With {rows[0].labels} labels, " + "; ".join(clause for clause in clauses if clause) + "."


def _budget_clause(rows: list[Row], data: ReportData) -> str:
    methods = [row for row in rows if row.method != "random"]
    if not methods:
        return ""
    best = max(methods, key=lambda row: row.top1_mean)
    praise = f", the best of {len(methods)}," if len(methods) > 1 else ""
    text = f"{_label(best)}{praise} reaches {_spread_percent(best)} at {best.ipc} per class{_share(best, data)}"
    rival = next((row for row in rows if row.method == "random" and row.recipe == best.recipe), None)
    return text if rival is None else f"{text}, against {_spread_percent(rival)} for Random{_verdict(best)}"


def _spread_percent(row: Row) -> str:
    return f"{spread(row)} %".replace(" ", NO_BREAK)


def _share(row: Row, data: ReportData) -> str:
    total = data.dataset_summary.get(TRAINING_CLIPS)
    if not isinstance(total, int) or row.ipc is None or not data.classes:
        return ""
    ratio = total / (row.ipc * len(data.classes))
    return f", 1/{ratio:.0f} of the clips" if ratio >= 2 else f", {100 / ratio:.0f} % of the clips"


def _verdict(row: Row) -> str:
    if row.difference_mean is None or row.difference_error is None:
        return ""
    settled = abs(row.difference_mean) >= 2 * row.difference_error
    doubt = "" if settled else f": within two standard errors, so {row.seeds} seeds do not settle it"
    return f" ({difference(row).replace(' ', NO_BREAK)}{doubt})"


# Figures


@dataclass(frozen=True)
class Facet:
    """The learning curves of one setting."""

    setting: str
    legend: list[tuple[str, str]]
    panels: list[pictures.Panel]


def _curve_name(name: str) -> tuple[str, str]:
    """`tsgf soft ipc 1 minic3d_bn` → (`TSGF`, `soft ipc 1 minic3d_bn`)."""
    found = re.match(r"(.+?)\s+((?:hard|soft|online)\b.*)", name)
    method, setting = found.groups() if found else (name, "")
    return _display(method), setting


def _colours(data: ReportData) -> dict[str, str]:
    """A colour class for each method, in order of appearance; Random and Full data have their own."""
    names = [*map(_label, data.rows), *(_curve_name(curve.name)[0] for curve in data.curves)]
    own = {"Random": "random", "Full data": "full"}
    others = dict.fromkeys(name for name in names if name not in own)
    return own | {name: f"c{index % 8}" for index, name in enumerate(others)}


def _facets(curves: Sequence[Curve], colours: dict[str, str]) -> list[Facet]:
    facets = []
    settings = dict.fromkeys(_curve_name(curve.name)[1] for curve in curves)
    for setting in settings:
        members = [curve for curve in curves if _curve_name(curve.name)[1] == setting and curve.steps]
        named = [(colours[name], name) for name in dict.fromkeys(_curve_name(curve.name)[0] for curve in members)]
        panels = [_curve_panel("Training loss", [(curve, curve.loss) for curve in members], colours)]
        if scored := [(curve, curve.accuracy) for curve in members if curve.accuracy is not None]:
            panels.append(_curve_panel("Accuracy", scored, colours, 1.0))
        facets.append(Facet(setting, named, panels))
    return facets


def _curve_panel(
    label: str, curves: Sequence[tuple[Curve, list[float]]], colours: dict[str, str], high: float | None = None
) -> pictures.Panel:
    series = [
        pictures.Series(colours[name], f"{name}, seed {curve.seed}: ends at {values[-1]:.3g}", curve.steps, values)
        for curve, values in curves
        for name in [_curve_name(curve.name)[0]]
    ]
    return pictures.line_panel(label, series, high)


@dataclass(frozen=True)
class Bars:
    """The per-class accuracy of one setting's best methods."""

    heading: str
    legend: list[tuple[str, str]]
    chart: pictures.BarChart


def _bars(data: ReportData, colours: dict[str, str]) -> list[Bars]:
    charts = []
    rows = sorted(
        (row for row in data.rows if row.per_class), key=lambda row: (row.ipc is None, row.labels, _setting(row))
    )
    for _, members in groupby(rows, key=lambda row: (row.labels, _setting(row))):
        ranked = sorted(members, key=lambda row: (row.method != "random", -row.top1_mean))[:PER_CLASS_METHODS]
        series = [pictures.Series(colours[_label(row)], _label(row), (), row.per_class) for row in ranked]
        heading = _heading(ranked[0], data.rows)
        if ranked[0].ipc is not None:
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
        first += [(_display(name), clips[0]) for name, clips in pair.distilled.items() if clips]
        moving = [(source, pictures.moving(clip), pictures.data_uri(clip[:1])) for source, clip in first]
        spent += sum(len(animated) + len(still) for _, animated, still in moving)
        if spent > PICTURE_BYTES:
            break
        shown.append(ClassClips(pair.class_name, moving))
    return shown, len(pairs) - len(shown)


def _motion(pairs: Sequence[ClipPair]) -> tuple[str, pictures.Motion] | None:
    pair = next((pair for pair in pairs if pair.real and any(pair.distilled.values())), None)
    if pair is None:
        return None
    clips = {"Real": pair.real[0]} | {_display(name): clips[0] for name, clips in pair.distilled.items() if clips}
    return pair.class_name, pictures.motion_strips(clips)


def _by_kind(lineage: Sequence[LineageEntry]) -> dict[str, list[LineageEntry]]:
    kinds: dict[str, list[LineageEntry]] = {}
    for entry in lineage:
        kinds.setdefault(entry.kind, []).append(entry)
    return kinds
