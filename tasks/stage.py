"""The seam between stages and Prefect: a stage is a kind, a version and a function; a job is one call of it.

A job knows its artifact's key before it runs, so the same list of jobs is planned, explained and executed. The store
alone decides what is cached; Prefect only shows it.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from vidistill.storage.errors import ArtifactDamaged, Stopped, TransientError
from vidistill.storage.keys import digest
from vidistill.storage.measuring import Cost
from vidistill.storage.opening import absolute, open_store
from vidistill.storage.parameters import Parameters
from vidistill.storage.provenance import commit, cores, machine, versions
from vidistill.storage.store import CHECKPOINT, ArtifactRef, Attempt, Manifest, Store
from vidistill.tasks.running.places import gpu_jobs, gpu_taken, threads_taken, video_seconds
from vidistill.tasks.running.stopping import go_on

if TYPE_CHECKING:
    from collections.abc import Iterator


RUNNERS = ("threads", "processes", "dask", "ray")


def known_runner(runner: str) -> str:
    kind, colon, address = runner.partition(":")
    if kind not in RUNNERS or (colon and (kind in RUNNERS[:2] or not address)):
        raise ValueError(f"choose threads, processes, dask, ray, dask:ADDRESS or ray:ADDRESS, not {runner!r}")
    return runner


class Runtime(Parameters):
    """Where and how a job runs: what may change rounding or speed, but not the result, and so is in no key."""

    store: Annotated[str, AfterValidator(absolute)] = Field(
        description="The artifact store: a folder or a URL such as s3://bucket/prefix."
    )
    data: str = Field(default="", description="The folder of videos: its content is in a key, its name is not.")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default_factory=cores, ge=1, description="CPU threads of a network.")
    methods: dict[str, str] = Field(
        default_factory=dict, description="Where users' methods are, by name: FILE.py:CLASS."
    )
    networks: dict[str, str] = Field(default_factory=dict, description="Where users' networks and fronts are, by name.")
    timeout_seconds: float = Field(default_factory=video_seconds, gt=0, description="Limit for decoding one video.")
    runner: Annotated[str, AfterValidator(known_runner)] = Field(
        default="threads", description="Who does the jobs: threads, processes, dask[:ADDRESS] or ray[:ADDRESS]."
    )
    gpu_jobs: int = Field(default_factory=gpu_jobs, ge=1, description="Jobs at a time on one GPU.")


class Job(Parameters):
    """One call of a stage: JSON, so that any worker can run it.

    Attributes:
        stage: the stage's kind.
        module: where it is declared.
        parameters: what changes the result.
        inputs: the artifacts that it reads, by name.
        label: what the user interface calls it.
        places: where the files are that the parameters know by name and digest, by name; in no key.
        declared: the stage's version where the job was made, 0 where nobody said; in no key.
    """

    stage: str
    module: str
    version: int
    parameters: dict[str, Any]
    inputs: dict[str, list[ArtifactRef]] = Field(default_factory=dict)
    label: str = ""
    places: dict[str, str] = Field(default_factory=dict)
    declared: int = 0

    @cached_property
    def ref(self) -> ArtifactRef:
        keys = {name: [str(ref) for ref in refs] for name, refs in self.inputs.items()}
        return ArtifactRef(kind=self.stage, key=digest([self.stage, self.version, self.parameters, keys]))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Job:
        """A copy, whose key is its own."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("ref", None)
        return copy

    @property
    def needs(self) -> list[ArtifactRef]:
        return [ref for refs in self.inputs.values() for ref in refs]

    @property
    def manifest(self) -> Manifest:
        return Manifest(
            kind=self.stage, key=self.ref.key, version=self.version, parameters=self.parameters, inputs=self.inputs
        )


class Work:
    """What a stage's function is given: its inputs, a folder to fill, a place for checkpoints, a progress bar."""

    def __init__(self, job: Job, runtime: Runtime, store: Store, attempt: Attempt) -> None:
        self.job = job
        self.runtime = runtime
        self.store = store
        self.folder = attempt.folder
        self.cost = Cost()
        self.threads = threads_of(job, runtime)
        self._attempt = attempt
        self._first: tuple[float, float] | None = None  # when the first progress was told of, and the share of then
        self._share = 0.0
        self._before = 0.0  # seconds that earlier attempts took as far as their checkpoint

    @property
    def seconds(self) -> float:
        """What the job has taken: all attempts, without what one did after its last checkpoint."""
        return self._before + self.cost.seconds

    def ref(self, name: str) -> ArtifactRef:
        return self.job.inputs[name][0]

    def refs(self, name: str) -> list[ArtifactRef]:
        return self.job.inputs.get(name, [])

    def input(self, name: str) -> Path:
        """The folder of the one artifact of this name."""
        return self.store.folder(self.ref(name))

    def record(self, **facts: Any) -> None:
        """Facts for the manifest: counts, seeds, device, threads, precision."""
        self._attempt.note(record=self._attempt.manifest.record | facts)

    def progress(self, done: int, total: int, note: str = "") -> None:
        self._share = done / max(1, total)
        self._first = self._first or (time.perf_counter(), self._share)
        report_progress(self.job.label or self.job.stage, done, total, note)

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Commit a checkpoint of this job; the one before it is removed once the new one is safe."""
        manifest = self._checkpoint_manifest(step)
        before = self._checkpoints()
        if manifest.ref in before:  # it could not be loaded, and the work began anew
            before.remove(manifest.ref)
            self.store.discard(manifest.ref)
        with self.store.writing(manifest) as attempt:
            if attempt is not None:
                write(attempt.folder)
                attempt.note(**self._so_far())
        for ref in before:
            self.store.discard(ref)

    def _so_far(self) -> dict[str, Any]:
        """Of a checkpoint: the share that is done and the seconds of a part of it, for plans, and all seconds spent."""
        since, first = self._first or (time.perf_counter(), self._share)
        record: dict[str, Any] = {"machine": machine(), "threads": max(1, self.threads)}
        record |= {"share": self._share, "measured_share": self._share - first, "spent_seconds": self.seconds}
        return {"seconds": time.perf_counter() - since, "record": record}

    def last_checkpoint(self) -> tuple[int, Path] | None:
        """The step and the folder of the newest whole checkpoint of an earlier attempt."""
        for ref in reversed(self._checkpoints()):
            if self.store.problem(ref, thorough=True) is None:
                facts = self.store.manifest(ref).record
                self._before = facts.get("spent_seconds", 0.0)
                self.record(resumed_share=facts.get("share", 0.0), resumed_seconds=self._before)
                return int(ref.key.rpartition("-")[2]), self.store.folder(ref)
        return None

    def _checkpoint_manifest(self, step: int) -> Manifest:
        key = f"{self.job.ref.key}-{step:08d}"
        return Manifest(kind=checkpoint_kind(self.job), key=key, version=self.job.version, parameters={}, inputs={})

    def _checkpoints(self) -> list[ArtifactRef]:
        return [ref for ref in self.store.refs(checkpoint_kind(self.job)) if ref.key.startswith(self.job.ref.key)]


def checkpoint_kind(job: Job) -> str:
    return f"{job.stage}{CHECKPOINT}"


class Stage:
    """A stage: calling it makes a job, which `run_job` does."""

    def __init__(self, kind: str, version: int, function: Callable[[Work], None], threads: Threads) -> None:
        self.kind, self.version, self.function, self.threads = kind, version, function, threads

    def __call__(
        self, parameters: Parameters | Mapping[str, Any], inputs: Mapping[str, Any] | None = None, label: str = "",
        version: int | None = None,
    ) -> Job:  # fmt: skip
        """A job; of a version of its own where its result moved and that of the stage's others did not."""
        plain = parameters.model_dump(mode="json") if isinstance(parameters, Parameters) else dict(parameters)
        refs = {name: value if isinstance(value, list) else [value] for name, value in (inputs or {}).items()}
        module = self.function.__module__
        return Job(stage=self.kind, module=module, version=version or self.version, parameters=plain, inputs=refs,
                   label=label, declared=self.version)  # fmt: skip


Threads = Literal["none", "one", "all"]
_stages: dict[str, Stage] = {}


def stage(kind: str, version: int, *, threads: Threads = "none") -> Callable[[Callable[[Work], None]], Stage]:
    """Declare a stage. Raise `version` whenever its result moves; a refactor that moves nothing keeps it.

    Args:
        kind: the artifact's kind, and the task's name in Prefect.
        version: part of the key.
        threads: `none`: no network runs; `one`: one thread, so that as many run side by side as there are threads;
            `all`: every thread, and no other network meanwhile.
    """

    def declare(function: Callable[[Work], None]) -> Stage:
        _stages[kind] = Stage(kind, version, function, threads)
        return _stages[kind]

    return declare


def stage_of(job: Job) -> Stage:
    importlib.import_module(job.module)
    return _stages[job.stage]


def threads_of(job: Job, runtime: Runtime) -> int:
    return {"none": 0, "one": 1, "all": runtime.threads}[stage_of(job).threads]


def run_job(job: Job, runtime: Runtime) -> tuple[ArtifactRef, bool]:
    """Do a job, unless the store has its artifact. Knows nothing of Prefect.

    Returns:
        The artifact's name, and whether it was there already.

    Raises:
        TransientError: the stage has another version here than where the job, and its key, was made.
    """
    store = open_store(runtime.store)
    if store.has(job.ref):
        tell(job, "cached")
        return job.ref, True
    declared = stage_of(job)
    if job.declared not in (0, declared.version):
        raise TransientError(
            f"The run makes {job.stage} by version {job.declared} and its worker by {declared.version}: restart the "
            "workers, which run another version of vidistill."
        )
    with store.writing(job.manifest) as attempt:
        if attempt is None:
            tell(job, "cached")
            return job.ref, True
        check_inputs(job, store)
        work = Work(job, runtime, store, attempt)
        with taken(work), _told(job), work.cost:
            declared.function(work)
        attempt.note(seconds=round(work.seconds, 3), peak_memory_bytes=work.cost.peak_memory_bytes)
        work.record(versions=versions(), commit=commit(), machine=machine())
    for ref in work._checkpoints():  # noqa: SLF001
        store.discard(ref)
    return job.ref, False


@contextmanager
def taken(work: Work) -> Iterator[None]:
    """Hold the threads that a job's networks run on, and a place on a GPU where they run on one."""
    with threads_taken(work.threads, work.runtime.threads):
        if not work.threads:
            yield
            return
        importlib.import_module("torch")  # which takes seconds: they are not those of the first job
        with gpu_taken(work.runtime.device, work.runtime.gpu_jobs):
            yield


def check_inputs(job: Job, store: Store) -> None:
    """Every byte of what a job is about to read.

    Raises:
        ArtifactDamaged: naming the artifact, the file and what to do.
    """
    for ref in job.needs:
        problem = store.problem_once(ref)
        if problem is not None:
            raise ArtifactDamaged(f"{ref}, which {job.ref} needs, is damaged ({problem}): run again to rebuild it.")


ProgressListener = Callable[[str, int, int, str], None]
_listeners: list[ProgressListener] = []
Event = Literal["began", "made", "cached", "failed", "stopped"]
Watcher = Callable[[Job, Event], None]
_watchers: list[Watcher] = []


def report_progress(label: str, done: int, total: int, note: str = "") -> None:
    """Tell how far a job is.

    Raises:
        Stopped: it is to go no further.
    """
    go_on()
    tell_progress(label, done, total, note)


def tell_progress(label: str, done: int, total: int, note: str) -> None:
    for listener in _listeners:
        listener(label, done, total, note)


@contextmanager
def listening(listener: ProgressListener) -> Iterator[None]:
    """Call `listener(label, done, total, note)` whenever a job of this process makes progress."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Call `watcher(job, event)` when a job of this process has its threads and begins, and when it ends."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def tell(job: Job, event: Event) -> None:
    for watcher in _watchers:
        watcher(job, event)


@contextmanager
def _told(job: Job) -> Iterator[None]:
    tell(job, "began")
    try:
        yield
    except BaseException as error:
        tell(job, "stopped" if isinstance(error, Stopped) else "failed")
        raise
    tell(job, "made")
