"""Running a graph of jobs under Prefect: damage is found first, then each job runs once its inputs are made."""

from __future__ import annotations

import logging
import signal
import threading
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from vidistill.flows.experiment import Graph
from vidistill.flows.parameters import SPRITES, DataRequest
from vidistill.flows.runners import WORKERS, submit
from vidistill.storage.errors import DivergedError, RequestError, RunError, Stopped, TransientError, VidistillError
from vidistill.storage.files import expanded
from vidistill.storage.leases import leased
from vidistill.storage.manifests import ABSENT
from vidistill.storage.opening import VARIABLE, default_location, open_store
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.running.stopping import start_jobs, stop_jobs
from vidistill.tasks.stage import Job, Runtime
from vidistill.tasks.videos.index import IndexTable, survey
from vidistill.tasks.videos.sprites_stage import sprites_job

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import FrameType

    from prefect.futures import PrefectFuture

log = logging.getLogger("vidistill")


def data_runtime(experiment: DataRequest, runtime: Runtime) -> Runtime:
    """The runtime with the data's place: the folder that is named, or where the store keeps the rendered sprites."""
    if experiment.data == SPRITES:
        store = open_store(runtime.store)
        return runtime.model_copy(update={"data": str(store.folder(sprites_job(experiment.sprites).ref))})
    return runtime.model_copy(update={"data": str(expanded(experiment.data).absolute())})


def from_the_root(place: Path, name: str) -> Path:
    """A deployed run's place, which its worker does not look for in a folder that is removed with the run.

    Raises:
        RequestError: it does not begin at the root.
    """
    whole = expanded(place)
    if not whole.is_absolute():
        raise RequestError(f"{name} is {str(place)!r}, which would lie in the run's own folder and go with it: "
                           "give its whole path.")  # fmt: skip
    return whole


def deployed_places(runtime: Mapping[str, Any] | None, out: str | Path | None, form: str = "") -> Path | None:
    """See that what a deployed run makes outlives its worker's folder.

    Args:
        runtime: its parameters as they were given, before any path was made whole.
        out: where the report goes.
        form: what stands before their names.

    Returns:
        The report's whole path.

    Raises:
        RequestError: the store or the report does not begin at the root.
    """
    own = (runtime or {}).get("store")
    store = str(own or default_location())
    if "://" not in store:
        from_the_root(Path(store), f"{form}runtime.store" if own else VARIABLE)
    return from_the_root(Path(out), f"{form}out") if out else None


def find_videos(experiment: DataRequest, runtime: Runtime) -> IndexTable:
    return survey(Path(runtime.data), experiment.index, workers=WORKERS, timeout_seconds=runtime.timeout_seconds)


def found_videos(request: DataRequest, runtime: Runtime) -> tuple[Runtime, IndexTable]:
    """The runtime with the data's place, and its videos; sprites are rendered first."""
    if request.data == SPRITES:
        run_graph(Graph({(job := sprites_job(request.sprites)).ref: job}), runtime)
    runtime = data_runtime(request, runtime)
    return runtime, find_videos(request, runtime)


def discard_damaged(graph: Graph, store: Store) -> list[str]:
    """Remove artifacts of this graph that are not whole, so that they are made again.

    What is about to be read is checked byte for byte; what is only passed on, by its files' sizes (small artifacts
    always byte for byte).

    Returns:
        A sentence an artifact.
    """
    said: list[str] = []
    problems = store.problems(graph.jobs)
    checked: set[ArtifactRef] = set()

    def absent(ref: ArtifactRef) -> bool:
        """Whether an artifact has to be made: one that is not whole is removed."""
        problem = problems[ref]
        if problem not in (None, ABSENT):
            problem = store.problem(ref, thorough=True)  # another run may have mended it meanwhile
        if problem not in (None, ABSENT):
            store.discard(ref)
            said.append(f"{ref} was damaged ({problem}) and is made again.")
            problem = ABSENT
        problems[ref] = problem
        return problem is not None

    for job in reversed(list(graph.jobs.values())):
        if absent(job.ref):
            for need in job.needs:
                if need in graph.jobs and need not in checked:
                    checked.add(need)
                    problems[need] = store.problem(need, thorough=True)
                    absent(need)
    return said


def run_graph(graph: Graph, runtime: Runtime) -> None:
    """Make every job of a graph; a failed one ends the run, after everything that does not need it has been made.

    Raises:
        VidistillError: the first that failed; errors of others are logged.
    """
    errors = list(attempt_graph(graph, runtime).values())
    log_failures(errors[1:], said=errors[:1])
    if errors:
        raise errors[0]


def log_failures(errors: Iterable[VidistillError], said: Iterable[VidistillError] = ()) -> None:
    """Each reason once, but for those that are said elsewhere, with the way there that its notes show."""
    elsewhere = {_why(error) for error in said}
    for error in {why: error for error in errors if (why := _why(error)) not in elsewhere}.values():
        log.error("\n".join([str(error), *getattr(error, "__notes__", [])]))


def _why(error: VidistillError) -> str:
    """Without the artifact's name, where a store cannot be written (`NotMade`): one full disk is one reason."""
    return str(error).rpartition(" could not be made: ")[2]


def attempt_graph(graph: Graph, runtime: Runtime) -> dict[ArtifactRef, VidistillError]:
    """Make every job of a graph that can be made, while a lease keeps `vidistill gc` from what they read and make.

    Returns:
        The jobs that failed, in that order: what a stage raised on purpose, or the sentence for what nobody foresaw.
        What needs one of them was not tried; everything else is made.

    Raises:
        Stopped: somebody asked the run to stop.
    """
    needs = {*graph.jobs, *(need for job in graph.jobs.values() for need in job.needs)}
    with leased(open_store(runtime.store), needs) as lease:
        failed = _attempt(graph, runtime)
        lease.unfinished = bool(failed)
    return failed


def _attempt(graph: Graph, runtime: Runtime) -> dict[ArtifactRef, VidistillError]:
    """Submit each job to the flow's task runner as soon as its inputs are made."""
    for sentence in discard_damaged(graph, open_store(runtime.store)):
        log.warning(sentence)
    start_jobs()
    needed = {ref: [need for need in job.needs if need in graph.jobs] for ref, job in graph.jobs.items()}
    order = TopologicalSorter(needed)
    order.prepare()
    submitted: dict[ArtifactRef, PrefectFuture[Any]] = {}
    running: dict[PrefectFuture[Any], ArtifactRef] = {}
    ended: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
    failed: dict[ArtifactRef, VidistillError] = {}
    with _stopping_jobs_on(signal.SIGINT, signal.SIGTERM):
        while (ready := order.get_ready()) or running:
            for ref in ready:
                submitted[ref] = submit(graph.jobs[ref], runtime, [submitted[need] for need in needed[ref]])
                running[submitted[ref]] = ref
                submitted[ref].add_done_callback(ended.put)
            future = ended.get()
            ref = running.pop(future)
            error = _error_of(graph.jobs[ref], future)
            if error is None:
                order.done(ref)
            else:
                failed[ref] = error
    for error in failed.values():
        if isinstance(error, Stopped):
            raise error
    return failed


def _error_of(job: Job, future: PrefectFuture[Any]) -> VidistillError | None:
    try:
        future.result()
    except DivergedError as error:
        return DivergedError(f"{job.label or job.stage}: {error}")
    except VidistillError as error:
        return error
    except BrokenExecutor:
        return TransientError(
            "A process that did jobs of this run has ended, killed or out of memory: run the same command again to go "
            "on from here."
        )
    except Exception as error:  # noqa: BLE001
        failure = _unforeseen(job, error)
        failure.__cause__ = error
        return failure
    return None


def _unforeseen(job: Job, error: BaseException) -> RunError:
    return RunError(f"The stage {job.label or job.stage} ({job.ref}) failed: {type(error).__name__}: {error}")


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


def refuse_inside(experiment: DataRequest, runtime: Runtime) -> None:
    """A store inside the data folder would index its own clips.

    Raises:
        RequestError: it is so.
    """
    if experiment.data == SPRITES or "://" in runtime.store:
        return
    store, data = Path(runtime.store), expanded(experiment.data).absolute()
    if store.is_relative_to(data):
        raise RequestError(f"The store {store} lies inside the data folder {data}: name a --store outside it.")
