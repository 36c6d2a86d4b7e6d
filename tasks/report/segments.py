"""The report of temporal action segmentation: a table of sets of sequences for each kind of labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.report.statistics import deviation, paired
from vidistill.tasks.report.tables import duration, size
from vidistill.tasks.segment.metrics import OVERLAPS
from vidistill.tasks.segment.score import SCORE, SegmentScoreTable
from vidistill.tasks.segment.sequences import Sequences
from vidistill.tasks.stage import Job, Work, stage

JSON, MARKDOWN = "segment.json", "segment.md"
METRICS = ("accuracy", "edit", *(f"f1_{100 * overlap:.0f}" for overlap in OVERLAPS))
SHOWN = dict(zip(METRICS, ("acc %", "edit", *(f"F1@{100 * overlap:.0f}" for overlap in OVERLAPS)), strict=True))
COMPARED = METRICS[-1]
"""What the table compares with Random's; the JSON compares all."""
SEQUENCES = "sequences"


class SegmentRowPlan(Parameters):
    """A row: its sets, of which all seeds may have one, and its scores, one a seed."""

    method: str
    points: int | None
    labels: str
    sets: tuple[ArtifactRef, ...]
    scores: tuple[ArtifactRef, ...]


class SegmentReportParameters(Parameters):
    dataset: str
    split: int
    rows: tuple[SegmentRowPlan, ...]
    request: dict[str, Any]


def segment_report_job(parameters: SegmentReportParameters, sequences: ArtifactRef) -> Job:
    refs = {
        name: sorted({ref for row in parameters.rows for ref in getattr(row, name)}, key=str)
        for name in ("sets", "scores")
    }
    return segment_report(parameters, {SEQUENCES: [sequences]} | refs, label="report of segments")


@stage("segment-report", version=3)  # 3: one seed has no deviation
def segment_report(work: Work) -> None:
    parameters = SegmentReportParameters.model_validate(work.job.parameters)
    document = {
        "title": f"Temporal action segmentation on {parameters.dataset}, split {parameters.split}",
        "data": _facts(work),
        "rows": with_differences([_row(work.store, parameters, plan) for plan in parameters.rows]),
        "request": parameters.request,
    }
    (work.folder / JSON).write_text(json.dumps(document, indent=1), encoding="utf-8")
    (work.folder / MARKDOWN).write_text(markdown(document), encoding="utf-8")
    work.record(counts={"rows": len(parameters.rows)})


def _facts(work: Work) -> dict[str, Any]:
    sequences = Sequences(work.store, work.ref(SEQUENCES))
    cut = work.store.manifest(work.ref(SEQUENCES)).record["cut"]
    frames = sum(len(sequences.all_labels(row)) for row in range(len(sequences.placement.videos)))
    facts = {
        "classes": len(sequences.classes), "training videos": len(sequences.rows("train")),
        "test videos": len(sequences.rows("test")), "frames": frames, "features a frame": sequences.dimensions,
    }  # fmt: skip
    sampled = {"frames to one that is used": sequences.sample_rate} if sequences.sample_rate > 1 else {}
    return facts | sampled | ({"frames cut, without features or without a label": sum(cut.values())} if cut else {})


def _row(store: Store, parameters: SegmentReportParameters, plan: SegmentRowPlan) -> dict[str, Any]:
    scores = [SegmentScoreTable.model_validate_json((store.folder(ref) / SCORE).read_bytes()) for ref in plan.scores]
    by_seed = {name: [_metrics(score)[name] for score in scores] for name in METRICS}
    made = [_made(store, ref) for ref in plan.sets]
    return {
        "dataset": parameters.dataset, "split": parameters.split, "method": plan.method, "points": plan.points,
        "labels": plan.labels, "seeds": len(scores), "bytes": round(float(np.mean([score.bytes for score in scores]))),
        **{f"{name}_mean": float(np.mean(values)) for name, values in by_seed.items()},
        **{f"{name}_std": deviation(values) for name, values in by_seed.items()},
        "by_seed": by_seed,
        "seconds": float(np.mean([seconds for seconds, _ in made])) if made else 0.0,
        "peak_memory_bytes": max((peak for _, peak in made), default=0),
        "sets": list(map(str, plan.sets)), "scores": list(map(str, plan.scores)),
    }  # fmt: skip


def _metrics(score: SegmentScoreTable) -> dict[str, float]:
    return dict(zip(METRICS, (score.accuracy, score.edit, *score.f1), strict=True))


def _made(store: Store, ref: ArtifactRef) -> tuple[float, int]:
    """Seconds and peak memory of a set with its labels, the teacher's not included."""
    manifest = store.manifest(ref)
    before = [_made(store, one) for one in manifest.inputs.get("set", [])]
    seconds = manifest.seconds + sum(seconds for seconds, _ in before)
    return seconds, max([manifest.peak_memory_bytes, *(peak for _, peak in before)])


def with_differences(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with its differences to Random of the same points and labels, seed by seed, with 95 % t intervals."""
    random = {(row["points"], row["labels"]): row for row in rows if row["method"] == "random"}
    found = []
    for row in rows:
        beside = random.get((row["points"], row["labels"]))
        of = {} if beside in (None, row) else beside["by_seed"]
        differences = {name: paired(row["by_seed"][name], values) for name, values in of.items()}
        said = {name: {"mean": one.mean, "interval": one.interval} for name, one in differences.items()}
        found.append(row | {"differences": said})
    return found


def markdown(document: dict[str, Any]) -> str:
    """The title, the data, and a table for each kind of labels."""
    lines = [f"# {document['title']}", "", ", ".join(f"{value} {name}" for name, value in document["data"].items()), ""]
    for labels in dict.fromkeys(row["labels"] for row in document["rows"]):
        own = [row for row in document["rows"] if row["labels"] == labels]
        lines += [f"## {labels.capitalize()} labels", "", *_table(own), ""]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    head = ("method", "points", *SHOWN.values(), f"{SHOWN[COMPARED]} − Random (95 %)", "bytes", "time", "seeds")
    cells = [head, *map(_cells, in_order(rows))]
    made = [f"| {' | '.join(line)} |" for line in cells]
    return [made[0], "|---" * len(head) + "|", *made[1:]]


def in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By points, all frames last, and the best first."""
    return sorted(rows, key=lambda row: (row["points"] is None, row["points"] or 0, -row[f"{COMPARED}_mean"]))


def difference(row: dict[str, Any]) -> str:
    """From Random, in points, with its interval; nothing of Random itself."""
    found = row["differences"].get(COMPARED)
    half = "" if found is None or found["interval"] is None else f" ± {100 * found['interval']:.1f}"
    return "" if found is None else f"{100 * found['mean']:+.1f}{half}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    spreads = {name: f" ± {100 * row[f'{name}_std']:.1f}" if row["seeds"] > 1 else "" for name in METRICS}
    metrics = (f"{100 * row[f'{name}_mean']:.1f}{spread}" for name, spread in spreads.items())
    points = "all" if row["points"] is None else str(row["points"])
    time = duration(row["seconds"]) if row["sets"] else "–"
    return (row["method"], points, *metrics, difference(row), size(row["bytes"]), time, str(row["seeds"]))
