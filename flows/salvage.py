"""What is left of an experiment when some of its jobs failed: the report of the other rows, which names those."""

from __future__ import annotations

from vidistill.flows.experiment import EXPERT, TEACHER, Graph
from vidistill.storage.errors import VidistillError
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.report.data import FailedRow, RowPlan
from vidistill.tasks.report.gather import ReportParameters, report_job

Failed = dict[ArtifactRef, VidistillError]


def salvaged(graph: Graph, failed: Failed) -> Graph | None:
    """The report of the rows that were made; the others are among its parameters, so that its key is another.

    A row of which one seed failed has failed: rows are compared seed by seed.

    Returns:
        A graph of the report alone; None where no row was made but those of teachers and experts.
    """
    lost = _lost(graph, failed)
    parameters = ReportParameters.model_validate(graph.last.parameters)
    kept = tuple(row for row in parameters.rows if _cause(row, lost) is None)
    if all(row.method in (TEACHER, EXPERT) for row in kept):
        return None
    rows = tuple(_failed_row(row, cause) for row in parameters.rows if (cause := _cause(row, lost)))
    inputs = {name: [ref for ref in refs if ref not in lost] for name, refs in graph.last.inputs.items()}
    own = [] if rows else [f"Without {graph.jobs[ref].label}: {error}" for ref, error in failed.items()]
    told = {"rows": kept, "failed": rows, "notes": (*parameters.notes, *own)}
    report = report_job(parameters.model_copy(update=told), inputs)
    return Graph({report.ref: report})


def _lost(graph: Graph, failed: Failed) -> Failed:
    """What failed, and what was not made because it needs that; each with the cause."""
    lost = dict(failed)
    for ref, job in graph.jobs.items():
        needs = (need for need in job.needs if need in lost)
        if ref not in lost and (need := next(needs, None)) is not None:
            lost[ref] = lost[need]
    return lost


def _cause(row: RowPlan, lost: Failed) -> VidistillError | None:
    return next((lost[ref] for ref in row.scores if ref in lost), None)


def _failed_row(row: RowPlan, cause: VidistillError) -> FailedRow:
    return FailedRow(
        **{name: getattr(row, name) for name in FailedRow.model_fields if name != "error"},
        error=" ".join(str(cause).split()),
    )
