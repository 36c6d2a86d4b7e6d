"""The report's tables and its paragraph in words: rows of different label kinds never meet in one of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from vidistill.tasks.report.data import KINDS, TRAINING_CLIPS, FailedRow, Named, ReportData, Row
from vidistill.tasks.report.statistics import LEAST_SEEDS, paired

NO_BREAK = "\N{NO-BREAK SPACE}"

# Tables


COLUMNS = ("Method", "Top-1 %", "vs Random", "Top-5 %", "AUC", "F1 %", "Stored", "Time", "Peak memory", "FLOPs",
           "Training", "Seeds", "Artifact")  # fmt: skip
_NAMES = {
    "full": "Full data", "random": "Random", "herding": "Herding", "k_center": "k-Center", "tsgf": "TSGF", "dc": "DC",
    "static_dc": "Static-DC", "dm": "DM", "mtt": "MTT", "frepo": "FRePo", "dm_vdsd": "DM+VDSD", "mtt_vdsd": "MTT+VDSD",
    "frepo_vdsd": "FRePo+VDSD", "idtd": "IDTD", "sfvd": "SFVD", "sfvd_t": "SFVD-T", "optdistill": "OptDistill",
    "pool_random": "Pool, random", "mae_score": "MAE score", "csta": "CSTA",
    "dm_mmd": "DM-MMD", "vst_unet": "VST-UNet", "tac_dt": "TAC-DT", "coded": "Coded",
    "teacher": "Teacher", "expert": "Experts",
}  # fmt: skip


@dataclass(frozen=True)
class TableLine:
    cells: list[str]
    best: bool
    random: bool
    artifact: str


@dataclass(frozen=True)
class TableGroup:
    """Rows that compete; `chance`, the accuracy of guessing, stands below them."""

    heading: str
    lines: list[TableLine]
    random_present: bool
    marks: list[str]
    chance: list[str]


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


def tables(rows: Sequence[Row], classes: int = 0) -> list[Table]:
    """One table a label kind, so that kinds are never ranked together, and the rows that keep all clips apart.

    Within a table, rows compete only where data, protocol, recipe, student and budget are the same. Bold is the highest
    mean where its paired difference from every other row whose students were trained alike is settled. `classes` is how
    many there are to guess from.
    """
    shown = [
        Table(
            f"{kind.capitalize()} labels",
            _EXPLANATIONS[kind],
            _groups([row for row in budgeted if row.labels == kind], rows, classes),
        )
        for kind in KINDS
        if (budgeted := [row for row in rows if not row.whole]) and any(row.labels == kind for row in budgeted)
    ]
    if whole := [row for row in rows if row.whole]:
        shown.append(
            Table("All clips", "What the budget gives up; not ranked with the rest.", _groups(whole, rows, classes))
        )
    return shown


def group_of(row: Row) -> tuple[str, ...]:
    budget = "" if row.whole else f"{row.ipc or 0:09d} {row.kb or 0:012.3f}"
    return (row.dataset, row.split, row.protocol, row.student, budget, row.recipe, row.labels)


def _groups(rows: Iterable[Row], every: Sequence[Row], classes: int) -> list[TableGroup]:
    groups = []
    for _, members in groupby(sorted(rows, key=lambda row: (group_of(row), -row.top1_mean)), key=group_of):
        competing = list(members)
        groups.append(_group(competing, heading_of(competing[0], every), classes))
    return groups


def _group(rows: list[Row], heading: str, classes: int) -> TableGroup:
    lines = [TableLine(_cells(row), _won(row, rows), row.is_random, row.artifact) for row in rows]
    marks = [f"† {row_label(row)}: {row.mark}." for row in rows if row.mark]
    chance = ["Chance", percent(1 / classes), *[""] * (len(COLUMNS) - 2)] if classes else []
    return TableGroup(heading, lines, rows[0].whole or any(line.random for line in lines), marks, chance)


def _won(row: Row, rows: Sequence[Row]) -> bool:
    """Whether it is ahead of all whose students were trained alike, settled against each."""
    others = [one for one in rows if one is not row and one.training == row.training]
    found = [paired(row.top1, one.top1) for one in others]  # over the seeds that both have, which need not be all
    ahead = all(row.top1_mean > one.top1_mean for one in others) and all(one.settled and one.mean > 0 for one in found)
    return not row.whole and bool(others) and ahead


def heading_of(row: Row, every: Sequence[Row]) -> str:
    """Student, budget, then whatever differs between the rows of this report but their labels, which stand above."""
    budget = f"{row.labels} labels" if row.whole else f"{budget_of(row)} per class"
    varying = [str(getattr(row, name)) for name in ("dataset", "split", "protocol", "recipe")
               if len({getattr(one, name) for one in every}) > 1 and getattr(row, name) != row.labels]  # fmt: skip
    return " · ".join([row.student, budget, *varying])


def budget_of(row: Named) -> str:
    if row.kb is not None:
        return f"{row.kb:g} kB"
    return "all" if row.ipc is None else str(row.ipc)


def _cells(row: Row) -> list[str]:
    name = row_label(row) + (" †" if row.mark else "")
    return [
        name, spread(row), difference(row), percent(row.top5_mean), f"{row.auc_mean:.3f}",
        percent(row.f1_mean), _stored(row), duration(row.seconds) if row.seconds else "–",
        size(row.peak_memory_bytes) if row.peak_memory_bytes else "–", flops(row.flops),
        duration(row.student_seconds) if row.student_seconds else "–", str(row.seeds), row.artifact[:10],
    ]  # fmt: skip


def _stored(row: Row) -> str:
    coded = row.bytes_coded
    return size(row.bytes) if coded in (None, row.bytes) else f"{size(row.bytes)}, coded {size(coded or 0)}"


def failed_cells(row: FailedRow) -> list[str]:
    """Method, budget, recipe, student and error of a row that was not made."""
    budget = "all clips" if row.whole else f"{budget_of(row)} per class"
    return [row_label(row), budget, row.recipe, row.student, row.error]


def row_label(row: Named) -> str:
    plain = row.variant in {"", "default", row.method}
    return display((row.method if plain else f"{row.method}/{row.variant}") + row.told)


def display(name: str) -> str:
    """`tsgf/no mask` or `tsgf no mask` → `TSGF · no mask`; `tsgf, soft` → `TSGF · soft`; `tsgf, by c3d` as it is."""
    name, *told = re.split(r"(?=, (?:labelled )?by )", name, maxsplit=1)
    method, *variant = re.split(r"[/,\s]+", name, maxsplit=1)
    return " · ".join([_NAMES.get(method, method), *variant]) + "".join(told)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def spread(row: Row) -> str:
    return percent(row.top1_mean) if row.seeds < 2 else f"{percent(row.top1_mean)} ± {percent(row.top1_std)}"


def difference(row: Row) -> str:
    if row.difference_mean is None:
        return "–"
    half = "" if row.difference_interval is None else f" ± {percent(row.difference_interval)}"
    return f"{100 * row.difference_mean:+.1f}{half}".replace("-", "−")


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


def summary(data: ReportData) -> list[str]:
    """The result in words, from the rows alone: what is counted; all clips and chance; the best of each kind of labels
    and budget against its Random.
    """
    if not data.rows:
        return ["No method was scored."]
    first = data.rows[0]
    same = [row for row in data.rows if (row.dataset, row.split, row.protocol, row.student)
            == (first.dataset, first.split, first.protocol, first.student)]  # fmt: skip
    kinds = ([row for row in same if row.labels == kind and not row.whole] for kind in KINDS)
    best = [sentence for rows in kinds for sentence in _kind_sentences(rows, data)]
    full = [f"{row_label(row)} reaches {_spread_percent(row)}." for row in same if row.whole]
    scored = "a held-out fifth of the training split" if first.split == "validation" else "the test split"
    opening = (
        f"Top-1 accuracy on {scored} of {first.dataset} with the student {first.student}, "
        "± the standard deviation over seeds; "
        "in brackets the paired difference from Random under the same recipe, ± half of its 95 % t interval."
    )
    few = f" Fewer than {LEAST_SEEDS} seeds settle nothing." if all(row.seeds < LEAST_SEEDS for row in same) else ""
    whole = " ".join([*full, *_guessing(data)])
    return [opening + few, *([whole] if whole else []), *best]


def _guessing(data: ReportData) -> list[str]:
    """What needs no clip: to guess, or to say the largest class of the test split each time."""
    if not data.classes:
        return []
    chance, largest = percent(1 / len(data.classes)), percent(data.largest)
    more = f", the name of the largest class alone {largest}{NO_BREAK}%" if float(largest) > float(chance) else ""
    return [f"Guessing reaches {chance}{NO_BREAK}%{more}."]


def _kind_sentences(rows: list[Row], data: ReportData) -> list[str]:
    budgets = sorted({(row.ipc or 0, row.kb or 0) for row in rows})
    clauses = [_budget_clause([row for row in rows if (row.ipc or 0, row.kb or 0) == one], data) for one in budgets]
    return [f"With {rows[0].labels} labels, {clause}." for clause in clauses if clause]


def _budget_clause(rows: list[Row], data: ReportData) -> str:
    methods = [row for row in rows if not row.is_random]
    if not methods:
        return ""
    best = max(methods, key=lambda row: row.top1_mean)
    praise = f", the best of {len(methods)}," if len(methods) > 1 else ""
    text = (
        f"{row_label(best)}{praise} reaches {_spread_percent(best)} at {budget_of(best)} per class{_share(best, data)}"
    )
    rival = next((row for row in rows if row.is_random and row.setting == best.setting), None)
    return text if rival is None else f"{text}, against {_spread_percent(rival)} for Random{_verdict(best)}"


def _spread_percent(row: Row) -> str:
    return f"{spread(row)} %".replace(" ", NO_BREAK)


def _share(row: Row, data: ReportData) -> str:
    total = data.dataset_summary.get(TRAINING_CLIPS)
    if not isinstance(total, int) or row.ipc is None or not data.classes:
        return ""
    ratio = total / (row.ipc * len(data.classes))
    share = f"1/{ratio:.0f}" if ratio >= 2 else f"{100 / ratio:.0f} %"
    return f", {share} of the number of training clips"


def _verdict(row: Row) -> str:
    if row.difference_mean is None:
        return ""
    doubt = "" if row.settled else f", not settled by {row.seeds} {'seed' if row.seeds == 1 else 'seeds'}"
    return f" ({difference(row).replace(' ', NO_BREAK)}{doubt})"


def markdown_text(text: str) -> str:
    """Text that markdown shows as it is."""
    return re.sub(r"([|*<>`\[\]\\]|(?<!\w)_|_(?!\w))", r"\\\1", text)  # within a word _ is what it is
