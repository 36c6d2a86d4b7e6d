"""From an experiment to its jobs: every method declares what it needs, and no more than that is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from vidistill.flows.command_line import command_of
from vidistill.flows.own import without_places
from vidistill.flows.parameters import (
    SPRITES,
    Experiment,
    fronted_networks,
    name_of,
    placeless,
)
from vidistill.flows.rows import FULL, Row, options_of, rows_of, within_budgets, without_blind
from vidistill.models import fronted, known
from vidistill.storage.files import expanded
from vidistill.storage.parameters import in_words
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.coded.recode import recode_job
from vidistill.tasks.distil import blaming, distil_jobs
from vidistill.tasks.generate.pool import pool_of
from vidistill.tasks.generate.quality import quality_job
from vidistill.tasks.learning import benchmark
from vidistill.tasks.learning.evaluate import evaluate_job
from vidistill.tasks.learning.experts import ExpertParameters
from vidistill.tasks.learning.references import expert_score_job, teacher_score_job
from vidistill.tasks.learning.relabel import relabel_job
from vidistill.tasks.learning.teacher import teacher_job
from vidistill.tasks.methods import HARD, Given
from vidistill.tasks.report.data import RowPlan
from vidistill.tasks.report.gather import ReportParameters, report_job
from vidistill.tasks.stage import Job
from vidistill.tasks.videos.decode import block_jobs, clips_job
from vidistill.tasks.videos.index import IndexTable, files_job, index_job

TEACHER, EXPERT, SEARCH = "teacher", "expert", "coded-search"


@dataclass
class Graph:
    """Jobs in an order in which each comes after those that it needs."""

    jobs: dict[ArtifactRef, Job] = field(default_factory=dict)

    def add(self, *jobs: Job) -> ArtifactRef:
        """Add jobs, each once; the reference of the last."""
        for job in jobs:
            self.jobs.setdefault(job.ref, job)
        return jobs[-1].ref

    @property
    def last(self) -> Job:
        """What the others are made for: a report, a pool's quality, a decision."""
        return next(reversed(self.jobs.values()))


@dataclass(frozen=True)
class DataRefs:
    """The artifacts that every row reads, and what those rows that need a teacher or a pool have in common."""

    index: ArtifactRef
    train: ArtifactRef
    test: ArtifactRef
    teacher: Job
    root: Path | None
    pool_jobs: Callable[[], list[Job]]


def build(
    experiment: Experiment, table: IndexTable, front: ArtifactRef | None = None, asked: Experiment | None = None
) -> Graph:
    """All jobs of an experiment, the report last.

    Args:
        experiment: what to do, the front in every network's name.
        table: the videos.
        front: the artifact that decided what networks see first.
        asked: what was asked for before that was decided, for the command that the report shows.

    Raises:
        RequestError: the experiment asks for what is not there.
    """
    asked_for = within_budgets(rows_of(experiment), table, experiment.pool.clips_a_class)
    rows, notes = without_blind(asked_for, experiment)
    graph = Graph()
    data = _data_jobs(graph, experiment, table)
    plans = [_row_jobs(graph, experiment, table, data, row) for row in rows]
    pools = [job.ref for job in graph.jobs.values() if job.stage == "pool"]
    quality = [graph.add(data.teacher, quality_job(pool, data.train, data.teacher.ref)) for pool in pools]
    if data.teacher.ref in graph.jobs:
        plans.append(_teacher_row(graph, experiment, data))
    plans += _expert_rows(graph, data)
    name = name_of(experiment.data)
    parameters = ReportParameters(
        title=f"vidistill on {name}",
        dataset=name,
        split="validation" if experiment.index.holdout else str(experiment.index.split),
        rows=tuple(plans),
        notes=notes,
        command=command_of(without_places(asked or experiment)),
        experiment=without_places(experiment).model_dump(mode="json", exclude={"data"}),
    )
    teacher = [job.ref for job in graph.jobs.values() if job.stage == "teacher"]
    indices = list(dict.fromkeys([graph.add(files_job(table, experiment.index)), data.index]))
    inputs = {"index": indices, "train": data.train, "test": data.test, "teacher": teacher, "pool_quality": quality}
    graph.add(report_job(parameters, inputs | ({"front": front} if front else {})))
    return graph


def _data_jobs(graph: Graph, experiment: Experiment, table: IndexTable) -> DataRefs:
    index = graph.add(index_job(table, experiment.index))
    train_blocks = block_jobs(table, experiment.decode, "train")
    decode = experiment.decode
    if experiment.protocol == benchmark.NAME:
        decode = decode.model_copy(update={"test_views": benchmark.TEST_VIEWS})
    test_blocks = block_jobs(table, decode, "test")
    graph.add(*train_blocks, *test_blocks)
    train = graph.add(clips_job(index, experiment.decode, "train", train_blocks))
    test = graph.add(clips_job(index, decode, "test", test_blocks, train))
    teacher = teacher_job(train, experiment.teacher)
    place = expanded(experiment.data)
    root = place if experiment.data != SPRITES and place.exists() else None

    @cache
    def pool_jobs() -> list[Job]:
        """The jobs of the one pool, worked out once, and only if somebody asks."""
        jobs: list[Job] = []

        def add(job: Job) -> ArtifactRef:
            jobs.append(job)
            return job.ref

        pool_of(Given(index, train, teacher, table, experiment.decode, root, add), experiment.pool)
        return jobs

    return DataRefs(index, train, test, teacher, root, pool_jobs)


def _row_jobs(graph: Graph, experiment: Experiment, table: IndexTable, data: DataRefs, row: Row) -> RowPlan:
    scores, sets, makers, network = [], [], [], ""
    for seed in range(row.seeds):
        chain = [] if row.source is None else _set_jobs(graph, experiment, table, data, row, seed)
        inputs = {"train": data.train, "test": data.test}
        if chain:
            inputs["distilled"] = chain[-1]
            sets.append(chain[-1])
            if seed == 0:
                network = _network_used(graph, row, experiment, data, chain)
        else:
            inputs["index"] = data.index
        if row.recipe.labels == "online":
            inputs["teacher"] = graph.add(data.teacher)
        label = f"score {_label(row, row.variant)} {row.student} seed {seed}"
        scores.append(
            graph.add(evaluate_job(row.student, row.taught, row.recipe, seed, inputs, label, experiment.protocol))
        )
        makers.append(list(dict.fromkeys([*chain, *([inputs["teacher"]] if "teacher" in inputs else [])])))
    return RowPlan(
        method=row.source.name if row.source else FULL,
        variant=row.variant,
        training=row.training,
        began_with=", ".join(placeless(dict(row.taught.of(row.student)))["pretrained"].values()),
        protocol=experiment.protocol,
        recipe=row.recipe.name,
        labels=row.recipe.kind,
        ipc=row.ipc,
        kb=row.kb,
        student=row.student,
        network=network,
        teacher=experiment.teacher.network if row.recipe.needs_teacher else "",
        scores=tuple(scores),
        sets=tuple(sets),
        makers=tuple(tuple(refs) for refs in makers),
    )


def _network_used(graph: Graph, row: Row, experiment: Experiment, data: DataRefs, chain: list[ArtifactRef]) -> str:
    """The network that a set was made with: the one that its method matches or follows, else the teacher where it was
    asked for more than labels, else the student that tried what to keep; empty for none.
    """
    assert row.source is not None
    options = options_of(row.source, row.cell)
    if own := row.source.method(options).network:
        return fronted(own, experiment.front) if known(own) else own
    made = [graph.jobs[ref] for ref in chain if ref.kind in ("distilled", "joined")]
    read = _read(graph, made)
    if data.teacher.ref in read:
        return experiment.teacher.network
    return next((str(graph.jobs[ref].parameters["search"]["network"]) for ref in read if ref.kind == SEARCH), "")


def _read(graph: Graph, jobs: list[Job]) -> set[ArtifactRef]:
    """What jobs read, and what that was made from, but for a search, whose teacher gives labels."""
    found: set[ArtifactRef] = set()
    while jobs:
        new = {ref for job in jobs for ref in job.needs} - found
        found |= new
        jobs = [graph.jobs[ref] for ref in new if ref in graph.jobs and ref.kind != SEARCH]
    return found


def _teacher_row(graph: Graph, experiment: Experiment, data: DataRefs) -> RowPlan:
    """Wherever a teacher is asked, what it knows itself is a row."""
    score = graph.add(teacher_score_job(data.teacher.ref, data.train, data.test))
    return RowPlan(
        method=TEACHER, variant="", recipe=HARD.name, labels="hard", ipc=None, student=experiment.teacher.network,
        scores=(score,), sets=(), makers=((data.teacher.ref,),),
    )  # fmt: skip


def _expert_rows(graph: Graph, data: DataRefs) -> list[RowPlan]:
    """Wherever experts are followed, what they know themselves is a row of each kind of them, its mean over experts."""
    kinds: dict[str, list[Job]] = {}
    for job in graph.jobs.values():
        if job.stage == EXPERT:
            kinds.setdefault(str(job.parameters["expert"]), []).append(job)
    return [_expert_row(graph, data, jobs) for jobs in kinds.values()]


def _expert_row(graph: Graph, data: DataRefs, jobs: list[Job]) -> RowPlan:
    own = jobs[0].parameters["expert"]
    differs = dict(own.items() - ExpertParameters().model_dump(mode="json").items())
    scores = [graph.add(expert_score_job(job.ref, data.train, data.test, job.parameters["seed"])) for job in jobs]
    return RowPlan(
        method=EXPERT, variant=in_words({name: differs[name] for name in own if name in differs and name != "network"}),
        recipe=HARD.name, labels="hard", ipc=None, student=own["network"], scores=tuple(scores), sets=(),
        makers=tuple((job.ref,) for job in jobs),
    )  # fmt: skip


def _set_jobs(
    graph: Graph, experiment: Experiment, table: IndexTable, data: DataRefs, row: Row, seed: int
) -> list[ArtifactRef]:
    """The jobs that make one set under its recipe; the last reference is the set."""
    assert row.source is not None
    method = row.source.method
    options = fronted_networks(options_of(row.source, row.cell), experiment.front)
    soft = row.recipe.labels == "soft"
    chain: list[ArtifactRef] = []

    def add(job: Job) -> ArtifactRef:
        chain.append(graph.add(job))
        return chain[-1]

    given = Given(
        data.index, data.train, data.teacher, table, experiment.decode, data.root, add,
        pool=lambda: [add(job) for job in data.pool_jobs()][-1], kb=row.kb, recipe=row.recipe,
        ipc=row.ipc or 1, seed=seed,
    )  # fmt: skip
    with blaming(row.source):
        inputs = {"clips": [data.train], **method(options).inputs(given)}
    name = _label(row, row.cell.variant)
    label = f"distil {name} seed {seed}"
    jobs = distil_jobs(row.source, options, row.ipc or 1, seed, len(table.classes), inputs, label, kb=row.kb, soft=soft)
    made = [add(job) for job in jobs][-1]
    if soft:
        label = f"label {name} seed {seed}"
        precision = experiment.teacher.precision
        add(relabel_job(made, data.train, add(data.teacher), row.recipe, seed, label, precision))
    if row.cell.store is not None:
        add(recode_job(chain[-1], row.cell.store, f"code {name} seed {seed}", method(options).variants))
    return list(dict.fromkeys(chain))


def _label(row: Row, variant: str) -> str:
    name = row.source.name if row.source else FULL
    budget = "" if row.ipc is None else f" ipc {row.ipc}"
    budget += "" if row.kb is None else f" kb {row.kb:g}"
    return f"{name}{' ' + variant if variant else ''} {row.recipe.name}{budget}"
