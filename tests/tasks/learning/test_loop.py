"""The loop: TSGF and students that are killed end with the same bytes; what it saves, reads and says."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from method_contract import Bench

from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RunError
from vidistill.tasks.distil import distil_jobs
from vidistill.tasks.learning import loop
from vidistill.tasks.learning.evaluate import StudentParameters, evaluate_job, load_score
from vidistill.tasks.methods import HARD, find_method
from vidistill.tasks.stage import Job, checkpoint_kind, run_job

KILLED = """
import json, os, signal, sys
from vidistill.tasks.learning import loop
from vidistill.tasks.stage import Job, Runtime, listening, run_job

def kill(label, done, total, note):
    if done == plan["at"]:
        os.kill(os.getpid(), signal.SIGKILL)

loop.SECONDS = 0  # a checkpoint after every step
plan = json.loads(sys.stdin.read())
with listening(kill):
    run_job(Job.model_validate(plan["job"]), Runtime.model_validate(plan["runtime"]))
"""


# --- killed ------------------------------------------------------------------------------------------------------


def tsgf(bench: Bench) -> Job:
    source = find_method("tsgf")
    options = source.method.Parameters(iterations=5, precision="fp32")
    inputs = {"clips": [bench.given.train], **source.method(options).inputs(bench.given)}
    (job,) = distil_jobs(source, options, 1, 3, len(bench.clips.classes), inputs, "tsgf")
    return job


def student(bench: Bench) -> Job:
    source = find_method("random")
    options = source.method.Parameters()
    (job,) = distil_jobs(source, options, 1, 3, len(bench.clips.classes), {"clips": [bench.given.train]}, "random")
    made, _ = run_job(job, bench.runtime)
    inputs = {"train": bench.given.train, "test": bench.given.train, "distilled": made}
    asked = StudentParameters(epochs=1, least_steps=5, precision="fp32", average=0.5)
    return evaluate_job("minic3d_bn", asked, HARD, 0, inputs, "student")


@pytest.mark.slow
@pytest.mark.parametrize("job_of", [tsgf, student])
def test_sigkill_changes_no_byte(bench: Bench, job_of: Callable[[Bench], Job]) -> None:
    job = job_of(bench)
    ref, _ = run_job(job, bench.runtime)
    files = bench.store.manifest(ref).files
    bench.store.discard(ref)
    plan = {"job": job.model_dump(mode="json"), "runtime": bench.runtime.model_dump(mode="json")}
    for at, kept in ((1, None), (3, 2), (4, 3)):
        command = [sys.executable, "-c", KILLED]
        done = subprocess.run(command, input=json.dumps(plan | {"at": at}), text=True, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        steps = [int(one.key.rpartition("-")[2]) for one in bench.store.refs(checkpoint_kind(job))]
        assert steps == ([] if kept is None else [kept])
    run_job(job, bench.runtime)
    assert bench.store.manifest(ref).files == files


def test_tsgf_and_students_leave_a_curve(bench: Bench) -> None:
    made, scored = (run_job(job_of(bench), bench.runtime)[0] for job_of in (tsgf, student))
    facts, score = DistilledSet.facts_of(bench.store.folder(made)), load_score(bench.store.folder(scored))
    assert facts["steps"] == list(score.steps) == [1, 2, 3, 4, 5]
    assert facts["loss"][-1] < facts["loss"][0]


# --- saved and read ----------------------------------------------------------------------------------------------


@dataclass
class Keeper:
    """Checkpoints in a folder."""

    folder: Path
    found: tuple[int, Path] | None = None
    steps: list[int] = field(default_factory=list)

    def progress(self, done: int, total: int, note: str = "") -> None:
        pass

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        self.found = (step, self.folder / str(step))
        self.found[1].mkdir()
        write(self.found[1])
        self.steps.append(step)

    def last_checkpoint(self) -> tuple[int, Path] | None:
        return self.found


class Run:
    """A layer learns by Adam what is drawn for each step, and a tensor counts the steps."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layer, self.count, self.taken = torch.nn.Linear(3, 2), torch.zeros(()), list[int]()
        self.adam = torch.optim.Adam(self.layer.parameters(), lr=0.1)

    def __call__(self, keeper: Keeper | None, steps: int = 6, stop_at: int | None = None) -> loop.Curve:
        def step(number: int) -> float:
            if number == stop_at:
                raise KeyboardInterrupt
            self.taken.append(number)
            self.count += 1
            wanted = torch.randn(2, generator=torch.Generator().manual_seed(number))
            return loop.descend(self.adam, (self.layer(torch.ones(3)) - wanted).square().sum())

        state = {"layer": self.layer, "adam": self.adam, "count": self.count}
        return loop.run(step, steps, state, keeper, every=2)

    @property
    def end(self) -> list[Any]:
        return [*self.layer.state_dict()["weight"].flatten().tolist(), float(self.count)]


def test_it_goes_on_with_everything_that_it_was_given(tmp_path: Path) -> None:
    whole, broken, again, keeper = Run(), Run(), Run(), Keeper(tmp_path)
    curve = whole(None)
    with pytest.raises(KeyboardInterrupt):
        broken(keeper, stop_at=5)
    assert again(keeper) == curve
    assert (again.taken, keeper.steps) == ([4, 5], [2, 4])
    assert again.end == whole.end
    assert curve.steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("wrong", ["of another format", "of another network"])
def test_a_checkpoint_that_cannot_be_read_costs_its_steps_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    whole, again, keeper = Run(), Run(), Keeper(tmp_path)
    whole(None)
    with pytest.raises(KeyboardInterrupt):
        Run()(keeper, stop_at=5)
    file = keeper.found[1] / loop.STATE
    if wrong == "of another format":
        file.rename(file.with_name("state.safetensors"))
    else:  # its weights fit, its count does not
        kept = torch.load(file)
        kept["state"]["count"] = torch.zeros(2, 2)
        torch.save(kept, file)
    with caplog.at_level(logging.WARNING, "vidistill"):
        again(Unwritable(tmp_path, keeper.found))
    assert "cannot be read" in caplog.text
    assert "the work starts anew" in caplog.text
    assert again.taken == [*range(6)]
    assert again.end == whole.end


class Unwritable(Keeper):
    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        pass


# --- watched -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda step: float("nan") if step == 3 else 1.0, r"^The loss is nan at step 3 \(learning rate 0\.1, 0\.02\)"),
        (lambda step: 2e3 if step == 30 else 2.0, None),
        (
            lambda step: 2001.0 if step == 30 else 2.0,
            r"^The loss grew from 2 to 2e\+03 at step 30 .* ten times smaller",
        ),
    ],
)
def test_a_loss_that_diverges_ends_the_run(loss: Callable[[int], float], said: str | None) -> None:
    weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    sgd = torch.optim.SGD([{"params": [weights[0]], "lr": 0.1}, {"params": [weights[1]], "lr": 0.02}])
    if said is None:
        assert loop.run(loss, 40, {"sgd": sgd}).largest == 2
        with pytest.raises(RunError, match=r"grew from 2 to 2e\+03 at step 30"):
            loop.run(loss, 40, {"sgd": sgd}, diverged=10)
        return
    with pytest.raises(RunError, match=said):
        loop.run(loss, 40, {"sgd": sgd})


@pytest.mark.parametrize("learns", ["network", "clips"])
@pytest.mark.parametrize(("at", "kept"), [(5, [2, 4]), (3, [2]), (2, [2])], ids=["last", "kept", "between"])
def test_a_step_that_breaks_what_is_learnt_is_not_kept(tmp_path: Path, learns: str, at: int, kept: list[int]) -> None:
    """Its loss is that of before, and finite; what a network holds beside its weights may be infinite, as masks are."""
    network, clips, keeper = torch.nn.Linear(2, 2), torch.zeros(2, requires_grad=True), Keeper(tmp_path)
    network.register_buffer("mask", torch.full((2, 2), -torch.inf))
    learnt = network.weight if learns == "network" else clips
    sgd = torch.optim.SGD([learnt], lr=0.1)

    def step(number: int) -> float:
        learnt.grad = torch.full_like(learnt, torch.nan if number == at else 1.0)
        sgd.step()
        return 1.0

    said = rf"^The values of {learns} are no longer finite at step {max(at, 3)} \(learning rate 0\.1\): try a learning"
    with pytest.raises(RunError, match=said):
        loop.run(step, 6, {"network": network, "clips": clips, "sgd": sgd}, keeper, every=2)
    assert keeper.steps == kept
    with pytest.raises(RunError, match="no longer finite at step 5"):
        loop.run(step, 6, {"network": network, "clips": clips, "sgd": sgd})


def test_gradients_are_clipped_where_it_is_asked() -> None:
    weight = torch.zeros(2, requires_grad=True)
    sgd = torch.optim.SGD([weight], lr=1.0)
    assert loop.descend(sgd, (weight * torch.tensor([3.0, 4.0])).sum() + 7, clip_norm=1.0) == 7
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]), rtol=1e-5, atol=1e-6)
    assert weight.grad is None
