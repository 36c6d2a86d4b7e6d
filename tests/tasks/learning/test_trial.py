"""Trials on the fifth of the training clips that is held out, and the front that they decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from method_contract import Bench

from vidistill.storage.clips import Clips, ClipTable, ClipVideo
from vidistill.storage.errors import RequestError
from vidistill.storage.store import Store
from vidistill.tasks.learning import training
from vidistill.tasks.learning.evaluate import StudentParameters
from vidistill.tasks.learning.teacher import TeacherParameters, build_teacher, load_teacher, teacher_job
from vidistill.tasks.learning.trial import (
    FRONT,
    TRIAL,
    TrialParameters,
    decide,
    decided,
    fifths,
    front_jobs,
    trained_on_four_fifths,
    trial,
)
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
    train_N, held_N = fifths(whole.videos, whole.classes)
    assert sorted([*train_N, *held_N]) == list(range(len(videos)))
    assert not {videos[row].group for row in train_N} & {videos[row].group for row in held_N}
    for label in (0, 1):
        assert sum(videos[row].label == label for row in held_N) == 8
    np.testing.assert_array_equal(fifths(whole.videos, whole.classes)[1], held_N)


def test_a_class_of_one_group_has_nothing_to_hold_out() -> None:
    with pytest.raises(RequestError, match="a split needs at least two"):
        fifths(table(1).videos, ("a", "b"))


def test_a_trial_scores_a_network_on_the_clips_that_are_held_out(bench: Bench) -> None:
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


def test_a_trial_learns_from_four_fifths_and_is_scored_on_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = tiny.tiny_clips(tmp_path, labels=(1, 1, 1, 0, 0, 0)).preload()  # nothing is read ahead
    reads: dict[str, set[int]] = {"learnt": set(), "scored": set()}
    phase, read, predict, logits = "learnt", Clips.read, training.predict, []

    def noted(clips: Clips, rows: Any, *more: Any) -> Any:
        reads[phase] |= set(np.asarray(rows).tolist())
        return read(clips, rows, *more)

    def scored(*given: Any) -> Any:
        nonlocal phase
        phase = "scored"
        logits.append(predict(*given))
        return logits[-1]

    monkeypatch.setattr(Clips, "read", noted)
    monkeypatch.setattr(training, "predict", scored)
    student = StudentParameters(epochs=2, least_steps=2, precision="fp32")
    torch.manual_seed(0)
    tried = trained_on_four_fifths(tiny.TinyNet(), clips, student.of("r2plus1d_small"), 0, tiny.CPU)
    train_N, held_N = fifths(clips.table.videos, clips.classes)
    assert reads == {"learnt": set(train_N.tolist()), "scored": set(held_N.tolist())}
    told_N, own_N = logits[0].argmax(1).numpy(), clips.labels_N[held_N]
    assert tried.top1 == np.mean(told_N == own_N) < 1
    assert tried.top1 != np.mean(told_N == clips.labels_N[train_N[: len(held_N)]])


def test_the_front_with_the_best_trials_is_chosen(tmp_path: Path) -> None:
    store, refs = Store(tmp_path), []
    for network, top1 in (("r2plus1d_small", 0.2), ("centred:r2plus1d_small", 0.5), ("rgb+difference:c3d", 0.4)):
        said = json.dumps({"network": network, "top1": top1})
        refs.append(tiny.put(store, "trial", str(len(refs)), lambda f, said=said: (f / TRIAL).write_text(said), {}))
    choice = decide({}, {"trials": refs})
    run_job(choice, Runtime(store=str(tmp_path), threads=1))
    facts = json.loads((store.folder(choice.ref) / FRONT).read_text())
    assert facts["top1"] == {"rgb": 0.2, "centred": 0.5, "rgb+difference": 0.4}
    assert decided(store, choice.ref) == "centred"


def test_the_mean_of_the_weights_is_what_is_tried_where_it_is_asked_for(bench: Bench) -> None:
    """As what is scored of students and what answers of teachers."""
    networks = []
    for average in (0.0, 0.5):
        student = StudentParameters(epochs=1, least_steps=4, precision="fp32", average=average)
        network = training.build_network("r2plus1d_small", len(bench.clips.classes), bench.clips.shape_THWC, 0)
        trained_on_four_fifths(network, bench.clips, student, 0, bench.device)
        networks.append(network)
    last, mean = (network.head.weight for network in networks)
    assert not torch.equal(last, mean)


def test_a_teacher_is_the_mean_of_its_weights_and_an_ensemble_of_networks_that_differ(bench: Bench) -> None:
    runtime = Runtime(store=bench.store.location, device="cpu", threads=1)
    heads = []
    for average in (0.0, 0.5):
        parameters = TeacherParameters(epochs=1, least_steps=4, precision="fp32", average=average)
        ref = run_job(teacher_job(bench.given.train, parameters), runtime)[0]
        heads.append(load_teacher(bench.store, ref, bench.clips, bench.device).head.weight)
    assert not torch.equal(*heads)
    one, other = build_teacher(TeacherParameters(ensemble=2), bench.clips).members
    assert not torch.equal(one.head.weight, other.head.weight)
