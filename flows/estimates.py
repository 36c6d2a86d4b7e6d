"""How long jobs and a run of them take: costs by default, corrected by what was measured, and a schedule."""

from __future__ import annotations

import heapq
import shutil
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from vidistill.flows.costs import Cost, cost_of
from vidistill.flows.look import Look
from vidistill.models import cpu
from vidistill.storage.provenance import machine
from vidistill.storage.store import ArtifactRef, Manifest
from vidistill.tasks.stage import Job, Runtime, threads_of

BELIEVED_SECONDS, BELIEVED_BYTES = 2.0, 1e5
"""How much of a default, or of what more distant jobs say, is believed beside what was measured of the like."""
GAIN = 0.9
"""n threads make a network n**GAIN times as fast as one."""
FP32 = 2.4
"""What `r2plus1d_small` takes in fp32 on a CPU without bf16 units (AVX2), of what it takes in bf16 on one with them."""
TASK_SECONDS = 0.1
"""What Prefect, the store's checks and its commit take beside a job."""


@dataclass(frozen=True)
class Estimate:
    """Seconds that are left of a job, all of them where it has no checkpoint, and the bytes of its artifact."""

    seconds: float
    bytes: float


class Estimates:
    """What jobs will take, the more exactly the more jobs like them have been measured on this machine."""

    def __init__(
        self, runtime: Runtime, find: Callable[[ArtifactRef], Manifest | None], *, flips: bool = False
    ) -> None:
        self._runtime, self._look = runtime, Look(find, flips)
        self._seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._bytes: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._done: dict[ArtifactRef, float] = {}
        self._costs: dict[ArtifactRef, Cost | None] = {}

    def learn(self, made: Manifest) -> None:
        """Take in what an artifact cost, if it was made on this machine and on the device that is asked for.

        A checkpoint tells of a part of its job, and how much of it is left.
        """
        job, share = made, 1.0 - made.record.get("resumed_share", 0.0)
        of = made.ref.parent
        if of is not None:
            parent, share = self._look.find(of), made.record.get("measured_share", 0.0)
            if parent is None:
                return
            job, self._done[of] = parent, made.record.get("share", 0.0)
        device = str(made.record.get("device", "cpu")).partition(":")[0]
        if made.record.get("machine") != machine() or self._runtime.device not in ("auto", device):
            return
        seconds = made.seconds - made.record.get("resumed_seconds", 0.0)
        self._took(job, seconds, made.record.get("threads", 1), share, made.bytes if job is made else None)

    def finished(self, job: Job, seconds: float) -> None:
        """Take in what a job of this run has taken."""
        self._took(job.manifest, seconds, max(1, threads_of(job, self._runtime)), 1 - self._done.get(job.ref, 0.0))

    def _took(self, job: Manifest, seconds: float, threads: int, share: float, size: float | None = None) -> None:
        cost = self._cost(job)
        if cost is None:
            return
        for name in cost.alike:
            _add(self._seconds[name], seconds, share * cost.seconds / threads**GAIN)
            if size is not None:
                _add(self._bytes[name], size, cost.bytes)

    def of(self, job: Job) -> Estimate:
        cost = self._cost(job.manifest)
        if cost is None:
            return Estimate(1.0, 0.0)
        seconds = (1 - self._done.get(job.ref, 0.0)) * cost.seconds / max(1, threads_of(job, self._runtime)) ** GAIN
        believed = pace(self._runtime.device) if cost.alike[0] == "networks" else 1.0
        return Estimate(
            seconds * _ratio(self._seconds, cost, BELIEVED_SECONDS, believed),
            cost.bytes * _ratio(self._bytes, cost, BELIEVED_BYTES),
        )

    def _cost(self, job: Manifest) -> Cost | None:
        """None for what an older version made, or what it was made from is gone."""
        if job.ref not in self._costs:
            try:
                self._costs[job.ref] = cost_of(job, self._look)
            except LookupError:
                self._costs[job.ref] = None
        return self._costs[job.ref]


def _add(sums: list[float], measured: float, default: float) -> None:
    sums[0] += measured
    sums[1] += default


def _ratio(known: Mapping[str, Sequence[float]], cost: Cost, believed: float, ratio: float = 1.0) -> float:
    """Measured to default, from the most distant jobs to the likest: each corrects what the one before says, and the
    first one `ratio`.
    """
    for name in cost.alike:
        measured, default = known.get(name, (0.0, 0.0))
        ratio = (measured + believed * ratio) / (default + believed)
    return ratio


def pace(device: str) -> float:
    """How many times as long as by default costs, which are of bf16, networks are believed to take here."""
    gpu = device == "cuda" or (device == "auto" and shutil.which("nvidia-smi"))
    return 1.0 if gpu or cpu.has_bf16() else FP32


def wall_seconds(jobs: Sequence[Job], seconds: Mapping[ArtifactRef, float], runtime: Runtime, workers: int) -> float:
    """How long these jobs take as a flow runs them: as many at a time as it has workers and threads.

    A job gets a worker, first come, first served, when its inputs are made, and keeps it while it waits for threads.
    What is not among the jobs is made already. Nothing is indexed before the sprites are rendered.
    """
    todo = {job.ref: job for job in jobs}
    first = {ref for ref, job in todo.items() if job.stage == "sprites"}
    needs = {ref: todo.keys() & job.needs for ref, job in todo.items()}
    for ref in todo.keys() - first:
        needs[ref] |= first
    users: dict[ArtifactRef, list[ArtifactRef]] = defaultdict(list)
    for ref, needed in needs.items():
        for need in needed:
            users[need].append(ref)
    ready, held = deque(ref for ref in todo if not needs[ref]), list[ArtifactRef]()
    running: list[tuple[float, int, ArtifactRef]] = []
    now, taken, number = 0.0, 0, count()
    while ready or held or running:
        while ready and len(held) + len(running) < workers:
            held.append(ready.popleft())
        for ref in _startable(held, {ref: threads_of(todo[ref], runtime) for ref in held}, taken, runtime.threads):
            held.remove(ref)
            taken += threads_of(todo[ref], runtime)
            heapq.heappush(running, (now + seconds[ref], next(number), ref))
        now, _, ended = heapq.heappop(running)
        taken -= threads_of(todo[ended], runtime)
        for user in users[ended]:
            needs[user].discard(ended)
            if not needs[user]:
                ready.append(user)
    return now


def _startable(held: list[ArtifactRef], wanted: dict[ArtifactRef, int], taken: int, limit: int) -> list[ArtifactRef]:
    """Those that have a worker and may start: threads, too, are first come, first served."""
    started, waits = [], False
    for ref in held:
        if not wanted[ref] or (not waits and (taken + wanted[ref] <= limit or not taken)):
            taken += wanted[ref]
            started.append(ref)
        else:
            waits = True
    return started
