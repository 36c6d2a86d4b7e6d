"""Who does the jobs of a flow: threads of its process, processes of this machine, a Dask cluster, or Ray.

The engines are Prefect's own process runner, prefect-dask and prefect-ray. What a job may take of its machine, and what
it and the flow tell each other, is the same on each (tasks/running).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vidistill.storage.errors import RequestError, TransientError
from vidistill.storage.provenance import cores
from vidistill.tasks.running.line import LOOPBACK, answering
from vidistill.tasks.running.performing import prefect_task
from vidistill.tasks.stage import Job, Runtime, stage_of

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

WORKERS = cores()
"""Jobs that a flow runs at a time on one machine."""
PACKAGES = {"dask": "prefect_dask", "ray": "prefect_ray"}
DASK = {
    "n_workers": WORKERS, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None,
    "silence_logs": logging.ERROR,
}  # fmt: skip
"""Of a cluster of our own: one job a process; nothing is spilled, since the results of jobs are references."""
RAY = {"include_dashboard": False, "configure_logging": False, "log_to_driver": False}
_caller: ContextVar[str] = ContextVar("caller", default="")


def check_runner(runner: str) -> None:
    """Find out early that an engine is not installed.

    Raises:
        RequestError: it is so.
    """
    kind = runner.partition(":")[0]
    if importlib.util.find_spec(PACKAGES.get(kind, "vidistill")) is None:
        raise RequestError(f"The runner {kind} is not installed: pip install 'vidistill[{kind}]'.")


@contextmanager
def jobs_done_by(runtime: Runtime) -> Iterator[None]:
    """While open, the flow that runs now hands its jobs to the runner that its runtime names.

    Raises:
        RequestError: its engine is not installed.
        TransientError: the engine does not start, or does not answer.
    """
    from prefect.context import FlowRunContext

    kind, _, address = runtime.runner.partition(":")
    flow = FlowRunContext.get()
    if flow is None:
        yield
        return
    check_runner(runtime.runner)
    with ExitStack() as held:
        engine = _started(kind, address, held)
        held.enter_context(flow.model_copy(update={"task_runner": engine}))
        if kind != "threads":
            caller = held.enter_context(answering(_own_address(address) if address else LOOPBACK))
            held.callback(_caller.reset, _caller.set(caller))
        yield


def submit(job: Job, runtime: Runtime, after: Sequence[PrefectFuture[Any]]) -> PrefectFuture[Any]:
    """Hand a job to the flow's runner."""
    with _placed(job, runtime), _interrupts_held():
        return prefect_task(job.stage).submit(job, runtime, _caller.get(), return_state=False, wait_for=after)


def _started(kind: str, address: str, held: ExitStack) -> Any:
    if kind in {"processes", "dask"}:
        resource_tracker.ensure_running()  # else the engine starts it, which ends a hold of interrupts
    try:
        with _interrupts_held():
            engine = held.enter_context(_engine(kind, address))
            if kind == "dask":
                _ = engine.client  # which makes or finds the cluster
    except Exception as error:
        place = f" at {address}" if address else ""
        raise TransientError(f"The runner {kind}{place} does not start: {type(error).__name__}: {error}") from error
    return engine


def _engine(kind: str, address: str) -> Any:
    if kind == "dask":
        from prefect_dask import DaskTaskRunner

        logging.getLogger("distributed").setLevel(logging.ERROR)
        return DaskTaskRunner(address=address) if address else DaskTaskRunner(cluster_kwargs=DASK)
    if kind == "ray":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not address:
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # the default, which unset is told in a line each time
        from prefect_ray import RayTaskRunner

        logging.getLogger("ray").setLevel(logging.ERROR)
        place = {"address": address} if address else {"address": "local", "num_cpus": WORKERS}
        return RayTaskRunner(init_kwargs=RAY | place)  # its own `address="auto"` starts a Ray where there is none
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    if kind == "threads":
        return ThreadPoolTaskRunner(max_workers=WORKERS)
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")  # after a run that was cut off
    return ProcessPoolTaskRunner(max_workers=WORKERS)


def _placed(job: Job, runtime: Runtime) -> AbstractContextManager[Any]:
    """A job whose network may run on a GPU goes to a worker that has one, where the cluster has any."""
    from prefect.context import FlowRunContext

    kind, flow = runtime.runner.partition(":")[0], FlowRunContext.get()
    if stage_of(job).threads == "none" or runtime.device == "cpu" or kind not in PACKAGES or flow is None:
        return nullcontext()
    if kind == "ray":
        import ray
        from prefect_ray.context import remote_options

        return remote_options(num_gpus=1 / runtime.gpu_jobs) if ray.cluster_resources().get("GPU") else nullcontext()
    import dask

    cluster: Any = flow.task_runner
    workers = cluster.client.scheduler_info(n_workers=-1)["workers"].values()
    return dask.annotate(resources={"GPU": 1}) if any("GPU" in one["resources"] for one in workers) else nullcontext()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes that are started meanwhile do not hear Ctrl-C, which a terminal sends to all: the flow stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _own_address(address: str) -> str:
    """This machine's address as a cluster's machines see it."""
    place = urlsplit(address if "://" in address else f"tcp://{address}")
    if place.port is None:  # ray:auto
        import ray

        return str(ray.util.get_node_ip_address())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect((place.hostname, place.port))  # sends nothing
        own: str = asked.getsockname()[0]
    return own
