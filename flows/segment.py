"""The flow `segment`: sets of sequences for temporal action segmentation, and what networks learn from them."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import deployment

from vidistill.flows.execution import deployed_places, run_graph
from vidistill.flows.runners import jobs_done_by
from vidistill.flows.segments import SegmentRequest, graph_of
from vidistill.storage.files import copy_out, expanded
from vidistill.storage.opening import default_location, open_store
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.report.segments import JSON, MARKDOWN
from vidistill.tasks.stage import Runtime


@flow(name="segment")
def segment(request: SegmentRequest, runtime: Runtime | None = None, out: Path | None = None) -> ArtifactRef:
    """Distil frame-wise features of long videos, train a network on each set, and report how well it names frames.

    Args:
        request: the data, the methods, the budgets and everything that changes the result.
        runtime: store, device, threads and time limits; the store of this user by default.
        out: a folder for segment.md and segment.json; the store alone where it is not given.

    Returns:
        The report's artifact.
    """
    if deployment.id:
        out = deployed_places(deployment.parameters.get("runtime"), out)
    runtime = runtime or Runtime(store=default_location())
    runtime = runtime.model_copy(update={"data": str(expanded(request.data).absolute())})
    with jobs_done_by(runtime):
        graph = graph_of(request)
        run_graph(graph, runtime)
    ref = graph.last.ref
    folder = open_store(runtime.store).folder(ref)
    if out is not None:
        copy_out(folder, (JSON, MARKDOWN), out)
    shown = (folder / MARKDOWN).read_text(encoding="utf-8")
    create_markdown_artifact(shown, key="segment", description=f"Segments {ref.key}")
    return ref
