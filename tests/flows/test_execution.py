"""A graph of jobs under Prefect: what waits for what, and what a failure leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterName
from prefect.task_runners import ThreadPoolTaskRunner

from vidistill.flows.execution import attempt_graph, discard_damaged, run_graph
from vidistill.flows.experiment import Graph
from vidistill.storage.errors import RequestError, RunError, Stopped, StoreError, StoreUnreachable, VidistillError
from vidistill.storage.opening import open_store
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.stage import Job, Runtime, Work, stage

pytestmark = pytest.mark.usefixtures("prefect_server")
chain_ended = threading.Event()


@stage("step-quick", version=1)
def quick(work: Work) -> None:
    work.record(counts={"inputs": len(work.refs("before"))})
    if work.job.parameters.get("last"):
        chain_ended.set()


@stage("step-patient", version=1)
def patient(work: Work) -> None:
    """Ends after a chain that does not need it."""
    assert chain_ended.wait(60)


@stage("step-wrong", version=1)
def wrong(work: Work) -> None:
    raise RequestError("The request was wrong.")


@stage("step-broken", version=1)
def broken(work: Work) -> None:
    raise ZeroDivisionError("by nothing")


@stage("step-stopped", version=1)
def stopped(work: Work) -> None:
    raise Stopped("The run was stopped.")


tried: list[str] = []


@stage("step-flaky", version=1)
def flaky(work: Work) -> None:
    """The store does not answer the first time."""
    tried.append("flaky")
    if tried.count("flaky") == 1:
        raise StoreUnreachable("The store s3://bucket cannot be reached (503).")


@stage("step-refused", version=1)
def refused(work: Work) -> None:
    tried.append("refused")
    raise StoreError("The store s3://bucket cannot be reached (access denied).")


Run = Callable[[list[Job]], None]


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(store=str(tmp_path / "store"), threads=2)


@pytest.fixture
def run(runtime: Runtime) -> Run:
    """Run a graph of these jobs with two workers."""

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=2))  # type: ignore[arg-type]
    def graph_of(jobs: list[Job]) -> None:
        run_graph(Graph({job.ref: job for job in jobs}), runtime)

    return graph_of


def after(job: Job, number: int, **parameters: object) -> Job:
    return quick({"number": number, **parameters}, {"before": job.ref}, label=f"step {number}")


def made(runtime: Runtime, *jobs: Job) -> list[bool]:
    store = open_store(runtime.store)
    return [store.has(job.ref) for job in jobs]


def test_what_another_run_has_mended_meanwhile_is_left(
    run: Run, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = quick({"number": 0})
    run([job])
    store = open_store(runtime.store)
    monkeypatch.setattr(store, "problems", lambda refs: dict.fromkeys(refs, "a file was not its own"))
    assert discard_damaged(Graph({job.ref: job}), store) == []
    assert made(runtime, job) == [True]
    monkeypatch.setattr(store, "problem", lambda *_, **__: "a file is not its own")
    (said,) = discard_damaged(Graph({job.ref: job}), store)
    assert said.endswith("was damaged (a file is not its own) and is made again.")
    assert made(runtime, job) == [False]


def test_a_job_waits_for_its_inputs_and_for_nothing_else(run: Run, runtime: Runtime) -> None:
    chain_ended.clear()
    slow, first = patient({}), quick({"number": 0})
    second = after(first, 1)
    third = after(second, 2, last=True)
    run([slow, first, second, third])
    assert made(runtime, slow, third) == [True, True]


@pytest.mark.parametrize(
    ("failing", "error", "sentence"),
    [
        (wrong({}), RequestError, r"^The request was wrong\.$"),
        (broken({}), RunError, r"^The stage step-broken \(step-broken/\w+\) failed: ZeroDivisionError: by nothing$"),
    ],
)
def test_a_failure_leaves_out_what_needs_it_and_is_raised_in_the_end(
    run: Run, runtime: Runtime, failing: Job, error: type[Exception], sentence: str
) -> None:
    dependent, first = after(failing, 0), quick({"number": 1})
    second = after(first, 2)
    last = quick({"number": 3}, {"before": [dependent.ref, second.ref]})
    with pytest.raises(error, match=sentence):
        run([failing, dependent, first, second, last])
    assert made(runtime, failing, dependent, first, second, last) == [False, False, True, True, False]


def test_every_failure_is_told_with_what_caused_it(runtime: Runtime) -> None:
    first, second, good = wrong({}), broken({}), quick({"number": 20})
    jobs = [first, second, good, after(first, 21)]

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=2))  # type: ignore[arg-type]
    def attempt() -> dict[ArtifactRef, VidistillError]:
        return attempt_graph(Graph({job.ref: job for job in jobs}), runtime)

    failed = attempt()
    assert {ref: str(error).split(":")[-1].strip() for ref, error in failed.items()} == {
        first.ref: "The request was wrong.",
        second.ref: "by nothing",
    }
    assert made(runtime, *jobs) == [False, False, True, False]


def test_only_a_store_that_does_not_answer_is_tried_again(run: Run, runtime: Runtime) -> None:
    good, bad = flaky({}), refused({})
    with pytest.raises(StoreError, match="access denied"):
        run([good, bad])
    assert made(runtime, good) == [True]
    assert sorted(tried) == ["flaky", "flaky", "refused"]


def test_a_stop_is_no_failure(run: Run) -> None:
    with pytest.raises(Stopped):
        run([broken({}), stopped({})])


def test_prefect_knows_which_task_waited_for_which(run: Run) -> None:
    first = quick({"number": 10}, label="first of two")
    second = quick({"number": 11}, {"before": first.ref}, label="second of two")
    run([first, second])
    named = TaskRunFilter(name=TaskRunFilterName(any_=["first of two", "second of two"]))
    with get_client(sync_client=True) as client:
        runs = {task.name: task for task in client.read_task_runs(task_run_filter=named)}
    upstream = [one.id for one in runs["second of two"].task_inputs["wait_for"]]
    assert upstream == [runs["first of two"].id]


def test_an_input_that_is_no_job_of_the_graph_is_the_store_s(run: Run, runtime: Runtime) -> None:
    absent = ArtifactRef(kind="step-quick", key="0" * 24)
    with pytest.raises(RunError, match=r"no artifact"):
        run([quick({"number": 0}, {"before": absent})])
