"""A job that is killed and run again, and a distillation beside one that is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from method_contract import Bench

from vidistill.storage.distilled import DistilledSet
from vidistill.tasks.distil import distil_jobs
from vidistill.tasks.methods import find_method
from vidistill.tasks.stage import Job, Runtime, listening, run_job


def killed_and_resumed(job: Job, runtime: Runtime, at: int) -> list[int]:
    """Kill a job at a step, run it again; the steps of the second run."""

    def kill(_label: str, done: int, _total: int, _note: str) -> None:
        if done == at:
            raise KeyboardInterrupt

    with listening(kill), pytest.raises(KeyboardInterrupt):
        run_job(job, runtime)
    steps: list[int] = []
    with listening(lambda _label, step, _total, _note: steps.append(step)):
        run_job(job, runtime)
    return steps


def killed_and_whole(
    bench: Bench, spec: str, options: dict[str, Any], kill_at: int, ipc: int = 1
) -> tuple[DistilledSet, DistilledSet, list[int]]:
    """The set of a run that was killed at a step and run again, that of an unbroken one, and the second run's steps."""
    source = find_method(spec)
    parameters = source.method.Parameters(**options)
    runtime = bench.runtime.model_copy(update={"methods": {source.name: source.spec}})
    inputs = {"clips": [bench.given.train], **source.method(parameters).inputs(replace(bench.given, ipc=ipc, seed=11))}
    (job,) = distil_jobs(source, parameters, ipc, 11, len(bench.clips.classes), inputs, spec)
    ref, _ = run_job(job, runtime)
    whole = DistilledSet.load(bench.store.folder(ref))
    bench.store.discard(ref)
    steps = killed_and_resumed(job, runtime, kill_at)
    return DistilledSet.load(bench.store.folder(ref)), whole, steps
