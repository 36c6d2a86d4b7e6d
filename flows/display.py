"""What a person sees of a run: bars in a terminal, and plain lines, few of them, in a log."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vidistill.flows.planning import Plan, duration
from vidistill.flows.progress import TRIAL, Course, Running, StageCourse
from vidistill.tasks.stage import Event, Job, listening, watching

BETWEEN_SECONDS = 30.0
"""A stage says nothing more often than this, but that it begins and that it ends."""


@contextmanager
def showing(console: Console) -> Iterator[Lines]:
    """While open, show how this process's jobs go, from at once: `expect` takes the plan when there is one."""
    course = Course()
    view = Bars(course, console) if console.is_terminal else Lines(course, console)
    with view.open(), listening(view.told), watching(view.heard):
        yield view


class Lines:
    """A line when a stage begins and when it ends, and one in thirty seconds in between."""

    def __init__(self, course: Course, console: Console) -> None:
        self.course, self._console, self._begin = course, console, course.begin
        self._said: dict[str, float] = {}
        self._lock = threading.RLock()

    @contextmanager
    def open(self) -> Iterator[None]:
        yield

    def expect(self, plan: Plan) -> None:
        """Say what the run has before it."""
        self.course.expect(plan)
        _, todo, cached = self.course.counts
        stages = sum(stage.total > 0 for stage in self.course.stages.values())
        within = f"{stages} stage{'s' * (stages != 1)}"
        left = f", {todo} to run in {within}: about {duration(plan.seconds)}" if todo else ""
        self.say(f"{cached} of {todo + cached} jobs cached{left}")
        for note in plan.notes:
            self.say(note)

    def heard(self, job: Job, event: Event) -> None:
        with self._lock:
            stage = self.course.heard(job, event)
            if self.course.plan is None:  # how many there will be is not known
                return
            if event == "began" and stage.since == stage.running[job.ref].since:
                self._said[stage.kind] = stage.since
                self.began(stage)
            if event in ("made", "failed", "cached") and stage.ended and stage.since is not None:
                self.ended(stage)

    def told(self, label: str, done: int, total: int, note: str) -> None:
        with self._lock:
            if label == TRIAL:
                self.anew(done, total, note)
            else:
                self.at(label, done, total, note)

    def at(self, label: str, done: int, total: int, note: str) -> None:
        """A job, or what is no job, such as a look at the videos, is so far."""
        told = self.course.told(label, done, total, note)
        name, now = told[0].kind if told else label, self.course.clock()
        if now - self._said.setdefault(name, now if told else self.course.begin) >= BETWEEN_SECONDS:
            self._said[name] = now
            words = f"{label}: {done} of {total}" + (f", {note}" if note else "")
            self.say(self._between(*told) if told else words)

    def anew(self, number: int, trials: int, note: str) -> None:
        """A trial of `tune` is a run of its own, whose stages and times are not those of the trials before."""
        self.course = Course(self.course.clock)
        self._said.clear()
        self.say(f"{TRIAL} {number} of {trials}: {note}")

    def began(self, stage: StageCourse) -> None:
        many = f", {stage.total} jobs" if stage.total > 1 else ""
        cached = f", {stage.cached} cached" if stage.cached else ""
        self.say(f"{stage.kind}: begins{many}{cached} ({self.course.place})")

    def ended(self, stage: StageCourse) -> None:
        taken = duration(self.course.clock() - (stage.since or 0.0))
        what = "done" if stage.total == 1 and stage.made else _ended(stage)
        comma = "," if stage.failed else ""
        self.say("; ".join(filter(None, [f"{stage.kind}: {what}{comma} in {taken}", self.course.words])))

    def _between(self, stage: StageCourse, own: Running) -> str:
        many = f"{own.job.label} at " if stage.total > 1 else ""
        if many and self.course.plan is not None:
            many = f"{_ended(stage)}, {many}"
        note = f", {own.note}" if own.note else ""
        return "; ".join(filter(None, [f"{stage.kind}: {many}{own.share:.0%}{note}", self.course.words]))

    def say(self, line: str) -> None:
        minutes, seconds = divmod(int(self.course.clock() - self._begin), 60)
        with suppress(OSError, SystemExit):  # a terminal that is gone, a pipe that is broken, a disk that is full
            self._console.print(f"[{minutes}:{seconds:02d}] {line}", soft_wrap=True, highlight=False, markup=False)


def _ended(stage: StageCourse) -> str:
    return f"{stage.made} of {stage.total} done" + (f", {stage.failed} failed" if stage.failed else "")


class Bars(Lines):
    """A bar of the whole run and one a stage at work; stages that have ended stay as lines above them."""

    def __init__(self, course: Course, console: Console) -> None:
        super().__init__(course, console)
        words = TextColumn("{task.fields[note]}", markup=False, style="dim")
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TimeElapsedColumn(), words)
        self._progress = Progress(*columns, console=console, transient=True)
        self._run = self._progress.add_task("starting …", total=None, note="")
        self._stages: dict[str, TaskID] = {}
        self._updated = -math.inf

    @contextmanager
    def open(self) -> Iterator[None]:
        with self._progress:
            yield

    def expect(self, plan: Plan) -> None:
        super().expect(plan)
        self._progress.update(self._run, description="run", total=1.0, note=self.course.words)

    def heard(self, job: Job, event: Event) -> None:
        with self._lock:
            super().heard(job, event)
            self._show(self.course.stages[job.stage])

    def at(self, label: str, done: int, total: int, note: str) -> None:
        told = self.course.told(label, done, total, note)
        if told is None:
            self._bar(label, done / max(1, total), f"{done}/{total} {note}", visible=done < total)
        else:
            self._show(told[0])

    def anew(self, number: int, trials: int, note: str) -> None:
        super().anew(number, trials, note)
        for bar in self._stages.values():
            self._progress.remove_task(bar)
        self._stages.clear()
        self._progress.update(self._run, description=f"{TRIAL} {number} of {trials}", completed=number, total=trials)

    def began(self, stage: StageCourse) -> None:
        """Its bar says so."""

    def _show(self, stage: StageCourse) -> None:
        count = f"{stage.made + stage.failed}/{stage.total}" if stage.total > 1 else ""
        note = next((f"{own.job.label} {own.note}" for own in reversed(stage.running.values())), "")
        self._bar(stage.kind, stage.share, f"{count} {note}".strip(), visible=bool(stage.running))
        now = self.course.clock()
        if self.course.plan is not None and now - self._updated > 1:
            self._updated = now
            self._progress.update(self._run, completed=self.course.share, note=self.course.words)

    def _bar(self, name: str, share: float, note: str, *, visible: bool) -> None:
        if name not in self._stages:
            self._stages[name] = self._progress.add_task(name, total=1.0, note="")
        self._progress.update(self._stages[name], completed=share, note=note[:60], visible=visible)
