"""What `vidistill segment` is asked for, and its jobs; no Prefect."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from vidistill.flows.experiment import Graph
from vidistill.flows.parameters import MOST_SEEDS, SPRITES, name_of
from vidistill.flows.planning import Plan, plan_jobs
from vidistill.flows.rows import FULL, RANDOM
from vidistill.storage.files import expanded
from vidistill.storage.opening import open_store
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.report.segments import SegmentReportParameters, SegmentRowPlan, segment_report_job
from vidistill.tasks.segment.condense import DRAWN, METHODS, relabel_job, segment_set_job
from vidistill.tasks.segment.layout import SequenceTable, survey_sequences
from vidistill.tasks.segment.learn import TCNParameters, segment_teacher_job
from vidistill.tasks.segment.score import segment_score_job
from vidistill.tasks.segment.sequences import sequences_job
from vidistill.tasks.segment.sprites import SPLIT, ActionSpritesParameters, action_sprites_job
from vidistill.tasks.segment.tsgf import SegmentTSGFParameters
from vidistill.tasks.stage import Runtime

Labels = Literal["hard", "soft"]


def _known(method: str) -> str:
    if method not in (FULL, *METHODS):
        raise ValueError(f"choose from {', '.join((FULL, *METHODS))}")
    return method


class SegmentRequest(Parameters):
    """Methods × points a segment × labels × seeds on one data set: one table."""

    data: str = Field(description="A folder in the layout of 50Salads, or `sprites`, which is rendered.")
    split: int = Field(1, ge=1)
    sample_rate: int = Field(1, ge=1, description="Every which frame is used: 2 of 50Salads, as MS-TCN does it.")
    methods: tuple[Annotated[str, AfterValidator(_known)], ...] = Field((FULL, *METHODS), min_length=1)
    points: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1,), min_length=1, description="Budgets: feature vectors that are kept of each segment."
    )
    labels: tuple[Labels, ...] = Field(("hard", "soft"), min_length=1)
    seeds: int = Field(
        5, ge=1, le=MOST_SEEDS, description="Seeds 0 … n−1; each draws the frames, the distillation and the student."
    )
    tcn: TCNParameters = Field(TCNParameters(), description="Of teacher and students.")
    tsgf: SegmentTSGFParameters = SegmentTSGFParameters()
    sprites: ActionSpritesParameters = ActionSpritesParameters()

    @model_validator(mode="after")
    def _sane(self) -> SegmentRequest:
        if self.data == SPRITES and self.split != SPLIT:
            raise ValueError(f"sprites have one split: take split {SPLIT}, not {self.split}")
        return self

    @property
    def rows(self) -> list[tuple[str, int | None, Labels]]:
        """Method, points and labels of each row: the training split has its own labels; Random is always there."""
        sets = [name for name in dict.fromkeys((*self.methods, RANDOM)) if name != FULL]
        rows: list[tuple[str, int | None, Labels]] = [(FULL, None, "hard")] if FULL in self.methods else []
        kinds, budgets = dict.fromkeys(self.labels), dict.fromkeys(self.points)
        return rows + [(name, points, kind) for kind in kinds for points in budgets for name in sets]


def build_segments(request: SegmentRequest, table: SequenceTable | None) -> Graph:
    """All jobs, the report last.

    Args:
        request: what to do.
        table: the data; none for sprites, which need not be rendered yet.
    """
    graph = Graph()
    sprites = graph.add(action_sprites_job(request.sprites)) if table is None else None
    sequences = graph.add(sequences_job(request.split, request.sample_rate, table, sprites))
    teacher = segment_teacher_job(sequences, request.tcn)
    rows = request.rows
    if any(method == "tsgf" or labels == "soft" for method, _, labels in rows):
        graph.add(teacher)
    plans = [_row(graph, request, sequences, teacher.ref, row) for row in rows]
    name = name_of(request.data)
    asked = request.model_dump(mode="json") | {"data": name}
    parameters = SegmentReportParameters(dataset=name, split=request.split, rows=tuple(plans), request=asked)
    graph.add(segment_report_job(parameters, sequences))
    return graph


def _row(
    graph: Graph, request: SegmentRequest, sequences: ArtifactRef, teacher: ArtifactRef,
    row: tuple[str, int | None, Labels],
) -> SegmentRowPlan:  # fmt: skip
    method, points, labels = row
    sets: list[ArtifactRef] = []
    scores: list[ArtifactRef] = []
    for seed in range(request.seeds):
        made, said = None, method
        if points is not None:
            said = f"{method} {points} points, {labels} labels"
            made = graph.add(segment_set_job(sequences, teacher, method, points, seed, request.tsgf))
            if labels == "soft":
                drawn = f" seed {seed}" if method in DRAWN else ""
                made = graph.add(relabel_job(made, sequences, teacher, f"{method} {points} points{drawn}"))
            sets.append(made)
        scores.append(graph.add(segment_score_job(made, sequences, request.tcn, seed, said)))
    return SegmentRowPlan(
        method=method, points=points, labels=labels, sets=tuple(dict.fromkeys(sets)), scores=tuple(scores)
    )


def graph_of(request: SegmentRequest) -> Graph:
    """The jobs of a request; its data are read as far as their content has to be known.

    Raises:
        RequestError: the data are not there, or are not what they should be.
    """
    table = None if request.data == SPRITES else survey_sequences(expanded(request.data), request.split)
    return build_segments(request, table)


def plan_segments(request: SegmentRequest, runtime: Runtime) -> Plan:
    """Every job, with whether it is cached."""
    return plan_jobs(list(graph_of(request).jobs.values()), open_store(runtime.store), runtime)
