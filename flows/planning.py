"""What a run would do, why, and about how long it takes; nothing is written."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vidistill.flows.estimates import TASK_SECONDS, Estimates, wall_seconds
from vidistill.flows.execution import data_runtime, find_videos, refuse_inside
from vidistill.flows.experiment import build
from vidistill.flows.fronts import GraphOf, Request, expected_graph
from vidistill.flows.grid import Benchmark, experiments, merged
from vidistill.flows.own import with_own
from vidistill.flows.parameters import SPRITES, DataRequest, Experiment
from vidistill.flows.reasons import Reasons
from vidistill.flows.runners import WORKERS
from vidistill.storage.errors import RequestError
from vidistill.storage.files import expanded, standing
from vidistill.storage.manifests import ABSENT
from vidistill.storage.opening import open_store
from vidistill.storage.store import Store
from vidistill.tasks.report.tables import size
from vidistill.tasks.stage import Job, Runtime, checkpoint_kind
from vidistill.tasks.videos.drafts import Draft, hold_out
from vidistill.tasks.videos.index import IndexTable
from vidistill.tasks.videos.layouts import IndexParameters
from vidistill.tasks.videos.scan import Video
from vidistill.tasks.videos.split_lists import Split
from vidistill.tasks.videos.splits import Entry
from vidistill.tasks.videos.sprites import CLASSES, SpritesParameters
from vidistill.tasks.videos.sprites_stage import sprites_job

if TYPE_CHECKING:
    from rich.console import Console

START_SECONDS, CACHED_SECONDS = 8.0, 0.02
"""What Prefect, its server and torch take to start and stop, and what a cached job takes."""


@dataclass(frozen=True)
class Planned:
    """One job of a plan: whether it is cached, why it has to run, what it takes."""

    job: Job
    cached: bool
    why: str
    seconds: float
    bytes: float


@dataclass(frozen=True)
class Plan:
    """The jobs of a run, what tells how long they take, and what is to be known of how the data were read."""

    planned: list[Planned]
    estimates: Estimates
    runtime: Runtime
    notes: tuple[str, ...] = ()

    @property
    def todo(self) -> list[Planned]:
        return [one for one in self.planned if not one.cached]

    @property
    def seconds(self) -> float:
        """From the command to its end, with as many jobs at a time as the flow runs."""
        known = {one.job.ref: one.seconds + TASK_SECONDS for one in self.todo}
        cached = CACHED_SECONDS * (len(self.planned) - len(known))
        return START_SECONDS + cached + wall_seconds([one.job for one in self.todo], known, self.runtime, WORKERS)

    @property
    def bytes(self) -> float:
        return sum(one.bytes for one in self.todo)


def describe(plan: Plan, console: Console) -> None:
    """Print a plan: counts a stage, reasons, and an estimate of time and disk."""
    for kind in dict.fromkeys(one.job.stage for one in plan.planned):
        own = [one for one in plan.planned if one.job.stage == kind]
        todo = [one for one in own if not one.cached]
        done = f"{len(own) - len(todo)} cached" if len(todo) < len(own) else ""
        run = f"{len(todo)} to run, about {duration(sum(one.seconds for one in todo))}" if todo else ""
        console.print(f"[bold]{kind:12}[/bold] {', '.join(filter(None, [run, done]))}", highlight=False, markup=True)
        for why, count in Counter(one.why for one in todo).most_common(3):
            console.print(f"{'':13}{count} × {why}", highlight=False, style="dim", soft_wrap=True)
    store = plan.runtime.store
    said = f"Everything is cached in {store}."
    if plan.todo:
        many = f"{len(plan.todo)} of {len(plan.planned)} jobs to run, {WORKERS} at a time"
        said = f"{many}: about {duration(plan.seconds)} and {size(plan.bytes)} in {store}"
        if plan.bytes > (free := free_bytes(store)):
            said += f"\nThat is more than the {size(free)} that are free there: make room, or name another --store."
    console.print("\n".join(["", *plan.notes, said]), highlight=False, soft_wrap=True)


def free_bytes(store: str) -> float:
    """What is free on the disk of a store, which need not be there yet; a bucket has no end."""
    if "://" in store:
        return math.inf
    return shutil.disk_usage(standing(Path(store))).free


def plan_of(experiment: Experiment, runtime: Runtime) -> Plan:
    """Every job of an experiment, with whether it is cached and why not; what would end the run ends the plan.

    Hashes and probes are remembered for the run.

    Raises:
        RequestError: the experiment asks for what is not there.
    """
    own, runtime = with_own(experiment, runtime)
    return plan_data(own, runtime, partial(build, asked=experiment))


def plan_grid(grid: Benchmark, runtime: Runtime) -> Plan:
    """Every job of a grid; of data that are not there as many videos as the grid expects.

    Raises:
        RequestError: the grid asks for what is not there.
    """
    store, graphs = open_store(runtime.store), []
    refuse_inside(grid, runtime)
    unseen = grid.expect if grid.data != SPRITES and not expanded(grid.data).exists() else None
    first, table = _videos(grid, runtime, store) if unseen is None else ([], unseen.table())
    for asked in experiments(grid):
        own, _ = with_own(asked, runtime)
        graphs.append(expected_graph(own, table, store, partial(build, asked=asked)))
    jobs = {job.ref: job for graph in graphs for job in list(graph.jobs.values())[:-1]}
    report = merged(graphs).last
    plan = plan_jobs([*first, *jobs.values(), report], store, runtime, flips=table.flips)
    return replace(plan, notes=table.notes)


def plan_data(request: Request, runtime: Runtime, graph_of: GraphOf[Request]) -> Plan:
    """Every job that is made of a data set, of sprites as they will be where they are not rendered yet."""
    refuse_inside(request, runtime)
    store = open_store(runtime.store)
    first, table = _videos(request, runtime, store)
    graph = expected_graph(request, table, store, graph_of)
    said = graph.last.parameters.get("notes", ())  # a report's, of the rows that it lacks
    plan = plan_jobs([*first, *graph.jobs.values()], store, runtime, flips=table.flips)
    return replace(plan, notes=(*table.notes, *said))


def _videos(request: DataRequest, runtime: Runtime, store: Store) -> tuple[list[Job], IndexTable]:
    """The jobs that make the videos, and their index."""
    first = [sprites_job(request.sprites)] if request.data == SPRITES else []
    if first and (request.index.split != 1 or request.index.layout not in ("auto", "folders")):
        raise RequestError("Sprites are class folders with one split: leave --split and --layout out.")
    if first and not store.has(first[0].ref):
        return first, _expected_sprites(request.sprites, request.index)
    return first, find_videos(request, data_runtime(request, runtime))


def _expected_sprites(parameters: SpritesParameters, index: IndexParameters | None = None) -> IndexTable:
    """The index that sprites will have, but for the files' content."""
    index = index or IndexParameters()
    counts: dict[Split, int] = {"train": parameters.train_per_class, "test": parameters.test_per_class}
    listed = [
        Entry(path=f"{split}/{name}/{number}.mp4", label=name, split=split, group=str(number))
        for split, count in counts.items() for name in CLASSES for number in range(count)
    ]  # fmt: skip
    draft = Draft(listed, str)
    if index.holdout:
        hold_out(draft, index.split_seed)
    videos = tuple(
        Video(path=entry.path, label=CLASSES.index(entry.label), split=entry.split, group=entry.group, bytes=0,
              sha256="unmade", width=parameters.size, height=parameters.size, frames=parameters.frames,
              duration_seconds=None, codec="")
        for entry in draft.entries
    )  # fmt: skip
    return IndexTable(layout="folders", classes=CLASSES, flips=index.flips == "on", videos=videos, rejected=())


def plan_jobs(jobs: Sequence[Job], store: Store, runtime: Runtime, *, flips: bool = False) -> Plan:
    """A plan of these jobs, each after those that it needs; `flips`: their clips may be mirrored."""
    kinds = sorted({kind for job in jobs for kind in (job.stage, checkpoint_kind(job))})
    looks = [look for kind in kinds for look in store.survey(kind).values()]
    known = {look.manifest.ref: look.manifest for look in looks if look.manifest and not look.problem}
    nodes = known | {job.ref: job.manifest for job in jobs}
    estimates, reasons = Estimates(runtime, nodes.get, flips=flips), Reasons(jobs, list(known.values()))
    for manifest in known.values():
        estimates.learn(manifest)
    problems = store.problems(job.ref for job in jobs)
    missing = {ref for ref, problem in problems.items() if problem is not None}
    planned = []
    for job in jobs:
        problem, estimate = problems[job.ref], estimates.of(job)
        damaged = problem is not None and problem != ABSENT
        why = f"damaged: {problem}" if damaged else reasons.of(job, missing) if problem else ""
        planned.append(Planned(job, problem is None, why, estimate.seconds, estimate.bytes))
    return Plan(planned, estimates, runtime)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
