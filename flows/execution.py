"""Running a graph of jobs under Prefect: damaged artifacts are found first, then wave after wave is submitted."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidistill.flows.experiment import Graph
from vidistill.flows.parameters import SPRITES, DataRequest
from vidistill.storage.errors import RequestError, VidistillError
from vidistill.storage.opening import open_store
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.index import IndexTable, survey
from vidistill.tasks.sprites_stage import sprites_job
from vidistill.tasks.stage import Job, Runtime, prefect_task, stage_failure, start_jobs, stop_jobs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

log = logging.getLogger("vidistill")


def data_runtime(experiment: DataRequest, runtime: Runtime) -> Runtime:
    """The runtime with the data's place: the folder that is named, or where the store keeps the rendered sprites."""
    if experiment.data == SPRITES:
        store = open_store(runtime.store)
        return runtime.model_copy(update={"data": str(store.folder(sprites_job(experiment.sprites).ref))})
    return runtime.model_copy(update={"data": str(Path(experiment.data).expanduser().absolute())})


def find_videos(experiment: DataRequest, runtime: Runtime, workers: int) -> IndexTable:
    return survey(Path(runtime.data), experiment.index, workers=workers, timeout_seconds=runtime.timeout_seconds)


def discard_damaged(graph: Graph, store: Store) -> list[str]:
    """Remove artifacts of this graph that are not whole, so that they are made again.

    What is about to be read is checked byte for byte; what is only passed on, by its files' sizes (small artifacts
    always byte for byte).

    Returns:
        A sentence an artifact.
    """
    said: list[str] = []
    for job in reversed(list(graph.jobs.values())):
        if _drop(store, job.ref, thorough=False, said=said) or not store.has(job.ref):
            for need in _needs(job):
                if need in graph.jobs:
                    _drop(store, need, thorough=True, said=said)
    return said


def _drop(store: Store, ref: ArtifactRef, *, thorough: bool, said: list[str]) -> bool:
    problem = store.problem(ref, thorough=thorough)
    if problem is None or problem == "no artifact":
        return False
    store.discard(ref)
    said.append(f"{ref} was damaged ({problem}) and is made again.")
    return True


def _needs(job: Job) -> Iterable[ArtifactRef]:
    return (ref for refs in job.inputs.values() for ref in refs)


def run_graph(graph: Graph, runtime: Runtime) -> None:
    """Submit every job to the flow's task runner; a failed job ends the run with its own error.

    Raises:
        VidistillError: what a stage raised on purpose, or the sentence for what nobody foresaw.
    """
    for sentence in discard_damaged(graph, open_store(runtime.store)):
        log.warning(sentence)
    start_jobs()
    with _stopping_jobs_on(signal.SIGINT, signal.SIGTERM):
        for wave in graph.waves():
            _settle([(job, prefect_task(job.stage).submit(job, runtime)) for job in wave])


@contextmanager
def _stopping_jobs_on(*signals: signal.Signals) -> Iterator[None]:
    """Have these signals stop the jobs before anything else: Prefect waits until all that runs has ended, and what a
    handler raises may be caught on its way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signals}

    def handle(number: int, frame: FrameType | None) -> None:
        stop_jobs()
        known = before[signal.Signals(number)]
        if callable(known):
            known(number, frame)

    for number in signals:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)


def _settle(submitted: list[tuple[Job, Any]]) -> None:
    """Wait for all, so that nothing is half-done when the first error is raised."""
    for _, future in submitted:
        future.wait()
    for job, future in submitted:
        try:
            future.result()
        except VidistillError:
            raise
        except Exception as error:
            raise stage_failure(job, error) from error


def refuse_inside(experiment: DataRequest, runtime: Runtime) -> None:
    """A store inside the data folder would index its own clips.

    Raises:
        RequestError: it is so.
    """
    if experiment.data == SPRITES or "://" in runtime.store:
        return
    store, data = Path(runtime.store).expanduser().absolute(), Path(experiment.data).expanduser().absolute()
    if store.is_relative_to(data):
        raise RequestError(f"The store {store} lies inside the data folder {data}: name a --store outside it.")
