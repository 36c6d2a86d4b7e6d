"""The Prefect task around a stage: named for what it does, never cached by Prefect itself."""

from __future__ import annotations

import re
import time
from functools import cache
from logging import getLogger
from typing import TYPE_CHECKING, Any
from uuid import UUID

from vidistill.storage.errors import StoreUnreachable
from vidistill.storage.keys import digest
from vidistill.storage.opening import open_store
from vidistill.storage.store import ArtifactRef, Manifest
from vidistill.tasks.running.line import calling
from vidistill.tasks.running.places import sharing_threads
from vidistill.tasks.running.stopping import go_on
from vidistill.tasks.stage import Job, Runtime, listening, run_job

if TYPE_CHECKING:
    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun

INTERVAL_SECONDS = 3.0
REST_SECONDS = 60.0
"""After the server did not take a job's progress: asking it again holds the job up."""
EVENTS = {"index": "vidistill.data.changed"}
"""What Prefect hears, and automations may wait for, when the job of this label had something to do."""
RETRY_SECONDS = [5.0, 60.0]

log = getLogger("vidistill")


@cache
def prefect_task(kind: str) -> Task[[Job, Runtime, str], Any]:
    """The Prefect task of a stage."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    made = task(
        name=kind,
        task_run_name="{job.label}",
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRY_SECONDS),
        retry_delay_seconds=RETRY_SECONDS,
        retry_condition_fn=may_pass,
    )
    return made(perform)


def may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether to try again: the store did not answer. A wrong request stays wrong, and a broken stage broken."""
    error: Any = state.result(raise_on_failure=False)
    while isinstance(error, BaseException) and not isinstance(error, StoreUnreachable):
        error = error.__cause__
    return error is not None


def perform(job: Job, runtime: Runtime, caller: str = "") -> ArtifactRef | State[ArtifactRef]:
    """A task's body: the artifact's name, in a state called Cached where nothing had to be done.

    Args:
        job: what to do.
        runtime: where and how.
        caller: the flow's process, where this is another one; see `line.answering`.
    """
    from prefect.states import Completed

    shared_as = digest(runtime.runner.partition(":")[2] or caller) if caller else ""
    with calling(job, caller), sharing_threads(shared_as), listening(Published(job)):
        go_on()
        ref, cached = run_job(job, runtime)
    if job.label in EVENTS and not cached:
        _emit(EVENTS[job.label], open_store(runtime.store).manifest(ref))
    return Completed(name="Cached", data=ref) if cached else ref


def _emit(event: str, made: Manifest) -> None:
    from prefect.events import emit_event

    facts = {"artifact": str(made.ref)} | {name: made.record[name] for name in ("dataset", "counts")}
    emit_event(event, {"prefect.resource.id": f"vidistill.data.{made.record['dataset']}"}, payload=facts)


class Published:
    """A job's progress in the Prefect UI, where it takes longer than a few seconds."""

    def __init__(self, job: Job) -> None:
        self._name = job.label or job.stage
        self._shown = time.monotonic()
        self._artifact: UUID | None = None

    def __call__(self, label: str, done: int, total: int, note: str) -> None:
        from prefect.context import TaskRunContext

        finished = done == total and self._artifact is not None
        late = time.monotonic() - self._shown >= (0.0 if finished else INTERVAL_SECONDS)
        if label != self._name or not late or TaskRunContext.get() is None:
            return
        try:
            self._show(label, 100.0 * done / max(1, total), note)
            self._shown = time.monotonic()
        except Exception as error:  # noqa: BLE001
            log.warning("The progress of %s is not shown: %s", label, error)
            self._shown = time.monotonic() + REST_SECONDS

    def _show(self, label: str, percent: float, note: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if self._artifact is None:
            key = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
            made = create_progress_artifact(progress=percent, key=key, description=note or label)
            self._artifact = made  # type: ignore[assignment]
        else:
            update_progress_artifact(self._artifact, progress=percent)
