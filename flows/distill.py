"""The flow `distill`: one experiment, from videos to a report, every expensive stage cached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact

from vidistill.flows.execution import attempt_graph, found_videos, log, log_failures, refuse_inside, run_graph
from vidistill.flows.experiment import Graph, build
from vidistill.flows.fronts import choose_front
from vidistill.flows.grid import merged
from vidistill.flows.own import with_own
from vidistill.flows.parameters import Experiment
from vidistill.flows.rows import rows_of
from vidistill.flows.runners import jobs_done_by
from vidistill.flows.salvage import Failed, salvaged
from vidistill.storage.errors import RowsFailed, StoreError
from vidistill.storage.files import copy_out
from vidistill.storage.opening import default_location, open_store
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.report.gather import HTML, JSON, MARKDOWN, ReportParameters
from vidistill.tasks.stage import Runtime


@flow(name="distill")
def distill(experiment: Experiment, runtime: Runtime | None = None, out: Path | None = None) -> ArtifactRef:
    """Distil a labelled video data set by one or several methods, score the sets and write a report.

    Args:
        experiment: the data, the methods, the budgets and everything that changes the result.
        runtime: store, device, threads and time limits, which do not; the store of this user by default.
        out: a folder for report.html and report.json; the store alone where it is not given.

    Returns:
        The report's artifact.

    Raises:
        RowsFailed: some rows could not be made; the report of the others is written, and names them.
    """
    ref, failed = carry_out([experiment], runtime or Runtime(store=default_location()), out)
    if failed:
        raise failed
    return ref


def carry_out(asked: Sequence[Experiment], runtime: Runtime, out: Path | None) -> tuple[ArtifactRef, RowsFailed | None]:
    """Make one report of experiments that differ in nothing but their front.

    Returns:
        The report's artifact, and what to raise for the rows that could not be made, if any.
    """
    named = []
    for one in asked:
        own, known = with_own(one, runtime)
        named.append(own)
        runtime = known.model_copy(update={"networks": runtime.networks | known.networks})
        rows_of(own)  # a wrong name ends the run before any work
    experiment = named[0]
    refuse_inside(experiment, runtime)
    with jobs_done_by(runtime):
        runtime, table = found_videos(experiment, runtime)
        settled = [choose_front(one, table, runtime) for one in named]
        graph = merged([build(one, table, front, before) for (one, front), before in zip(settled, asked, strict=True)])
        failed = attempt_graph(graph, runtime)
        if failed:
            graph = _rest(graph, failed)
            run_graph(graph, runtime)
    ref = graph.last.ref
    page = publish(ref, runtime, out)
    return ref, _rows_failed(graph, failed, page) if failed else None


def _rest(graph: Graph, failed: Failed) -> Graph:
    """The report of the rows that were made.

    Raises:
        VidistillError: there is none, or what failed is no row's own: a store that is full.
    """
    errors = list(failed.values())
    ending = [error for error in errors if isinstance(error, StoreError)]
    rest = None if ending else salvaged(graph, failed)
    if rest is None:
        first = (ending or errors)[0]
        log_failures(errors, said=[first])
        raise first
    log_failures(errors)
    return rest


def _rows_failed(graph: Graph, failed: Failed, page: Path) -> RowsFailed:
    parameters = ReportParameters.model_validate(graph.last.parameters)
    lost, made = len(parameters.failed), len(parameters.rows)
    first = str(next(iter(failed.values()))).rstrip(".")
    rows = f"{lost} of {lost + made} rows failed ({first}): the report {page} holds the others and names them."
    error = RowsFailed(rows if lost else f"{first}: the report {page} has all rows, and says what it lacks.")
    error.causes = tuple(failed.values())
    return error


def publish(ref: ArtifactRef, runtime: Runtime, out: Path | None) -> Path:
    """Copy the report out of the store, and show it in the Prefect UI; where the page is."""
    folder = open_store(runtime.store).folder(ref)
    page = folder / HTML
    if out is not None:
        copy_out(folder, (HTML, JSON), out)
        page = (out / HTML).absolute()
    shown = (folder / MARKDOWN).read_text(encoding="utf-8")
    create_markdown_artifact(shown, key="distill-report", description=f"Report {ref.key}")
    create_link_artifact(page.as_uri(), link_text="report.html", key="distill-page")
    log.info("report: %s", page)
    return page
