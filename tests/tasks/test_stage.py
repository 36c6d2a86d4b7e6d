"""Stages and jobs, by tiny stages that a module on the path declares."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vidistill.storage import store as store_module
from vidistill.storage.errors import ArtifactDamaged, RequestError, TransientError
from vidistill.storage.opening import open_store
from vidistill.storage.store import Manifest
from vidistill.tasks import stage as stage_module
from vidistill.tasks.running.performing import prefect_task
from vidistill.tasks.stage import Job, Runtime, checkpoint_kind, listening, run_job

MODULE = '''
import os
import threading
import time

from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.tasks.stage import Work, stage


class Words(Parameters):
    text: str = "a"
    times: int = 2


calls = []
crash_before = set()
inside, most = [], []


@stage("tiny", version=1)
def tiny(work: Work) -> None:
    calls.append(work.job.label)
    said = "".join((work.store.folder(ref) / "text").read_text() for ref in work.refs("before"))
    parameters = Words.model_validate(work.job.parameters)
    for done in range(parameters.times):
        said += parameters.text
        work.progress(done + 1, parameters.times, said)
    (work.folder / "text").write_text(said)
    work.record(counts={"letters": len(said)})
    work.record(seeds=[0])


@stage("tiny-wrong", version=1)
def wrong(work: Work) -> None:
    (work.folder / "half").write_text("half")
    raise RequestError("The request was wrong.")


@stage("tiny-long", version=1)
def long(work: Work) -> None:
    """Six steps with a checkpoint after every second."""
    found = work.last_checkpoint()
    first, said = (found[0], (found[1] / "text").read_text()) if found else (0, "")
    calls.append(first)
    for step in range(first, 6):
        if step in crash_before:
            crash_before.remove(step)
            raise ZeroDivisionError(step)
        if os.environ.get("TINY_HANG") == str(step):
            print("hangs", flush=True)
            time.sleep(60)
        said += str(step)
        time.sleep(work.job.parameters.get("seconds", 0.0))
        work.progress(step + 1, 6)
        if step % 2:
            work.checkpoint(step + 1, lambda folder: (folder / "text").write_text(said))
    (work.folder / "text").write_text(said)


def stay(work: Work) -> None:
    inside.append(work.threads)
    most.append(list(inside))
    time.sleep(work.job.parameters.get("seconds", 0.1))
    inside.remove(work.threads)


none = stage("tiny-none", version=1, threads="none")(stay)
one = stage("tiny-one", version=1, threads="one")(stay)
all_of_them = stage("tiny-all", version=1, threads="all")(stay)
'''


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("path")
    (folder / "tiny_stages.py").write_text(MODULE)
    return folder


@pytest.fixture
def tiny(path, monkeypatch):
    monkeypatch.syspath_prepend(str(path))
    module = importlib.import_module("tiny_stages")
    for list_ in (module.calls, module.crash_before, module.inside, module.most):
        list_.clear()
    return module


@pytest.fixture
def runtime(tmp_path):
    return Runtime(store=str(tmp_path / "store"), threads=2)


def text_of(job: Job, runtime: Runtime) -> str:
    return (open_store(runtime.store).folder(job.ref) / "text").read_text()


def chain(tiny) -> tuple[Job, Job]:
    first = tiny.tiny(tiny.Words(), label="first")
    return first, tiny.tiny(tiny.Words(text="b"), {"before": first.ref}, label="second")


# --- keys --------------------------------------------------------------------------------------------------------


def test_a_job_is_json_and_its_name_is_the_same_in_every_process(tiny, path):
    job = chain(tiny)[1]
    assert Job.model_validate_json(job.model_dump_json()).ref == job.ref
    code = "import sys; from vidistill.tasks.stage import Job; print(Job.model_validate_json(sys.argv[1]).ref)"
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, job.model_dump_json()]
        done = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        assert done.stdout.strip() == str(job.ref), done.stderr


def test_what_changes_the_result_changes_the_key(tiny):
    first, job = chain(tiny)
    others = [
        job.model_copy(update={"version": 2}),
        job.model_copy(update={"stage": "other"}),
        tiny.tiny(tiny.Words(text="b", times=3), {"before": first.ref}),
        tiny.tiny(tiny.Words(text="b"), {"before": job.ref}),
        tiny.tiny(tiny.Words(text="b"), {"before": [first.ref, first.ref]}),
        tiny.tiny(tiny.Words(text="b"), {"after": first.ref}),
        tiny.tiny(tiny.Words(text="b")),
    ]
    assert len({other.ref for other in [job, *others]}) == len(others) + 1


def test_the_order_of_parameters_and_the_label_do_not(tiny):
    assert tiny.tiny({"text": "a", "times": 2}, label="x").ref == tiny.tiny({"times": 2, "text": "a"}).ref
    assert tiny.tiny(tiny.Words()).ref == tiny.tiny({"text": "a", "times": 2}).ref


def test_where_and_how_a_job_runs_is_not_in_its_artifact(tiny, tmp_path):
    jobs = chain(tiny)
    files = []
    for name, threads, device in (("here", 1, "cpu"), ("there", 2, "auto")):
        runtime = Runtime(
            store=str(tmp_path / name), data=str(tmp_path / f"data-{name}"), threads=threads, device=device
        )
        refs = [run_job(job, runtime)[0] for job in jobs]
        assert refs == [job.ref for job in jobs]
        manifest = open_store(runtime.store).manifest(refs[1])
        assert str(tmp_path) not in manifest.model_dump_json()
        files.append(manifest.files)
    assert files[0] == files[1]


# --- running -----------------------------------------------------------------------------------------------------


def test_a_job_runs_once(tiny, runtime):
    first, second = chain(tiny)
    assert [run_job(job, runtime) for job in (first, second, first, second)] == [
        (first.ref, False), (second.ref, False), (first.ref, True), (second.ref, True),
    ]  # fmt: skip
    assert tiny.calls == ["first", "second"]
    assert text_of(second, runtime) == "aabb"


def test_the_manifest_says_what_and_from_what_and_with_what(tiny, runtime):
    first, second = chain(tiny)
    for job in (first, second):
        run_job(job, runtime)
    manifest = open_store(runtime.store).manifest(second.ref)
    assert manifest.inputs == {"before": [first.ref]}
    assert manifest.parameters == {"text": "b", "times": 2}
    assert manifest.record["counts"] == {"letters": 4}
    assert manifest.record["seeds"] == [0]
    assert manifest.record["versions"]["numpy"] == importlib.import_module("numpy").__version__
    assert manifest.seconds >= 0
    assert manifest.peak_memory_bytes > 1 << 20


def test_another_version_is_made_beside_the_old_one(tiny, runtime):
    job = chain(tiny)[0]
    newer = job.model_copy(update={"version": 2})
    assert [run_job(job, runtime)[1], run_job(newer, runtime)[1]] == [False, False]
    assert set(open_store(runtime.store).refs()) == {job.ref, newer.ref}


def test_a_worker_of_another_version_makes_nothing_under_the_run_s_keys(tiny, runtime, monkeypatch):
    job = chain(tiny)[0]
    monkeypatch.setattr(tiny.tiny, "version", 2)
    with pytest.raises(TransientError, match=r"^The run makes tiny by version 1 and its worker by 2: restart the work"):
        run_job(job, runtime)
    assert open_store(runtime.store).refs() == []


def test_a_stage_that_raises_leaves_nothing(tiny, runtime):
    with pytest.raises(RequestError, match=r"^The request was wrong\.$"):
        run_job(tiny.wrong({}), runtime)
    assert open_store(runtime.store).refs() == []


@pytest.mark.parametrize("full_check_bytes", [64 << 20, 1])
def test_a_damaged_input_is_named_before_it_is_read(tiny, runtime, monkeypatch, full_check_bytes):
    monkeypatch.setattr(store_module, "FULL_CHECK_BYTES", full_check_bytes)
    first, second = chain(tiny)
    run_job(first, runtime)
    file = open_store(runtime.store).folder(first.ref) / "text"
    file.write_text("ax")
    with pytest.raises(ArtifactDamaged) as error:
        run_job(second, runtime)
    assert str(error.value) == (
        f"{first.ref}, which {second.ref} needs, is damaged (text does not have its checksum): run again to rebuild it."
    )
    assert tiny.calls == ["first"]
    assert open_store(runtime.store).problem(second.ref) == "no artifact"


def test_an_absent_input_is_named(tiny, runtime):
    second = chain(tiny)[1]
    with pytest.raises(ArtifactDamaged, match=r"no artifact"):
        run_job(second, runtime)


# --- threads -----------------------------------------------------------------------------------------------------


def side_by_side(jobs: list[Job], runtime: Runtime) -> None:
    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(lambda job: run_job(job, runtime), jobs))


def test_stages_that_take_every_thread_do_not_overlap(tiny, runtime):
    side_by_side([tiny.all_of_them({"number": number}) for number in range(4)], runtime)
    assert tiny.most == [[2]] * 4


def test_stages_of_one_thread_run_as_many_as_there_are_threads(tiny, runtime):
    side_by_side([tiny.one({"number": number}) for number in range(5)], runtime)
    assert max(map(sum, tiny.most)) == 2


def test_networks_never_take_more_threads_than_there_are(tiny, runtime):
    jobs = [make({"number": number}) for number in range(3) for make in (tiny.one, tiny.all_of_them)]
    side_by_side(jobs, runtime)
    assert max(map(sum, tiny.most)) == 2
    assert len(tiny.most) == 6


def test_a_stage_of_every_thread_is_not_overtaken(tiny, runtime):
    threads = []
    for make in (tiny.one, tiny.all_of_them, tiny.one):
        threads.append(threading.Thread(target=run_job, args=(make({"seconds": 0.8, "place": len(threads)}), runtime)))
        threads[-1].start()
        time.sleep(0.25)
    for thread in threads:
        thread.join()
    assert tiny.most == [[1], [2], [1]]


def test_stages_without_networks_wait_for_nobody(tiny, runtime):
    long = threading.Thread(target=run_job, args=(tiny.all_of_them({"seconds": 1.0}), runtime))
    long.start()
    while not tiny.inside:
        time.sleep(0.01)
    begin = time.monotonic()
    run_job(tiny.none({}), runtime)
    assert time.monotonic() - begin < 0.8
    assert [2, 0] in tiny.most
    long.join()


# --- checkpoints -------------------------------------------------------------------------------------------------


def checkpoints(job: Job, runtime: Runtime) -> list[int]:
    refs = open_store(runtime.store).refs(checkpoint_kind(job))
    assert all(ref.key.startswith(job.ref.key) for ref in refs)
    return [int(ref.key.rpartition("-")[2]) for ref in refs]


def crash(tiny, job: Job, runtime: Runtime, step: int) -> None:
    tiny.crash_before.add(step)
    with pytest.raises(ZeroDivisionError):
        run_job(job, runtime)


def test_a_job_goes_on_from_its_newest_checkpoint(tiny, runtime):
    job = tiny.long({})
    crash(tiny, job, runtime, 1)
    assert checkpoints(job, runtime) == []
    crash(tiny, job, runtime, 3)
    assert checkpoints(job, runtime) == [2]
    crash(tiny, job, runtime, 5)
    assert checkpoints(job, runtime) == [4]  # the older one is gone
    run_job(job, runtime)
    assert tiny.calls == [0, 0, 2, 4]
    assert text_of(job, runtime) == "012345"
    assert checkpoints(job, runtime) == []
    assert open_store(runtime.store).refs() == [job.ref]


def test_a_checkpoint_says_how_far_its_job_was_and_the_artifact_where_it_went_on(tiny, runtime):
    job, store = tiny.long({}), open_store(runtime.store)
    crash(tiny, job, runtime, 5)
    (kept,) = store.refs(checkpoint_kind(job))
    manifest = store.manifest(kept)
    assert manifest.record["share"] == pytest.approx(4 / 6)
    assert manifest.record["measured_share"] == pytest.approx(3 / 6)  # since it first said anything
    assert manifest.seconds > 0
    assert run_job(job, runtime) == (job.ref, False)
    assert store.manifest(job.ref).record["resumed_share"] == pytest.approx(4 / 6)


def test_the_seconds_of_a_job_that_went_on_are_those_of_all_its_attempts(tiny, runtime):
    job, store = tiny.long({"seconds": 0.05}), open_store(runtime.store)
    crash(tiny, job, runtime, 3)
    crash(tiny, job, runtime, 5)
    run_job(job, runtime)
    manifest = store.manifest(job.ref)
    assert manifest.record["resumed_seconds"] >= 4 * 0.05
    assert manifest.seconds - manifest.record["resumed_seconds"] >= 2 * 0.05


def test_checkpoints_are_those_of_the_job(tiny, runtime):
    job, other = tiny.long({}), tiny.long({"seed": 1})
    crash(tiny, job, runtime, 3)
    run_job(other, runtime)
    assert tiny.calls == [0, 0]
    assert checkpoints(job, runtime) == [2]


def test_the_newest_whole_checkpoint_is_taken(tiny, runtime):
    """Two of them are there when a process is killed between committing the new one and removing the old one."""
    job = tiny.long({})
    store = open_store(runtime.store)
    crash(tiny, job, runtime, 3)
    (old,) = store.refs(checkpoint_kind(job))
    new = store.manifest(old).model_copy(update={"key": f"{job.ref.key}-{4:08d}"})
    with store.writing(new) as attempt:
        (attempt.folder / "text").write_text("0123")
    assert checkpoints(job, runtime) == [2, 4]
    (store.folder(new.ref) / "text").write_text("01xx")  # and the new one rots
    crash(tiny, job, runtime, 5)
    assert tiny.calls == [0, 2]
    assert checkpoints(job, runtime) == [4]  # made again, and kept
    run_job(job, runtime)
    assert tiny.calls == [0, 2, 4]
    assert text_of(job, runtime) == "012345"


def test_a_checkpoint_that_cannot_be_loaded_gives_its_step_to_the_next_one(tiny, runtime, monkeypatch):
    job, store = tiny.long({}), open_store(runtime.store)
    crash(tiny, job, runtime, 3)
    (ref,) = store.refs(checkpoint_kind(job))
    store.discard(ref)
    with store.writing(Manifest(kind=ref.kind, key=ref.key, version=1, parameters={}, inputs={})) as attempt:
        (attempt.folder / "text").write_text("of another version")
    monkeypatch.setattr(stage_module.Work, "last_checkpoint", lambda work: None)
    crash(tiny, job, runtime, 3)
    assert (store.folder(ref) / "text").read_text() == "01"


def test_a_killed_process_is_gone_on_from(tiny, path, runtime):
    job = tiny.long({})
    code = """if True:
        import sys
        from vidistill.tasks.stage import Job, Runtime, run_job
        run_job(Job.model_validate_json(sys.argv[1]), Runtime.model_validate_json(sys.argv[2]))"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, job.model_dump_json(), runtime.model_dump_json()],
        env=os.environ | {"PYTHONPATH": str(path), "TINY_HANG": "5"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "hangs\n"
    process.kill()
    process.wait()
    run_job(job, runtime)
    assert tiny.calls == [4]
    assert text_of(job, runtime) == "012345"
    assert list((open_store(runtime.store).root / ".staging").iterdir()) == []


# --- progress ----------------------------------------------------------------------------------------------------


def test_listeners_hear_progress_while_they_listen(tiny, runtime):
    one, two = [], []
    first, second = chain(tiny)
    with listening(lambda *told: one.append(told)):
        with listening(lambda *told: two.append(told)):
            run_job(first, runtime)
        run_job(second, runtime)
    run_job(tiny.tiny({"text": "c"}), runtime)
    assert two == [("first", 1, 2, "a"), ("first", 2, 2, "aa")]
    assert one == [*two, ("second", 1, 2, "aab"), ("second", 2, 2, "aabb")]


def test_a_job_without_a_label_goes_by_its_stage(tiny, runtime):
    heard = []
    with listening(lambda label, *_: heard.append(label)):
        run_job(tiny.tiny({}), runtime)
    assert set(heard) == {"tiny"}


# --- Prefect -----------------------------------------------------------------------------------------------------


def test_prefect_shows_the_second_call_as_cached(tiny, runtime, prefect_server):
    from prefect import flow

    first, second = chain(tiny)

    @flow
    def both():
        states = []
        for job in (first, second):
            future = prefect_task(job.stage).submit(job, runtime)
            future.wait()
            states.append((future.state.name, future.result(), future.state.state_details.task_run_id))
        return states

    made, cached = both(), both()
    assert [(name, ref) for name, ref, _ in made] == [("Completed", first.ref), ("Completed", second.ref)]
    assert [(name, ref) for name, ref, _ in cached] == [("Cached", first.ref), ("Cached", second.ref)]
    assert tiny.calls == ["first", "second"]

    open_store(runtime.store).discard(second.ref)  # the store alone decides
    assert [name for name, *_ in both()] == ["Cached", "Completed"]
    assert tiny.calls == ["first", "second", "second"]


def test_prefect_names_the_run_and_hands_on_the_error(tiny, runtime, prefect_server):
    from prefect import flow
    from prefect.client.orchestration import get_client

    job = tiny.wrong({}, label="wrong on purpose")

    @flow
    def failing():
        future = prefect_task(job.stage).submit(job, runtime)
        future.wait()
        with pytest.raises(RequestError, match=r"^The request was wrong\.$"):
            future.result()
        return future.task_run_id

    with get_client(sync_client=True) as client:
        run = client.read_task_run(failing())
    assert (run.name, run.state_name) == ("wrong on purpose", "Failed")


def test_parameters_of_a_task_are_json(tiny, runtime):
    job = chain(tiny)[1]
    assert json.loads(job.model_dump_json())["inputs"] == {"before": [chain(tiny)[0].ref.model_dump()]}
    assert Runtime.model_validate_json(runtime.model_dump_json()) == runtime
