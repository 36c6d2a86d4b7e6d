"""The flow `benchmark`: a grid of one data set, its report, its scores and its plots."""

from __future__ import annotations

import json
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import deployment

from vidistill.flows.distill import carry_out
from vidistill.flows.execution import deployed_places
from vidistill.flows.grid import Benchmark, experiments
from vidistill.storage.files import write_out
from vidistill.storage.leases import leased
from vidistill.storage.opening import default_location, open_store
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.report.gather import JSON
from vidistill.tasks.report.plots import write_plots
from vidistill.tasks.report.scores import scores_page
from vidistill.tasks.stage import Runtime, run_job
from vidistill.tasks.videos.motion import motion_job, motion_of

PAGE = "benchmark.md"


@flow(name="benchmark")
def benchmark(grid: Benchmark, runtime: Runtime | None = None, out: Path | None = None) -> ArtifactRef:
    """Run a grid of methods, budgets, students, fronts and seeds on one data set.

    What is in the store is not made again, so that a grid which was killed goes on; a cell that fails is named, and
    costs its own row.

    Args:
        grid: the data, the methods, and everything that changes the result.
        runtime: store, device, threads and time limits, which do not; the store of this user by default.
        out: a folder for the report, benchmark.md and the plots; the store alone where it is not given.

    Returns:
        The report's artifact.

    Raises:
        RowsFailed: some rows could not be made; everything of the others is written.
    """
    if deployment.id:
        out = deployed_places(deployment.parameters.get("runtime"), out)
    runtime = runtime or Runtime(store=default_location())
    ref, failed = carry_out(experiments(grid), runtime, out)
    store = open_store(runtime.store)
    document = json.loads((store.folder(ref) / JSON).read_text())
    job = motion_job(store.manifest(ref).inputs["train"][0])
    with leased(store, [ref, job.ref]):
        motion = motion_of(store, run_job(job, runtime)[0])
    plots = write_plots(document, out) if out is not None else {}
    page = scores_page(document, plots, motion)
    if out is not None:
        write_out(out, PAGE, page.encode())
    create_markdown_artifact(page, key="benchmark", description=f"Benchmark {ref.key}")
    if failed:
        raise failed
    return ref
