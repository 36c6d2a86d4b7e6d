"""The flow `refresh`: distil again when the videos changed, compare with the set in use, put the new one in its place.

It runs on a schedule or on an event, and most of its runs find nothing to do.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from vidistill.flows import distill as experiments
from vidistill.flows.commands import request_of
from vidistill.flows.execution import data_runtime, find_videos, run_graph
from vidistill.flows.experiment import Graph, build
from vidistill.flows.forms import OWN, AdvancedRefresh, Front, Method, Number, Runner, Students, given, listed, parted
from vidistill.flows.fronts import expected_graph
from vidistill.flows.own import with_own
from vidistill.flows.parameters import SPRITES, Experiment, checked, name_of
from vidistill.flows.rows import FULL
from vidistill.flows.runners import jobs_done_by
from vidistill.storage.clips import Clips, in_common
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError, RunError, Stopped, TransientError
from vidistill.storage.files import expanded, write_out
from vidistill.storage.names import Promoted, names, promote
from vidistill.storage.opening import open_store
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.learning import kinetics
from vidistill.tasks.learning.evaluate import evaluate, load_score
from vidistill.tasks.methods import find_method
from vidistill.tasks.report.data import RowPlan
from vidistill.tasks.report.gather import ReportParameters
from vidistill.tasks.stage import Runtime
from vidistill.tasks.videos.files import tells_split
from vidistill.tasks.videos.index import IndexTable, index_job, load_index
from vidistill.tasks.videos.layouts import data_folder
from vidistill.tasks.videos.split_lists import by_folder

PROMOTED = "vidistill.set.promoted"
log = logging.getLogger("vidistill")


def refresh_name() -> str:
    """Data, method and budget of the run that begins."""
    asked = flow_run.parameters
    unit = "kb" if asked["kb"] else "ipc"
    budget = f"{unit} {listed([asked[unit]])}"
    return " · ".join([name_of(asked["data"]), asked["method"], budget, f"as {asked['name']}"])


@flow(name="refresh", flow_run_name=refresh_name)
def refresh(
    data: str, method: Method = "tsgf", ipc: Annotated[int, Field(ge=1)] = 1, kb: Annotated[float, Field(ge=0)] = 0,
    students: Students = [], front: Front = OWN, seeds: Number = 0, name: str = "latest",  # noqa: B006
    settle_minutes: Annotated[float, Field(ge=0)] = 10, runner: Runner = "threads",
    advanced: AdvancedRefresh = {},  # noqa: B006
) -> Any:  # fmt: skip
    """Distil a folder of videos again where they changed, and have a name stand for the new set.

    Args:
        data: A folder of videos or a CSV file that the workers can read, to which videos come and from which they go.
        method: The method; Random is scored beside it. One of your own needs `enforce_parameter_schema: false`.
        ipc: The budget in instances (clips) a class.
        kb: The budget in kilobytes a class instead, of the method `coded`; 0 for none.
        students: Networks that are trained on the sets; those of your own go to `students` of advanced.
        front: What networks see first; one of your own goes to `front` of advanced.
        seeds: How many seeds; 0 is the default, 5. The name stands for the first seed's set.
        name: What users load: `vidistill export NAME`, `DistilledSet.load(NAME)`.
        settle_minutes: Videos that came later than this are still coming: the next run looks again.
        runner: Who does the jobs; `dask:ADDRESS` and `ray:ADDRESS` go to `runtime` of advanced.
        advanced: Every other parameter, as in a preset, and runtime, such as {"teacher": {"epochs": 20}}.

    Returns:
        The set that the name stands for; in a state called Unchanged or Waiting where that is the one before.
    """
    plain, runtime, out = parted(advanced, runner)
    experiment = _experiment(plain, given({
        "data": data, "cells": [{"method": method}], "kb" if kb else "ipc": [kb or ipc], "students": students,
        "front": "" if front == OWN else front, "seeds": seeds,
    }), name)  # fmt: skip
    own, runtime = with_own(experiment, runtime)
    store, table = open_store(runtime.store), find_videos(experiment, data_runtime(experiment, runtime))
    known = names(store).get(name)
    new = known is None or known.index != index_job(table, experiment.index).ref
    if new and (minutes := _quiet_minutes(Path(experiment.data), table)) < settle_minutes:
        said = f"The newest video came {minutes:.0f} minutes ago: the next run looks again."
        return Completed(name="Waiting", data=known and known.sets[0], message=said)
    if known and known.report == _expected(own, experiment, table, store) and store.has(known.sets[0]):
        return Completed(name="Unchanged", data=known.sets[0], message=f"All is as it was at {known.since:%F %R}.")
    report = experiments.distill.fn(experiment, runtime, out)
    row = _row(store, report, find_method(method).name)
    index = store.manifest(report).inputs["index"][-1]  # of a look that was taken after this one's
    made = Promoted(sets=row.sets, report=report, index=index, since=datetime.now(UTC))
    _publish(_compared(store, name, known, made, row, _scored_again(store, experiment, known, row, runtime)), out)
    promote(store, name, made)
    emit_event(PROMOTED, {"prefect.resource.id": f"vidistill.set.{name}"}, payload={"set": str(made.sets[0])})
    return made.sets[0]


def _experiment(plain: dict[str, Any], named: Mapping[str, Any], name: str) -> Experiment:
    if named["data"] == SPRITES:
        raise RequestError("refresh looks for videos that are new, and sprites never are: name a folder as data.")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise RequestError(f"name is {name!r}: a name has small letters, digits and _, and a letter first.")
    if [cell["method"] for cell in named["cells"]] == [FULL]:
        raise RequestError("refresh keeps a set under a name, and full makes none: name a method that distils.")
    return checked(Experiment, request_of(None, dict(named), plain), "The experiment")


def _expected(own: Experiment, experiment: Experiment, table: IndexTable, store: Store) -> ArtifactRef:
    """The report that a run would make: its key follows the videos, all that is asked for, users' files and weights,
    and the versions of the code.
    """
    return expected_graph(own, table, store, partial(build, asked=experiment)).last.ref


def _quiet_minutes(root: Path, table: IndexTable) -> float:
    """Since when no video came or changed, also of those that cannot be read yet, nor a table or list of a split."""
    root, changed = expanded(root), [0.0]
    folder = data_folder(root)
    named = [one.path for one in table.videos] + [one.video for one in table.rejected]
    lists = [path for paths in by_folder(folder, tells_split) for path in paths]
    for path in (root, *lists, *(folder / one for one in named)):
        if path == folder:  # its time is that of any file beside them
            continue
        with suppress(FileNotFoundError):
            changed.append(path.stat().st_ctime)
    return (time.time() - max(changed)) / 60


def _row(store: Store, report: ArtifactRef, method: str) -> RowPlan:
    rows = ReportParameters.model_validate(store.manifest(report).parameters).rows
    return next(row for row in rows if row.method == method and row.sets)


def _scored_again(
    store: Store, experiment: Experiment, known: Promoted | None, row: RowPlan, runtime: Runtime
) -> list[float]:
    """Top-1 on today's test videos of the sets in use, trained and scored as the new ones; empty where it cannot be."""
    if known is None:
        return []
    seen = _seen(store, row.sets[0])
    weights = experiment.student.pretrained.values()
    places = {name: path for own in weights for name, path in kinetics.named(own)[1].items()}
    jobs = [
        evaluate(
            made.parameters, made.inputs | {"distilled": before}, label=f"score the set in use, seed {seed}"
        ).model_copy(update={"places": places})
        for seed, (before, made) in enumerate(zip(known.sets, map(store.manifest, row.scores), strict=False))
        if store.has(before) and _seen(store, before) == seen
    ]  # fmt: skip
    try:
        with jobs_done_by(runtime):
            run_graph(Graph({job.ref: job for job in jobs}), runtime)
    except RunError as error:
        if isinstance(error, Stopped | TransientError):
            raise
        log.warning("The set in use cannot be scored as the new one is: %s", error)
        return []
    return [load_score(store.folder(job.ref)).top1 for job in jobs]


def _seen(store: Store, ref: ArtifactRef) -> tuple[Any, ...]:
    """A set's classes, and its clips' frames, height and width."""
    made = DistilledSet.load(store.folder(ref))
    return made.classes, made.clips_NTHWC.shape[1:]


def _compared(
    store: Store, name: str, known: Promoted | None, made: Promoted, row: RowPlan, again: Sequence[float]
) -> str:
    """The set in use beside the new one, in Markdown."""
    now = [load_score(store.folder(ref)).top1 for ref in row.scores]
    if known is None or not store.has(known.index):
        return f"**{name}** stands for {made.sets[0]}, the first of its name: top-1 {_percent(now)}.\n"
    tables = [load_index(store, one.index) for one in (known, made)]
    before = _percent(again) if again else "not to be had" if store.has(known.sets[0]) else "it is gone"
    lines = [
        f"**{name}** stands for {made.sets[0]} instead of {known.sets[0]}. {_changes(*tables)}",
        "",
        "| | in use until now | new |",
        "|---|---|---|",
        f"| since | {known.since:%F %R} | {made.since:%F %R} |",
        f"| videos, classes | {' | '.join(f'{len(one.videos)}, {len(one.classes)}' for one in tables)} |",
        f"| top-1 on today's test videos | {before} | {_percent(now)} |",
    ]
    if again:
        test = Clips(store, store.manifest(row.scores[0]).inputs["test"][0])
        if seen := in_common(DistilledSet.sources_of(store.folder(known.sets[0])), test):
            said = f"The set in use was made of {seen} of today's {len(test)} test videos: its accuracy is too high."
            lines += ["", said]
    return "\n".join(lines) + "\n"


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread} %"


def _changes(before: IndexTable, now: IndexTable) -> str:
    old, new = ({video.path: video.sha256 for video in table.videos} for table in (before, now))
    changed = sum(old[path] != new[path] for path in old.keys() & new.keys())
    return f"{len(new.keys() - old.keys())} videos came, {len(old.keys() - new.keys())} went, {changed} changed."


def _publish(words: str, out: Path | None) -> None:
    if out is not None:
        write_out(out, "refresh.md", words.encode())
    create_markdown_artifact(words, key="distill-refresh", description="The set in use and the new one")
    log.info(words)
