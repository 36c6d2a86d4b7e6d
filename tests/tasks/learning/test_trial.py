"""Trials on the fifth of the training clips that is held out, and the front that they decide."""

from __future__ import annotations

import json

import numpy as np
import pytest
from method_contract import Bench

from vidistill.storage.clips import ClipTable, ClipVideo
from vidistill.storage.errors import RequestError
from vidistill.tasks.learning.evaluate import StudentParameters
from vidistill.tasks.learning.trial import FRONT, TRIAL, TrialParameters, decide, decided, fifths, front_jobs, trial
from vidistill.tasks.stage import Runtime, run_job


def table(groups: int, clips: int = 4) -> ClipTable:
    videos = [
        ClipVideo(path=f"{name}/g{group}_{clip}.mp4", label=label, group=f"{name}_g{group}", duration_seconds=1,
                  block=0, row=0)
        for label, name in enumerate(("a", "b")) for group in range(groups) for clip in range(clips)
    ]  # fmt: skip
    return ClipTable(classes=("a", "b"), flips=False, views=1, mean=(0, 0, 0), std=(1, 1, 1), videos=tuple(videos),
                     rejected=())  # fmt: skip


def test_a_fifth_of_each_class_is_held_out_in_whole_groups() -> None:
    videos = (whole := table(10)).videos
    train_N, held_N = fifths(whole)
    assert sorted([*train_N, *held_N]) == list(range(len(videos)))
    assert not {videos[row].group for row in train_N} & {videos[row].group for row in held_N}
    for label in (0, 1):
        assert sum(videos[row].label == label for row in held_N) == 8
    np.testing.assert_array_equal(fifths(whole)[1], held_N)


def test_a_class_of_one_group_has_nothing_to_hold_out() -> None:
    with pytest.raises(RequestError, match="a split needs at least two"):
        fifths(table(1))


def test_the_front_with_the_best_trials_is_chosen(bench: Bench) -> None:
    runtime = Runtime(store=bench.store.location, device="cpu", threads=1)
    jobs = front_jobs(bench.given.train)
    assert [job.label for job in jobs] == ["try rgb", "try centred", "try rgb+difference", "front"]
    student = StudentParameters(epochs=1, least_steps=2, precision="fp32")
    names = ("r2plus1d_small", "centred:r2plus1d_small")
    short = [
        trial(TrialParameters(network=name, student=student.of(name), seed=0), {"clips": bench.given.train})
        for name in names
    ]
    for job in short:
        run_job(job, runtime)
    found = [json.loads((bench.store.folder(job.ref) / TRIAL).read_text()) for job in short]
    assert [facts["network"] for facts in found] == list(names)
    choice = decide({}, {"trials": [job.ref for job in short]})
    run_job(choice, runtime)
    facts = json.loads((bench.store.folder(choice.ref) / FRONT).read_text())
    assert facts["top1"] == {"rgb": found[0]["top1"], "centred": found[1]["top1"]}
    assert facts["top1"][decided(bench.store, choice.ref)] == max(facts["top1"].values())
