"""What a run says while it goes: few lines into a log, bars in a terminal, and how long it still takes."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from flow_running import BIN, TINY, CommandLine, environment
from rich.console import Console

from vidistill.flows.display import Bars, Lines
from vidistill.flows.estimates import Estimates
from vidistill.flows.planning import Plan, Planned
from vidistill.flows.progress import TRIAL, Course
from vidistill.tasks.stage import Job, Runtime
from vidistill.tasks.videos.sprites import SpritesParameters
from vidistill.tasks.videos.sprites_stage import sprites_job


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Log:
    """A log's lines, the clock that they are told by, and the course that they tell of."""

    def __init__(self) -> None:
        self.clock, self._written = Clock(), StringIO()
        self.lines = Lines(Course(self.clock), Console(file=self._written, width=80))

    def __iter__(self) -> Iterator[str]:
        return iter(self._written.getvalue().splitlines())

    def about(self, kind: str) -> list[str]:
        return [line for line in self if f" {kind}: " in line]


@pytest.fixture
def log() -> Log:
    return Log()


def renders(count: int) -> list[Job]:
    """Jobs of one kind."""
    return [sprites_job(SpritesParameters(seed=seed)).model_copy(update={"label": f"render {seed}"})
            for seed in range(count)]  # fmt: skip


def plan(jobs: Sequence[Job], cached: int = 0, seconds: float = 10.0) -> Plan:
    """The first `cached` of the jobs are there; the others take so many seconds each."""
    runtime = Runtime(store="store", threads=2)
    nodes = {job.ref: job.manifest for job in jobs}
    estimates = Estimates(runtime, nodes.get)
    for _ in range(1000):  # so that there is no doubt
        estimates.finished(jobs[0], seconds)
    return Plan([Planned(job, number < cached, "", seconds, 0) for number, job in enumerate(jobs)], estimates, runtime)


def test_a_stage_says_that_it_begins_and_ends_and_something_every_thirty_seconds_in_between(log: Log) -> None:
    (job,) = renders(1)
    log.lines.expect(plan([job]))
    log.lines.heard(job, "began")
    for second in range(100):
        log.clock.now = second
        log.lines.told(job.label, second, 100, "going well")
    log.lines.heard(job, "made")
    begins, *between, ends = log.about("sprites")
    assert begins == "[0:00] sprites: begins (stage 1 of 1)"
    assert [line.split("]")[0] for line in between] == ["[0:30", "[1:00", "[1:30"]
    assert "sprites: 60%, going well; 60% of the run, about 40 s left" in between[1]
    assert ends == "[1:39] sprites: done in 2 min; 100% of the run, about 0 s left"


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), SystemExit(1)], ids=repr)
def test_a_terminal_that_is_gone_costs_no_job(error: BaseException) -> None:
    class Gone(Console):
        def print(self, *_: Any, **__: Any) -> None:
            raise error

    Lines(Course(time.monotonic), Gone()).say("made")


def test_a_thousand_small_jobs_are_a_few_lines(log: Log) -> None:
    jobs = renders(1000)
    log.lines.expect(plan(jobs, cached=400, seconds=0.09))
    for job in jobs[:400]:
        log.lines.heard(job, "cached")
    for job in jobs[400:]:
        log.lines.heard(job, "began")
        log.clock.now += 0.09
        log.lines.told(job.label, 1, 1, "")
        log.lines.heard(job, "made")
    first, begins, between, ends = log
    assert first == "[0:00] 400 of 1000 jobs cached, 600 to run in 1 stage: about 73 s"
    assert begins == "[0:00] sprites: begins, 600 jobs, 400 cached (stage 1 of 1)"
    assert re.fullmatch(r"\[0:30\] sprites: 333 of 600 done, render 733 at 100%; \d+% of the run, .* left", between)
    assert ends.startswith("[0:54] sprites: 600 of 600 done in 55 s")


def test_a_job_is_the_planned_one_whatever_its_network_sees_first(log: Log) -> None:
    planned, found = (
        job.model_copy(update={"label": f"score random {name} seed 0"})
        for job, name in zip(renders(2), ("centred:r2plus1d_small", "r2plus1d_small"), strict=True)
    )
    log.lines.expect(plan([planned]))
    log.lines.heard(found, "began")
    log.clock.now = 5
    log.lines.heard(found, "made")
    assert log.about("sprites")[-1] == "[0:05] sprites: done in 5 s; 100% of the run, about 0 s left"


def test_jobs_of_several_fronts_may_have_one_name(log: Log) -> None:
    jobs = [job.model_copy(update={"label": "label coded soft kb 2 seed 0"}) for job in renders(3)]
    log.lines.expect(plan(jobs))
    for job in jobs[:2]:
        log.lines.heard(job, "began")
        log.lines.told(jobs[0].label, 0, 2, "")
    log.clock.now = 5
    log.lines.told(jobs[0].label, 1, 2, "")
    assert log.lines.course.left == pytest.approx(15, abs=0.2)  # of the first 5, then the third
    for job in jobs[:2]:
        log.lines.heard(job, "made")
    assert 5 < log.lines.course.left <= 10.1
    log.lines.heard(jobs[2], "began")
    log.lines.heard(jobs[2], "made")
    assert log.lines.course.counts == (3, 3, 0)
    assert log.lines.course.left == 0


def test_a_cached_job_takes_no_other_s_place_that_has_its_name(log: Log) -> None:
    jobs = [job.model_copy(update={"label": "score full hard seed 0"}) for job in renders(2)]
    log.lines.expect(plan(jobs, cached=1))
    log.lines.heard(jobs[0], "cached")
    assert log.lines.course.counts == (0, 1, 1)
    log.lines.heard(jobs[1], "began")
    log.lines.heard(jobs[1], "made")
    assert log.lines.course.counts == (1, 1, 1)


def test_a_job_that_fails_is_counted_apart(log: Log) -> None:
    jobs = renders(3)
    log.lines.expect(plan(jobs))
    for job, event in zip(jobs, ("made", "failed", "made"), strict=True):
        log.lines.heard(job, "began")
        log.clock.now += 10
        log.lines.heard(job, event)
    assert log.about("sprites")[-1].startswith("[0:30] sprites: 2 of 3 done, 1 failed, in 30 s")


def test_what_needs_a_job_that_failed_is_no_longer_expected(log: Log) -> None:
    jobs = renders(3)
    needing = [jobs[0].model_copy(update={"stage": "block", "inputs": {"sprites": [job.ref]}}) for job in jobs[:2]]
    last = jobs[0].model_copy(update={"stage": "report", "inputs": {"blocks": [job.ref for job in needing]}})
    log.lines.expect(plan([*jobs, *needing, last]))
    for job in jobs[:2]:
        log.lines.heard(job, "began")
    log.lines.heard(jobs[0], "failed")
    assert log.lines.course.counts == (1, 4, 0)  # the block of the one that failed and the report are not made
    log.clock.now = 40
    log.lines.told(jobs[1].label, 1, 2, "")
    assert log.about("sprites")[-1].startswith("[0:40] sprites: 0 of 3 done, 1 failed, render 1 at 50%; ")
    rest = last.model_copy(update={"inputs": {"blocks": [needing[1].ref]}})
    for job in (jobs[1], jobs[2], needing[1], rest):
        log.lines.heard(job, "began")
        log.lines.heard(job, "made")
    assert log.about("report")[-1] == "[0:40] report: done in 0 s; 100% of the run, about 0 s left"


def test_what_needs_a_job_that_is_tried_once_more_is_expected_again(log: Log) -> None:
    jobs, course = renders(2), log.lines.course
    needing = [jobs[0].model_copy(update={"stage": "block", "inputs": {"sprites": [job.ref for job in needed]}})
               for needed in (jobs[:1], jobs)]  # fmt: skip
    last = jobs[0].model_copy(update={"stage": "report", "inputs": {"blocks": [job.ref for job in needing]}})
    course.expect(plan([*jobs, *needing, last]))
    for job in jobs:
        course.heard(job, "began")
        course.heard(job, "failed")
    assert course.counts == (2, 2, 0)
    course.heard(jobs[0], "began")
    assert course.counts == (2, 4, 0)  # itself once more, and the block that needs no other
    course.heard(jobs[1], "began")
    assert course.counts == (2, 7, 0)
    for job in (*jobs, *needing, last):
        assert course.left > 0
        course.heard(job, "began")
        course.heard(job, "made")
    assert (course.counts, course.left) == ((7, 7, 0), 0)


def test_stages_are_counted_as_they_begin(log: Log) -> None:
    first, second = renders(1)[0], renders(1)[0].model_copy(update={"stage": "index"})
    log.lines.expect(plan([first, second]))
    for job in (second, first):
        log.lines.heard(job, "began")
    assert [line.rpartition(" (")[2] for line in list(log)[1:]] == ["stage 1 of 2)", "stage 2 of 2)"]


def test_a_trial_is_named_and_has_times_of_its_own(log: Log) -> None:
    jobs = renders(2)
    for number in (1, 2):
        log.lines.told(TRIAL, number, 2, f"mtt.lr {number}")
        log.lines.heard(jobs[0], "began" if number == 1 else "cached")
        log.lines.heard(jobs[1], "began")
        for _ in range(2):
            log.lines.told(jobs[1].label, 1, 4, "")
            log.clock.now += 31
        for job in jobs:
            log.lines.heard(job, "made")
    assert list(log) == [
        "[0:00] trial 1 of 2: mtt.lr 1",
        "[0:31] sprites: render 1 at 25%",
        "[1:02] trial 2 of 2: mtt.lr 2",
        "[1:33] sprites: 25%",
    ]


def test_jobs_that_another_run_made_meanwhile_are_no_longer_expected(log: Log) -> None:
    jobs = renders(4)
    log.lines.expect(plan(jobs))
    for job in jobs[:2]:
        log.lines.heard(job, "cached")
    assert log.lines.course.counts == (0, 2, 2)
    for job in jobs[2:]:
        log.lines.heard(job, "began")
        log.lines.heard(job, "made")
    assert log.lines.course.left == 0


def test_what_a_job_has_taken_corrects_what_is_left(log: Log) -> None:
    jobs, course = renders(9), log.lines.course
    course.expect(plan(jobs, seconds=10))
    course.plan.estimates._seconds.clear()  # nothing was measured yet
    before = course.left
    course.heard(jobs[0], "began")
    log.clock.now = 5000
    course.heard(jobs[0], "made")
    assert course.left > 10 * before
    assert course.left == pytest.approx(5000 * 8 / 2, rel=0.1)


def test_a_job_that_is_tried_once_more_is_no_job_too_many(log: Log) -> None:
    jobs = renders(2)
    log.lines.expect(plan(jobs))
    for job, event in zip([*jobs, jobs[0]], ("failed", "made", "made"), strict=True):
        log.lines.heard(job, "began")
        log.lines.heard(job, event)
    assert log.lines.course.counts == (3, 3, 0)
    assert log.lines.course.left == 0


def test_a_job_s_own_pace_says_when_it_ends(log: Log) -> None:
    (job,), course = renders(1), log.lines.course
    course.expect(plan([job], seconds=10))
    course.heard(job, "began")
    course.told(job.label, 0, 4, "")
    log.clock.now = 100
    course.told(job.label, 1, 4, "")
    assert course.left == 300
    assert course.share == 0.25


def test_what_a_checkpoint_saved_is_no_pace(log: Log) -> None:
    (job,), course = renders(1), log.lines.course
    course.expect(plan([job], seconds=1000))
    course.heard(job, "began")
    log.clock.now = 1
    course.told(job.label, 60, 100, "")
    log.clock.now = 101
    course.told(job.label, 80, 100, "")
    assert course.left == pytest.approx(100)


def test_a_terminal_says_the_time_left_from_the_plan_on() -> None:
    written, jobs = StringIO(), renders(1)
    console = Console(file=written, force_terminal=True, width=100)
    bars = Bars(Course(Clock()), console)
    with bars.open():
        bars.expect(plan(jobs, seconds=1000))
    assert "0% of the run, about 17 min left" in written.getvalue()


def test_a_terminal_has_one_bar_of_the_trial_and_those_of_its_stages() -> None:
    bars, (job,) = Bars(Course(Clock()), Console(file=StringIO(), force_terminal=True, width=100)), renders(1)
    bars.told(TRIAL, 1, 2, "mtt.lr 1")
    bars.heard(job, "began")
    bars.told(TRIAL, 2, 2, "mtt.lr 2")
    bars.heard(job, "began")
    assert [bar.description for bar in bars._progress.tasks] == ["trial 2 of 2", "sprites"]


def test_jobs_of_many_threads_may_begin_and_end_while_bars_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    bars, jobs = Bars(Course(Clock()), Console(file=StringIO(), force_terminal=True, width=100)), renders(200)
    bars.expect(plan(jobs, seconds=1000))

    def done(job: Job) -> None:
        for event in ("began", "made"):
            bars.heard(job, event)
            bars.told(job.label, 1, 2, "")

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(done, jobs))
    finally:
        sys.setswitchinterval(usual)
    assert all(stage.made == stage.total for stage in bars.course.stages.values())


def test_it_is_silent_about_a_quick_look_at_the_videos_and_not_about_a_long_one(log: Log) -> None:
    for second in range(70):
        log.clock.now = second
        log.lines.told("index", second, 70, "hashing and probing")
    assert list(log) == ["[0:30] index: 30 of 70, hashing and probing", "[1:00] index: 60 of 70, hashing and probing"]


def test_a_training_says_something_within_half_a_minute(log: Log) -> None:
    for second in (29, 31):
        log.clock.now = second
        log.lines.told("train minic3d", second - 29, 300, "")
    assert list(log) == ["[0:31] train minic3d: 2 of 300"]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, server) -> CommandLine:
    return CommandLine(tmp_path_factory.mktemp("user"), server.variables)


@pytest.fixture(scope="module")
def arguments(videos: Path) -> tuple[object, ...]:
    return ("run", "--data", videos, "--method", "random", *TINY, "--store", "store", "--out", "out")


@pytest.fixture(scope="module")
def logged(user: CommandLine, arguments: tuple[object, ...]) -> list[str]:
    """The lines of a run without a terminal."""
    ran = user(*arguments)
    assert ran.returncode == 0, ran.stderr
    return [line for line in ran.stdout.splitlines() if re.match(r"\[\d+:\d\d\] ", line)]


def test_without_a_terminal_each_stage_has_its_two_lines(logged: list[str]) -> None:
    assert re.search(r"\] 0 of 12 jobs cached, 12 to run in 6 stages: about \d+ s$", logged[0])
    for kind, many in (("index", ""), ("block", ", 6 jobs"), ("clips", ", 2 jobs"), ("score", ""), ("report", "")):
        begins, *_, ends = [line for line in logged if f"] {kind}: " in line]
        assert re.search(rf"\] {kind}: begins{many} \(stage \d of 6\)$", begins)
        assert re.search(r" in \d+ s; \d+% of the run, about \d+ s left$", ends)
    assert len(logged) <= 1 + 2 * 6 + 6  # the last six only where the machine is so busy that 30 seconds passed


def in_a_terminal(command: list[str], user: CommandLine) -> Iterator[tuple[float, str, int]]:
    """Seconds, what a terminal of 100 columns shows from then on, and the process that shows it."""
    ours, theirs = os.openpty()
    env = environment(user.folder / "home", TERM="xterm", COLUMNS="100", **user.variables)
    begin = time.monotonic()
    with subprocess.Popen(command, cwd=user.folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        while select.select([ours], [], [], 240)[0]:
            try:
                shown = os.read(ours, 1 << 16)
            except OSError:  # nobody holds the other end
                break
            yield time.monotonic() - begin, shown.decode(errors="replace"), process.pid
    os.close(ours)
    assert process.returncode == 0


@pytest.mark.usefixtures("logged")
def test_in_a_terminal_bars_are_there_before_anything_heavy_is(
    user: CommandLine, arguments: tuple[object, ...]
) -> None:
    command = [str(BIN / "vidistill"), *map(str, arguments), "--set", "student.least_steps=4"]
    text, loaded = "", None
    for _, shown, process in in_a_terminal(command, user):
        text += shown
        if loaded is None and "starting …" in text:
            loaded = Path(f"/proc/{process}/maps").read_text()
    assert loaded is not None
    assert "libtorch" not in loaded
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "10 of 12 jobs cached, 2 to run in 2 stages" in plain
    assert re.search(r"run +━+.* \d+% of the run, about \d+ s left", plain)
    assert re.search(r"score +━+.*score random hard ipc 1 r2plus1d_small seed 0 loss \d", plain)
    assert re.search(r"\] score: done in \d+ s; \d+% of the run", plain)
    assert "random" in plain.split("report: done")[1]  # the table, with the bars gone
