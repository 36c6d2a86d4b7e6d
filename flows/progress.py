"""Where a run stands: the course that a terminal or a log shows."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vidistill.flows.estimates import TASK_SECONDS, wall_seconds
from vidistill.flows.planning import Plan, duration
from vidistill.flows.runners import WORKERS
from vidistill.models import FRONT_NAMES
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.stage import Event, Job

FRONT = re.compile(rf"\b(?:{'|'.join(map(re.escape, FRONT_NAMES))}):")
TRIAL = "trial"
"""What `tune` tells of before and after each of its trials, as others tell of a job's progress."""
OBSERVED = 0.1
"""From which share of a job on its own pace says how long it takes."""


@dataclass
class Running:
    """A job at work: since when, and how far it says that it is and was at first, when a checkpoint may lie behind."""

    job: Job
    since: float
    share: float = 0.0
    note: str = ""
    first: tuple[float, float] | None = None

    def told(self, now: float, share: float, note: str) -> None:
        self.share, self.note, self.first = share, note, self.first or (now, share)

    def left(self, now: float, expected: float) -> float:
        """By its own pace, once that says something; as expected before."""
        since, first = self.first or (self.since, 0.0)
        gained, left = self.share - first, 1 - self.share
        return (now - since) * left / gained if gained > OBSERVED else expected * left / max(1e-9, 1 - first)


@dataclass
class StageCourse:
    """The jobs of one kind: how many there are to make, and how many of them have ended."""

    kind: str
    total: int = 0
    cached: int = 0
    made: int = 0
    failed: int = 0
    since: float | None = None
    running: dict[ArtifactRef, Running] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.made + self.failed >= self.total

    @property
    def share(self) -> float:
        return (self.made + self.failed + sum(one.share for one in self.running.values())) / max(1, self.total)


class Course:
    """Where a run stands, from its plan and from what its jobs say.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.begin = clock, clock()
        self.stages: dict[str, StageCourse] = {}
        self.plan: Plan | None = None
        self._left: dict[ArtifactRef, Job] = {}
        self._given_up: dict[ArtifactRef, Job] = {}
        self._ended: set[ArtifactRef] = set()
        self._lock = threading.RLock()

    def expect(self, plan: Plan) -> None:
        """Take the plan of the run that begins."""
        with self._lock:
            self.plan = plan
            for one in plan.planned:
                stage = self._stage(one.job)
                stage.total += not one.cached
                stage.cached += one.cached
                if one.cached:
                    self._ended.add(one.job.ref)
                else:
                    self._left[one.job.ref] = one.job

    def heard(self, job: Job, event: Event) -> StageCourse:
        """Take in that a job has begun or ended; its stage."""
        with self._lock:
            stage, now, expected = self._stage(job), self.clock(), self._planned(job)
            if event == "began":
                stage.since = now if stage.since is None else stage.since
                stage.running[job.ref] = Running(job, now)
                self._left[job.ref] = job
                stage.total += not expected
                self._expect_again(job.ref)
                return stage
            self._left.pop(job.ref, None)
            self._ended.add(job.ref)
            running = stage.running.pop(job.ref, None)
            stage.made += event == "made"
            stage.failed += event == "failed"
            if event == "failed":
                self._give_up(job)
            if event == "cached" and expected:
                stage.total, stage.cached = stage.total - 1, stage.cached + 1
            if event == "made" and running is not None and self.plan is not None:
                self.plan.estimates.finished(job, now - running.since)
            return stage

    def _give_up(self, job: Job) -> None:
        """What needs this one is not made; what is tried all the same is counted when it begins."""
        self._given_up[job.ref] = job
        for ref, one in list(self._left.items()):
            if ref in self._left and job.ref in one.needs:
                del self._left[ref]
                self._stage(one).total -= 1
                self._give_up(one)

    def _expect_again(self, begun: ArtifactRef) -> None:
        """What was given up with one that begins again is made, unless it needs another that failed."""
        self._given_up.pop(begun, None)
        for ref, one in list(self._given_up.items()):
            if begun in one.needs and self._given_up.keys().isdisjoint(one.needs):
                self._left[ref] = one
                self._stage(one).total += 1
                self._expect_again(ref)

    def _planned(self, job: Job) -> bool:
        """Whether a job is one of the plan's that have not ended; the plan's own of its name gives it its place.

        Sprites that are not rendered yet have no keys to go by, and what networks see first may have been decided after
        the plan was made; jobs of several fronts may have one name.
        """
        if job.ref in self._left or job.ref in self._ended:
            return job.ref in self._left
        running = self.stages[job.stage].running
        alike = (ref for ref, one in self._left.items() if ref not in running and _name(one) == _name(job))
        planned = next(alike, None)
        if planned is not None:
            del self._left[planned]
            self._left[job.ref] = job
        return planned is not None

    def told(self, label: str, done: int, total: int, note: str) -> tuple[StageCourse, Running] | None:
        """Take in what a job says of its progress; its stage, and where it stands."""
        with self._lock:
            for stage in self.stages.values():
                for one in stage.running.values():
                    if one.job.label == label:
                        one.told(self.clock(), done / max(1, total), note)
                        return stage, one
        return None

    @property
    def left(self) -> float | None:
        """Seconds to the run's end; None where there is no plan yet."""
        with self._lock:
            if self.plan is None:
                return None
            now = self.clock()
            running = {ref: one for stage in self.stages.values() for ref, one in stage.running.items()}
            jobs = sorted(self._left.values(), key=lambda job: job.ref not in running)
            seconds = {job.ref: self.plan.estimates.of(job).seconds + TASK_SECONDS for job in jobs}
            for ref, one in running.items():
                seconds[ref] = one.left(now, seconds[ref])
            return wall_seconds(jobs, seconds, self.plan.runtime, WORKERS)

    @property
    def share(self) -> float:
        """Of the whole run's time, how much is over; 0 where there is no plan yet."""
        left, gone = self.left, self.clock() - self.begin
        return 0.0 if left is None else gone / max(1.0, gone + left)

    @property
    def words(self) -> str:
        left = self.left
        return "" if left is None else f"{self.share:.0%} of the run, about {duration(left)} left"

    @property
    def counts(self) -> tuple[int, int, int]:
        """Jobs that are made or failed, those that were to be made, and those that were cached."""
        stages = list(self.stages.values())
        ended = sum(stage.made + stage.failed for stage in stages)
        return ended, sum(stage.total for stage in stages), sum(stage.cached for stage in stages)

    @property
    def place(self) -> str:
        """Which stage of how many has begun last."""
        to_run = [stage for stage in self.stages.values() if stage.total]
        return f"stage {sum(stage.since is not None for stage in to_run)} of {len(to_run)}"

    def _stage(self, job: Job) -> StageCourse:
        return self.stages.setdefault(job.stage, StageCourse(job.stage))


def _name(job: Job) -> tuple[str, str]:
    """A job's name in its run, whatever its networks see first."""
    return job.stage, FRONT.sub("", job.label)
