"""What networks see first: `front: auto` is decided on a fifth of the training split, before the rest is planned."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from vidistill.flows.execution import run_graph
from vidistill.flows.experiment import Graph
from vidistill.flows.parameters import DataRequest, Experiment, fronted_networks
from vidistill.models import fronted
from vidistill.storage.errors import RequestError
from vidistill.storage.opening import open_store
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.learning.trial import decided, fifths, front_jobs
from vidistill.tasks.stage import Runtime
from vidistill.tasks.videos.decode import training_clips
from vidistill.tasks.videos.index import IndexTable, index_job

Request = TypeVar("Request", bound=DataRequest)
GraphOf = Callable[[Request, IndexTable, ArtifactRef | None], Graph]
"""The jobs of a request with a front, of these videos; the last argument is what decided the front."""
UNDECIDED = "centred"
"""What `plan` assumes until a run has decided."""
UNTRIED = "The front is rgb, since it cannot be chosen on a part of the training split: %s."
log = logging.getLogger("vidistill")


def choose_front(request: Request, table: IndexTable, runtime: Runtime) -> tuple[Request, ArtifactRef | None]:
    """The request with a front in each network's name, and the decision's artifact where it was `auto`."""
    graph = front_graph(request, table) if request.front == "auto" else None
    if graph is None:
        return with_front(request, "rgb" if request.front == "auto" else request.front), None
    try:
        run_graph(graph, runtime)
    except RequestError as error:  # a class lost all but one group of its videos when they were decoded
        log.warning(UNTRIED, error)
        return with_front(request, "rgb"), None
    ref = graph.last.ref
    return with_front(request, decided(open_store(runtime.store), ref)), ref


def expected_graph(request: Request, table: IndexTable, store: Store, graph_of: GraphOf[Request]) -> Graph:
    """All jobs that a run would do; where the front is not decided yet, those of `UNDECIDED`."""
    trials = front_graph(request, table) if request.front == "auto" else None
    if trials is None:
        named = "rgb" if request.front == "auto" else request.front
        return graph_of(with_front(request, named), table, None)
    ref = trials.last.ref
    found = decided(store, ref) if store.has(ref) else UNDECIDED
    return Graph(trials.jobs | graph_of(with_front(request, found), table, ref).jobs)


def front_graph(request: DataRequest, table: IndexTable) -> Graph | None:
    """The trials of each front and the decision, last; None where no fifth of the training split can be held out.

    Of clips of one frame there is nothing to choose either: what is not rgb sees what moves.
    """
    if request.decode.frames == 1:
        return None
    try:
        fifths(table.of_split("train"), table.classes)
    except RequestError as error:
        log.warning(UNTRIED, error)
        return None
    graph = Graph()
    index = graph.add(index_job(table, request.index))
    graph.add(*front_jobs(training_clips(table, index, request.decode, graph.add)))
    return graph


def with_front(request: Request, front: str) -> Request:
    """The same request, the teacher and the students with this front; networks that name one keep theirs."""
    request = fronted_networks(request, front).model_copy(update={"front": front})
    return request.with_students(lambda name: fronted(name, front)) if isinstance(request, Experiment) else request
