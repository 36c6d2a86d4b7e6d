"""Report: scores, sets and lineage of an experiment, gathered from its artifacts into one page and one JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from vidistill.models import parted
from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet, curve_of
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef, Manifest, Store
from vidistill.tasks.learning.evaluate import Score, load_confusion, load_score
from vidistill.tasks.learning.trial import trials_of
from vidistill.tasks.report.bytes import coded_bytes, searches
from vidistill.tasks.report.confusion import confusions
from vidistill.tasks.report.crops import crop_sets, row_mark
from vidistill.tasks.report.data import (
    TRAINING_CLIPS,
    ClipPair,
    Curve,
    FailedRow,
    LineageEntry,
    Named,
    ReportData,
    Row,
    RowPlan,
    Saliency,
)
from vidistill.tasks.report.naming import named_sets, told_apart
from vidistill.tasks.report.page import render_html, render_json, render_markdown
from vidistill.tasks.report.pool import pools_shown
from vidistill.tasks.report.statistics import LEAST_SEEDS, collapsed_to, deviation, paired
from vidistill.tasks.report.tables import duration
from vidistill.tasks.stage import Job, Work, stage
from vidistill.tasks.videos.index import IndexTable, load_index

HTML, JSON, MARKDOWN = "report.html", "report.json", "report.md"
SHOWN_CLASSES = 10
BLOCKS = {"block", "tracks", "crops", "pool-part", "pool-part-resized"}  # too many to list in the lineage


class ReportParameters(Parameters):
    title: str
    dataset: str
    split: str
    rows: tuple[RowPlan, ...]
    failed: tuple[FailedRow, ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""
    experiment: dict[str, Any] = Field(default_factory=dict)


def report_job(parameters: ReportParameters, inputs: Mapping[str, Any]) -> Job:
    """The job of the page.

    Args:
        parameters: what it says.
        inputs: `index` (that with every file, and that which the clips were made by where it is another), `train`,
            `test`, `teacher`, `pool_quality` of the pools that rows were chosen from, and `front` where it was decided;
            scores and sets are those that the rows name.
    """
    named = {name: sorted({ref for row in parameters.rows for ref in getattr(row, name)}, key=str)
             for name in ("scores", "sets")}  # fmt: skip
    return report(parameters, {**inputs, **named}, label="report")


@stage("report", version=23)  # 23: learned sets behind Random say so wherever they began
def report(work: Work) -> None:
    asked = ReportParameters.model_validate(work.job.parameters)
    rows, failed = told_apart(asked.rows), told_apart(asked.failed, beside=asked.rows)
    parameters = asked.model_copy(update={"rows": tuple(rows), "failed": tuple(failed)})
    data = gather(work, parameters)
    (work.folder / HTML).write_text(render_html(data), encoding="utf-8")
    (work.folder / JSON).write_text(json.dumps(render_json(data), indent=1), encoding="utf-8")
    (work.folder / MARKDOWN).write_text(render_markdown(data), encoding="utf-8")
    work.record(counts={"rows": len(data.rows), "failed": len(data.failed)})


def gather(work: Work, parameters: ReportParameters) -> ReportData:
    """Everything that the page shows, read from the report's inputs."""
    store, index = work.store, load_index(work.store, work.ref("index"))
    train, test = Clips(store, work.ref("train")), Clips(store, work.ref("test"))
    scores = {ref: load_score(store.folder(ref)) for ref in work.refs("scores")}
    manifests = _lineage(store, work.job.needs)
    lost = [row.model_dump() for row in (*index.rejected, *train.table.rejected, *test.table.rejected)]
    rows = [
        _marked(
            _row(parameters, plan, scores, manifests).model_copy(update=coded_bytes(store, plan, scores)),
            plan,
            store,
            row_mark(store, plan.sets),
            index.classes,
        )
        for plan in parameters.rows
    ]
    return ReportData(
        title=parameters.title,
        created=max(manifest.created for manifest in manifests.values()),
        dataset_summary=_summary(parameters.dataset, index, train, test) | _front(work, parameters),
        classes=list(index.classes),
        largest=float(np.bincount(test.labels_N).max() / len(test)),
        rows=[_begun(store, plan, row) for plan, row in zip(parameters.rows, with_differences(rows), strict=True)],
        curves=_curves(parameters, scores),
        losses=_losses(store, parameters),
        pairs=_pairs(store, parameters, train),
        saliency=_saliencies(store, parameters, train.classes),
        crops=crop_sets(store, parameters.rows),
        searches=searches(store, parameters.rows),
        pools=pools_shown(store, manifests, work.refs("pool_quality")),
        lineage=[_entry(manifest) for manifest in manifests.values() if manifest.kind not in BLOCKS],
        rejected=lost,
        failed=list(parameters.failed),
        confusions=confusions(store, parameters.rows, rows),
        command=parameters.command,
        notes=[*parameters.notes, *index.notes, *_notes(manifests)],
    )


def _summary(dataset: str, index: IndexTable, train: Clips, test: Clips) -> dict[str, str | int]:
    frames, height, width, _ = train.shape_THWC
    return {
        "dataset": dataset,
        "layout": index.layout,
        TRAINING_CLIPS: len(train),
        "test videos": len(test),
        "stored views a training video": train.table.views,
        "clip": f"{frames} frames of {height}×{width}",
        "flips": "on" if index.flips else "off",
    }


def _front(work: Work, parameters: ReportParameters) -> dict[str, str | int]:
    """What networks see first, and the trials that decided it where it was `auto`."""
    named = str(parameters.experiment.get("front", "rgb"))
    for ref in work.refs("front"):
        tried = ", ".join(f"{front} {top1:.1%}" for front, top1 in trials_of(work.store, ref).items())
        named += f", by trials on a fifth of the training split: {tried}"
    return {"networks see first": named}


def _row(
    parameters: ReportParameters, plan: RowPlan, scores: dict[ArtifactRef, Score],
    manifests: dict[ArtifactRef, Manifest],
) -> Row:  # fmt: skip
    own = [scores[ref] for ref in plan.scores]
    top1 = [score.top1 for score in own]
    makers = [[manifests[ref] for ref in refs] for refs in plan.makers]
    return Row(
        **{name: getattr(plan, name) for name in Named.model_fields},
        dataset=parameters.dataset,
        split=parameters.split,
        protocol=plan.protocol,
        front=parted(plan.student)[0],
        top1_mean=float(np.mean(top1)),
        top1_std=deviation(top1),
        top5_mean=float(np.mean([score.top5 for score in own])),
        auc_mean=float(np.mean([score.auc for score in own])),
        f1_mean=float(np.mean([score.f1 for score in own])),
        bytes=round(np.mean([score.training_bytes for score in own])),
        seconds=float(np.mean([sum(manifest.seconds for manifest in made) for made in makers])),
        peak_memory_bytes=max((manifest.peak_memory_bytes for made in makers for manifest in made), default=0),
        flops=own[0].flops,
        student_seconds=float(np.mean([manifests[ref].seconds for ref in plan.scores if ref.kind == "score"] or [0])),
        seeds=len(own),
        artifact=(plan.sets or plan.scores)[0].key,
        per_class=[float(value) for value in np.mean([score.per_class for score in own], axis=0)],
        top1=top1,
    )


def with_differences(rows: list[Row]) -> list[Row]:
    """Each row's top-1 minus Random's of the same setting and seed: mean, error, interval."""
    random = {row.setting: row for row in rows if row.is_random}
    made = []
    for row in rows:
        against = random.get(row.setting)
        if against is None or against is row:
            made.append(row)
            continue
        found = paired(row.top1, against.top1)
        told = {"mean": found.mean, "error": found.error, "interval": found.interval}
        update = {f"difference_{name}": value for name, value in told.items()} | {"settled": found.settled}
        made.append(row.model_copy(update=update))
    return made


def _begun(store: Store, plan: RowPlan, row: Row) -> Row:
    """A row whose sets were learned (or chosen by a network that was), and teach less than Random's clips of their
    seeds, says so: they began as these (whose sources they keep, with how far they moved), or otherwise.
    """
    behind = row.difference_mean is not None and row.difference_mean < 0 and (row.settled or row.seeds < LEAST_SEEDS)
    if not behind:
        return row
    folder = store.folder(plan.sets[0])
    facts = DistilledSet.facts_of(folder)
    parts = facts.get("parts", [facts])
    if not any(map(curve_of, parts)):
        return row
    moved = all("moved_in_std" in part for part in parts)
    began = "its own start, Random's clips," if moved and any(DistilledSet.sources_of(folder)) else "Random's clips"
    told = f"behind {began} by {-100 * (row.difference_mean or 0):.1f} points"
    return row.model_copy(update={"mark": "; ".join(filter(None, [row.mark, told]))})


def _marked(row: Row, plan: RowPlan, store: Store, mark: str, classes: Sequence[str]) -> Row:
    """With what the reader must know: of its sets, and of students that call nearly everything one class."""
    fallen = {seed: label for seed, ref in enumerate(plan.scores)
              if (counts_KK := load_confusion(store.folder(ref))) is not None
              and (label := collapsed_to(counts_KK)) is not None}  # fmt: skip
    named = ", ".join(dict.fromkeys(classes[label] for label in fallen.values()))
    said = f"{len(fallen)} of {row.seeds} students call nearly everything one class ({named})" if fallen else ""
    other = row.network and parted(row.network)[1] != parted(row.student)[1]
    begun = f"students began with the weights {plan.began_with}" if plan.began_with else ""
    crossed = f"cross-architecture: made with {row.network}" if other else ""
    return row.model_copy(
        update={"collapsed": tuple(fallen), "mark": "; ".join(filter(None, [mark, begun, crossed, said]))}
    )


def _curves(parameters: ReportParameters, scores: dict[ArtifactRef, Score]) -> list[Curve]:
    curves = []
    for plan in parameters.rows:
        setting = f"{plan.recipe}{plan.budget}, {plan.student}"
        for seed, ref in enumerate(plan.scores):
            steps, loss = list(scores[ref].steps), list(scores[ref].loss)
            curves.append(Curve(name=f"{plan.name} {setting}", setting=setting, seed=seed, steps=steps, loss=loss))
    return curves


def _losses(store: Store, parameters: ReportParameters) -> list[Curve]:
    """What each optimised set's own loss did, once for all recipes and students that the set is scored by."""
    found: dict[tuple[str, int], Curve] = {}
    for set_name, plan in named_sets(parameters.rows):
        name = f"{set_name}{plan.budget}"
        for seed, ref in enumerate(plan.sets):
            if told := curve_of(DistilledSet.facts_of(store.folder(ref))):
                found.setdefault((name, seed), Curve(name=name, seed=seed, **told))
    return list(found.values())


def _first_sets(parameters: ReportParameters) -> dict[str, ArtifactRef]:
    """The seed-0 set of each method and variant at its smallest budget, and again where a recipe changes its clips."""
    chosen: dict[str, ArtifactRef] = {}
    named = named_sets(parameters.rows)
    for name, plan in sorted(named, key=lambda pair: (pair[1].ipc or pair[1].kb or 0, pair[1].labels == "online")):
        chosen.setdefault(f"{name}, {plan.recipe}" if plan.mixed else name, plan.sets[0])
    return chosen


def _pairs(store: Store, parameters: ReportParameters, train: Clips) -> list[ClipPair]:
    sets = {name: DistilledSet.load(store.folder(ref)) for name, ref in _first_sets(parameters).items()}
    pairs = []
    for label in range(min(SHOWN_CLASSES, len(train.classes))):
        real = list(train.read(train.rows_of(label)[:1]))
        shown = {name: list(made.clips_NTHWC[made.labels_N == label][:1]) for name, made in sets.items()}
        pairs.append(ClipPair(class_name=train.classes[label], real=real, distilled=shown))
    return pairs


def _saliencies(store: Store, parameters: ReportParameters, classes: tuple[str, ...]) -> list[Saliency]:
    """Saliency, ε and mask of the first clip of the first classes, for every method that left them in its set."""
    names, found = ("saliency", "epsilon", "mask"), []
    for name, ref in _first_sets(parameters).items():
        if not DistilledSet.extras_of(store.folder(ref)) >= set(names):
            continue
        made = DistilledSet.load(store.folder(ref))
        for label in range(min(4, len(classes))):
            clip = int(np.flatnonzero(made.labels_N == label)[0])
            s_T, (epsilon,), mask_T = (made.extras[extra][clip].astype(float).tolist() for extra in names)
            found.append(Saliency(method=name, class_name=classes[label], s_T=s_T, epsilon=epsilon, mask_T=mask_T))
    return found


def _lineage(store: Store, refs: list[ArtifactRef]) -> dict[ArtifactRef, Manifest]:
    """The manifests of these artifacts and of everything that they were made from."""
    found: dict[ArtifactRef, Manifest] = {}
    left = set(refs)
    while left:
        made = store.manifests(sorted(left, key=str))
        found |= made
        left = {need for one in made.values() for need in one.needs} - found.keys()
    return found


def _entry(manifest: Manifest) -> LineageEntry:
    inputs = {name: [ref.key for ref in refs] for name, refs in manifest.inputs.items()}
    parameters = {name: value for name, value in manifest.parameters.items() if name not in {"rows", "videos"}}
    return LineageEntry(kind=manifest.kind, key=manifest.key, parameters=parameters, inputs=inputs,
                        seconds=manifest.seconds, bytes=manifest.bytes, created=manifest.created)  # fmt: skip


def _notes(manifests: dict[ArtifactRef, Manifest]) -> list[str]:
    """On which machine, how long, and with which commits."""
    records = [manifest.record for manifest in manifests.values()]
    machines = sorted({record["machine"] for record in records if "machine" in record})
    trained = [record for record in records if "device" in record]
    ran = sorted({f"{record.get('gpu', record['device'])} in {record['precision']}" for record in trained})
    commits = sorted({record["commit"] for record in records if record.get("commit")})
    seconds = sum(manifest.seconds for manifest in manifests.values())
    return [
        f"Made on {'; '.join(machines)}: networks on {'; '.join(ran)}; {duration(seconds)} of stages in all.",
        *([f"Commit {', '.join(commits)}."] if commits else []),
    ]
