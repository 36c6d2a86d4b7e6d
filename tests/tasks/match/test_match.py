"""The matching core, and DC, Static-DC, DM and MTT: what they owe every method, resuming, stopping, bytes."""

from __future__ import annotations

import dataclasses
import importlib
import math
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from method_contract import Bench, MethodContract
from tiny import double

from vidistill.flows.parameters import checked
from vidistill.storage import clips as clips_module
from vidistill.storage.distilled import DistilledSet, joined
from vidistill.storage.errors import RequestError, RunError
from vidistill.tasks.distil import distil_jobs
from vidistill.tasks.learning import pixels
from vidistill.tasks.learning.evaluate import DistilledBatches
from vidistill.tasks.learning.pixels import initial
from vidistill.tasks.learning.training import Order, generator
from vidistill.tasks.learning.views import PLAIN
from vidistill.tasks.match import core, dc, dm, mtt, sets, static_dc
from vidistill.tasks.match.core import Loop
from vidistill.tasks.match.real import RealClips
from vidistill.tasks.methods import find_method, recipe_named
from vidistill.tasks.stage import listening, run_job

EXPERT = {"epochs": 2, "batch_size": 3, "precision": "fp32"}
OPTIONS: dict[str, dict[str, Any]] = {
    "dm": {"iterations": 2, "batch_real": 1, "precision": "fp32"},
    "dc": {"iterations": 1, "batch_real": 1, "precision": "fp32"},
    "static_dc": {"iterations": 2, "batch_real": 1, "precision": "fp32"},
    "mtt": {"iterations": 2, "syn_steps": 1, "experts": 2, "max_start_epoch": 2, "expert": EXPERT, "precision": "fp32"},
}


class TestDM(MethodContract):
    spec = "dm"
    options: ClassVar = OPTIONS["dm"]


class TestDC(MethodContract):
    spec = "dc"
    options: ClassVar = OPTIONS["dc"]


class TestStaticDC(MethodContract):
    spec = "static_dc"
    options: ClassVar = OPTIONS["static_dc"]

    def test_its_clips_stand_still(self, method: static_dc.StaticDC, bench: Bench) -> None:
        clips_NTHWC = self.distil(method, bench).clips_NTHWC
        assert (clips_NTHWC == clips_NTHWC[:, :1]).all()


class TestMTT(MethodContract):
    spec = "mtt"
    options: ClassVar = OPTIONS["mtt"]


# --- real clips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ["none", "dsa"])
def test_a_set_that_is_the_data_matches_them_whatever_the_augmentation(bench: Bench, augmentation: str) -> None:
    """Two clips a class are all there are: real and synthetic then differ by their augmentation, if at all."""
    material = bench.material((0, 1, 2), 2, 0)
    start = sets.start_clips(material, "real")
    learnt = {"clips": core.leaf(start.x_NCTHW)}
    parameters = dm.DMParameters(batch_real=2, augmentation=augmentation)
    loss = dm.dm_loss(material, start.labels_N, core.pixels, parameters)
    moved = {"clips": core.leaf(start.x_NCTHW + 0.1)}
    for iteration in range(3):
        same, other = (float(loss(iteration, tensors)[0]) for tensors in (learnt, moved))
        assert other > 1e-3
        assert same < 1e-8 * other


def test_real_clips_are_of_their_class_and_their_seed(bench: Bench) -> None:
    real = RealClips(bench.clips, 3, bench.device)
    for label in range(3):
        assert sorted(real.rows(0, label, 5)) == bench.clips.rows_of(label).tolist()
        assert {int(real.rows(i, label, 1)[0]) for i in range(20)} == set(bench.clips.rows_of(label).tolist())
        assert real.rows(7, label, 1).tolist() == RealClips(bench.clips, 3, bench.device).rows(7, label, 1).tolist()
    x_BCTHW, labels_B = real.batch(0, [2, 0], 1)
    assert labels_B.tolist() == [2, 0]
    alone, _ = real.batch(0, [0], 1)
    assert torch.equal(x_BCTHW[1:], alone)


def test_a_large_set_is_read_clip_by_clip(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips_module, "PRELOAD_BYTES", 0)
    monkeypatch.setattr(bench.clips, "_loaded", None)
    reads: list[int] = []
    read = type(bench.clips).read

    def counted(self: Any, rows: Any, views: Any = 0) -> np.ndarray:
        rows = list(rows)
        reads.append(len(rows))
        return read(self, rows, views)

    monkeypatch.setattr(type(bench.clips), "read", counted)
    method = find_method("dc").method
    method(method.Parameters(**OPTIONS["dc"])).distil(bench.material((0, 1, 2), 1, 0))
    assert reads == [3, 1, 1, 1]  # the start, then a clip of each class
    assert not bench.clips.in_memory


def test_a_small_set_is_matched_from_memory(bench: Bench) -> None:
    method = find_method("dm").method
    method(method.Parameters(**OPTIONS["dm"])).distil(bench.material((0, 1, 2), 1, 0))
    assert bench.clips.in_memory


# --- the loop ----------------------------------------------------------------------------------------------------


class Keeper:
    """Checkpoints in a folder, as a stage's work keeps them."""

    def __init__(self, folder: Any) -> None:
        self.folder, self.found = folder, None
        self.steps: list[int] = []

    def checkpoint(self, step: int, write: Any) -> None:
        place = self.folder / str(step)
        place.mkdir()
        write(place)
        self.found = (step, place)
        self.steps.append(step)

    def material(self, bench: Bench) -> Any:
        given = bench.material((0, 1, 2), 1, 0)
        return dataclasses.replace(given, checkpoint=self.checkpoint, last_checkpoint=lambda: self.found)


class Memory:
    def __init__(self) -> None:
        self.sum = torch.zeros(2)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"sum": self.sum}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.sum = state["sum"]


def run_toy(material: Any, optimiser: str, stop_at: int | None = None) -> tuple[dict[str, torch.Tensor], Any]:
    """Seven steps on a loss that depends on the iteration and on what it saw before."""
    torch.manual_seed(0)
    learnt = {"a": core.leaf(torch.randn(2)), "b": core.leaf(torch.randn(3)), "still": torch.ones(2)}
    memory = Memory()

    def loss(iteration: int, tensors: core.Learnt) -> core.Valued:
        if iteration == stop_at:
            raise KeyboardInterrupt
        memory.sum = memory.sum + tensors["a"].detach()
        pull = torch.from_numpy(generator(5, iteration).normal(size=2)).float() + 0.1 * memory.sum
        value = (tensors["a"] - pull).square().sum() + (tensors["b"] * tensors["still"][0]).square().sum()
        return core.differentiated(value, tensors)

    groups = [{"params": [learnt["a"]], "lr": 0.1}, {"params": [learnt["b"]], "lr": 0.01}]
    made = torch.optim.Adam(groups) if optimiser == "adam" else torch.optim.SGD(groups, lr=0.1, momentum=0.5)
    loop = Loop(7, checkpoint_every=2, schedule=lambda iteration, rate: rate / (1 + iteration), memory=memory)
    curve = core.optimise(learnt, loss, made, material, loop)
    return learnt, curve


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_loop_that_was_stopped_ends_as_one_that_was_not(bench: Bench, tmp_path: Any, optimiser: str) -> None:
    expected, curve = run_toy(bench.material((0,), 1, 0), optimiser)
    keeper = Keeper(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_toy(keeper.material(bench), optimiser, stop_at=5)
    assert keeper.steps == [2, 4]
    found, again = run_toy(keeper.material(bench), optimiser)
    assert keeper.steps == [2, 4, 6]
    assert again == curve
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)


RUNS = {
    "dm": OPTIONS["dm"] | {"iterations": 4, "augmentation": "dsa"},
    "dc": OPTIONS["dc"] | {"iterations": 2, "outer": 2},
    "static_dc": OPTIONS["static_dc"] | {"iterations": 4},
    "mtt": OPTIONS["mtt"] | {"iterations": 4, "syn_steps": 2, "batch_syn": 2},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_distillation_goes_on_to_the_same_set(bench: Bench, name: str) -> None:
    source = find_method(name)
    options = source.method.Parameters(**RUNS[name])
    inputs = {"clips": [bench.given.train], **source.method(options).inputs(bench.given)}
    (job,) = distil_jobs(source, options, 1, 11, 3, inputs, name)

    def kill(_label: str, done: int, _total: int, _note: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    ref, _ = run_job(job, bench.runtime)
    whole = DistilledSet.load(bench.store.folder(ref))
    bench.store.discard(ref)
    with listening(kill), pytest.raises(KeyboardInterrupt):
        run_job(job, bench.runtime)
    done: list[int] = []
    with listening(lambda _label, step, _total, _note: done.append(step)):
        run_job(job, bench.runtime)
    assert done == [3, 4]
    again = DistilledSet.load(bench.store.folder(ref))
    np.testing.assert_array_equal(again.clips_NTHWC, whole.clips_NTHWC)
    assert again.facts == whole.facts
    assert whole.facts.get("moved_in_std", 1) > 0


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda i, a: a.sum() * math.nan, "The loss is nan at step 12"),
        (lambda i, a: a.square().sum() * 1e6, "The loss grew from .* at step 12"),
        (lambda i, a: (a * 0).sqrt().sum(), "The learnt a are no longer finite at step 12"),
    ],
)
def test_a_loss_that_breaks_stops_the_run_and_leaves_the_last_checkpoint(
    bench: Bench, tmp_path: Any, bad: Any, said: str
) -> None:
    keeper, learnt = Keeper(tmp_path), {"a": core.leaf(torch.zeros(2))}

    def loss(iteration: int, tensors: core.Learnt) -> core.Valued:
        value = bad(iteration, tensors["a"]) if iteration == 12 else (tensors["a"] - 1).square().sum()
        return core.differentiated(value, tensors)

    sgd = torch.optim.SGD(learnt.values(), lr=0.05)
    with pytest.raises(RunError, match=said + r".*\(learning rate .*ten times smaller"):
        core.optimise(learnt, loss, sgd, keeper.material(bench), Loop(20, checkpoint_every=5))
    assert keeper.steps == [5, 10]
    kept: list[float] = []

    def look(_iteration: int, tensors: core.Learnt) -> core.Valued:
        kept.append(float(tensors["a"][0].detach()))
        return core.differentiated((tensors["a"] - 1).square().sum(), tensors)

    core.optimise(learnt, look, torch.optim.SGD(learnt.values(), lr=0.05), keeper.material(bench), Loop(11))
    assert kept == [pytest.approx(1 - 0.9**10)]


def test_gradients_of_parts_add_up_to_those_of_the_whole() -> None:
    """Each part reads some rows: a run of them, scattered ones, all."""
    learnt = {"a": core.leaf(double(4, 2)), "b": core.leaf(double(2, 2)), "c": core.leaf(double(2)), "still": double(4)}
    reads = [np.array([1, 2]), np.array([3, 0]), np.arange(4)]

    def value_of(rows: np.ndarray, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * learnt["still"][rows][:, None]).square().sum() * b.sum()

    whole = sum(value_of(rows, learnt["a"][rows], learnt["b"]) for rows in reads)
    value, expected = core.differentiated(whole, learnt)
    gradients: core.Learnt = {}
    found = 0.0
    for rows in reads:
        part = core.Part(learnt)
        found += part.differentiate(value_of(rows, part.rows("a", rows), part["b"]), gradients)
    assert float(found) == pytest.approx(float(value))
    assert not value.requires_grad
    assert gradients.keys() == expected.keys() == {"a", "b"}
    fixed = core.Part(learnt, fixed=True)
    assert not fixed.rows("a", reads[0]).requires_grad
    assert fixed.leaves == core.Part(learnt).leaves == []
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-12, atol=0)


# --- methods -----------------------------------------------------------------------------------------------------


def loss_of(name: str, bench: Bench, **changes: Any) -> list[float]:
    method = find_method(name).method
    made = method(method.Parameters(**(OPTIONS[name] | changes)))
    return made.distil(bench.material((0, 1, 2), 1, 0, made)).facts["loss"]


def test_mtt_comes_nearer_to_where_the_experts_went(bench: Bench) -> None:
    """One expert and one start, so that the loss of different iterations can be compared."""
    found = loss_of(
        "mtt", bench, iterations=6, experts=1, max_start_epoch=1, syn_steps=2, lr=0.02, lr_init=0.02,
    )  # fmt: skip
    assert found[-1] < found[0]


@pytest.mark.parametrize("name", ["dm", "dc", "mtt"])
def test_it_does_not_matter_how_many_clips_share_a_pass(
    bench: Bench, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {} if name == "mtt" else {"batch_real": 2}
    together = loss_of(name, bench, **changes)
    monkeypatch.setattr(core, "a_pass", lambda _material, _size: 1)
    assert loss_of(name, bench, **changes) == pytest.approx(together, rel=1e-4)


def test_the_rate_is_that_of_the_whole_set_however_many_share_a_pass(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five clips by twos are a pass of one as well, which counts for half."""
    learnt = {"clips": core.leaf(torch.randn(5, 3, 4, 6, 6))}
    monkeypatch.setattr(core, "a_pass", lambda _material, _size: 2)
    rated = core.with_rate(lambda _iteration, _learnt: (torch.ones(()), {}), 3.0, bench.material((0,), 1, 0))
    value, gradients = rated(0, learnt)
    whole = 3 * pixels.total_variation(learnt["clips"])
    torch.testing.assert_close(value, 1 + whole.detach())
    torch.testing.assert_close(gradients["clips"], torch.autograd.grad(whole, learnt["clips"])[0])


@pytest.mark.parametrize("changed", [{"depth": 6}, {"images": 5}, {"images": 3}], ids=str)
def test_images_that_cannot_be_learned_are_refused_before_anything_is_made(bench: Bench, changed: Any) -> None:
    said = {6: "48 pixels are too small for the 6 blocks of static_dc: take 64 pixels or more",
            5: "5 images cannot begin in different frames of a clip of 4",
            3: r"5 images a class do not divide by static_dc\.images=3"}  # fmt: skip
    method, given = find_method("static_dc").method, dataclasses.replace(bench.given, ipc=5)
    with pytest.raises(RequestError, match=said[next(iter(changed.values()))]):
        method(method.Parameters(**changed)).inputs(given)
    method(method.Parameters(depth=5, images=5, init="noise")).inputs(given)


def test_images_of_a_clip_begin_in_different_frames() -> None:
    for seed in range(8):
        frames_N = static_dc.first_frames(2, 3, 4, seed)
        assert [len(set(own)) for own in frames_N.reshape(2, 3).tolist()] == [3, 3]
    assert set(static_dc.first_frames(40, 1, 4, 0).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("init", ["real", "noise"])
def test_chosen_frames_are_those_of_the_whole_clips(bench: Bench, init: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "AT_ONCE", 4)
    material, frames_NF = bench.material((0, 1, 2), 1, 0), np.arange(12).reshape(6, 2) % 4
    some, whole = (sets.start_clips(material, init, 2, frames) for frames in (frames_NF, None))
    for x_CFHW, x_CTHW, own in zip(some.x_NCTHW, whole.x_NCTHW, frames_NF.tolist(), strict=True):
        assert torch.equal(x_CFHW, x_CTHW[:, own])
    assert some.sources == whole.sources


def begun(bench: Bench, name: str, ipc: int = 1, **changes: Any) -> DistilledSet:
    method = find_method(name).method
    made = method(method.Parameters(**(OPTIONS[name] | {"iterations": 0} | changes)))
    return made.distil(bench.material((0, 1, 2), ipc, 0, made))


@pytest.mark.parametrize(("parameters", "lr"), [({}, 0.01), ({"step": "published"}, 30.0), ({"lr": 0.5}, 0.5)], ids=str)
def test_pixels_move_at_the_rate_that_is_asked_for_or_at_the_steps(parameters: Any, lr: float) -> None:
    (group,) = core.Steps.model_validate(parameters).groups(torch.zeros(1), published=30.0)
    assert group["lr"] == lr


def test_a_student_begins_at_the_rate_of_the_experts_or_a_third_of_it(bench: Bench) -> None:
    small = EXPERT | {"network": "r2plus1d_small_in"}
    assert begun(bench, "mtt").facts["lr"] == pytest.approx(0.015)
    assert begun(bench, "mtt", step="published").facts["lr"] == pytest.approx(0.05)
    assert begun(bench, "mtt", expert=small).facts["lr"] == pytest.approx(0.03)
    assert begun(bench, "mtt", lr_init=0.2).facts["lr"] == pytest.approx(0.2)
    assert begun(bench, "mtt", expert=EXPERT | {"lr": 0.003}).facts["lr"] == pytest.approx(0.001), "α stays above it"
    with pytest.raises(ValueError, match=r"α stays above lr_min, 0.001, and cannot begin at 0.0005: set both"):
        begun(bench, "mtt", lr_init=0.0005)


def test_experts_are_as_long_as_they_are_read(bench: Bench) -> None:
    method, added = find_method("mtt").method, []
    given = dataclasses.replace(bench.given, add=lambda job: added.append(job) or job.ref)
    method(method.Parameters(max_start_epoch=4, expert_epochs=3, experts=2)).inputs(given)
    assert [job.parameters["expert"]["epochs"] for job in added] == [6, 6]
    added.clear()
    method(method.Parameters(experts=1, expert={"epochs": 25, "lr": 0.5})).inputs(given)
    assert [job.parameters["expert"][name] for job in added for name in ("epochs", "lr")] == [25, 0.5]


@pytest.mark.parametrize(
    ("name", "own_step", "published"),
    [("dm", 0.01, 30.0), ("dc", 0.01, 0.1), ("static_dc", 0.01, 0.1), ("mtt", 0.1, 1e5), ("sfvd_t", 0.1, 1e5)],
)
def test_a_step_is_a_share_of_a_deviation_or_the_published_rate(name: str, own_step: float, published: float) -> None:
    """And whatever is asked for, with either."""
    method, pixels = find_method(name).method, torch.zeros(1)
    own = dc.PUBLISHED if name == "static_dc" else importlib.import_module(method.__module__).PUBLISHED
    for options, rate in (({}, own_step), ({"step": "published"}, published), ({"lr": 7.0}, 7.0)):
        (group,) = method.Parameters(**options).groups(pixels, own)
        assert group["lr"] == rate


@pytest.mark.parametrize(("name", "step"), [("mtt", 0.1), ("dm", 0.01), ("dc", 0.01)])
def test_few_iterations_move_a_set_by_few_steps_whatever_its_size(bench: Bench, name: str, step: float) -> None:
    """The published rates of 16×112² throw small clips out of the range of pixels in as many."""
    moved = begun(bench, name, iterations=5).facts["moved_in_std"]
    assert 0.2 * step < moved < 5 * step


@pytest.mark.parametrize("name", ["dm", "dc", "idtd", "frepo", "dm_vdsd", "frepo_vdsd"])
def test_the_published_network_is_matched_unless_another_is_asked_for(name: str) -> None:
    method = find_method(name).method
    assert method(method.Parameters()).network == "minic3d"
    assert method(method.Parameters(network="c3d")).network == "c3d"


@pytest.mark.parametrize("name", ["dm", "dc", "idtd", "frepo", "dm_vdsd", "frepo_vdsd"])
def test_batch_norm_that_never_saw_a_batch_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match=r"network is 'rgb:minic3d_bn': .*batch norm has no statistics"):
        checked(find_method(name).method.Parameters, {"network": "rgb:minic3d_bn"}, name)


@pytest.mark.parametrize("name", ["mtt", "sfvd", "sfvd_t", "mtt_vdsd"])
def test_trajectories_are_matched_in_fp32(name: str) -> None:
    assert find_method(name).method.Parameters().precision == "fp32"


def test_mtt_says_that_its_experts_are_too_short(bench: Bench) -> None:
    method = find_method("mtt").method
    asked = method(method.Parameters(max_start_epoch=10, expert={"epochs": 9}))
    with pytest.raises(RequestError, match=r"9 epochs .* up to epoch 10: raise expert\.epochs"):
        asked.inputs(bench.given)


def test_dc_trains_its_network_between_the_steps_of_one(bench: Bench) -> None:
    """With (1, 1) every step has a fresh network; with (2, inner) the second step's has learned the set."""
    assert {ipc: dc.DCParameters().loops(ipc) for ipc in (1, 5, 7, 10, 20, 30, 40, 60)} == {
        1: (1, 1), 5: (1, 1), 7: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 60: (50, 10),
    }  # fmt: skip
    first, second = (loss_of("dc", bench, outer=2, inner=inner, lr_net=0.5) for inner in (1, 3))
    assert first[0] == second[0]
    assert first[1] != second[1]


# --- bytes -------------------------------------------------------------------------------------------------------


def blank(form: str, count: int, stored: dict[str, tuple[int, ...]]) -> DistilledSet:
    """A set of this shape that takes no memory."""
    return DistilledSet(
        clips_NTHWC=np.broadcast_to(np.uint8(0), (count, 16, 112, 112, 3)),
        labels_N=np.zeros(count, dtype=np.int64),
        classes=("one",),
        form=form,
        stored={name: np.broadcast_to(np.uint8(0), shape) for name, shape in stored.items()},
    )


@pytest.mark.parametrize(("classes", "ipc", "published"), [(50, 1, 115), (51, 5, 586)])
def test_published_storage_of_clips_is_four_bytes_a_value(classes: int, ipc: int, published: int) -> None:
    """In MiB; the second figure is that of HMDB51's 51 classes."""
    assert round(blank("clips", classes * ipc, {}).values * 4 / 2**20) == published


def test_published_storage_of_static_dc_is_four_bytes_a_value() -> None:
    """36 MiB for 5 images of 50 classes. The 8 MB published for one are 7.5, 7.2 MiB."""
    images = {ipc: blank("still", 50 * ipc, {"images": (50 * ipc, 112, 112, 3)}).values for ipc in (1, 5)}
    assert round(images[5] * 4 / 2**20) == 36
    assert (images[1] * 4, images[5]) == (7_526_400, 5 * images[1])


def test_static_dc_keeps_its_images_and_no_clips(bench: Bench, tmp_path: Any) -> None:
    method = find_method("static_dc").method
    made = method(method.Parameters(**OPTIONS["static_dc"])).distil(bench.material((0, 1, 2), 2, 0))
    made.save(tmp_path)
    assert not (tmp_path / "clips").exists()
    raw = 6 * 48 * 48 * 3
    assert made.values == made.stored["images"].size == raw
    assert DistilledSet.training_bytes(tmp_path) < 1.1 * raw + 4096
    loaded = DistilledSet.load(tmp_path)
    np.testing.assert_array_equal(loaded.clips_NTHWC, made.clips_NTHWC)
    assert (loaded.form, loaded.with_clips(loaded.clips_NTHWC).form) == ("still", "clips")


def test_parts_that_keep_images_are_joined_by_their_images() -> None:
    def part(label: int, grey: int) -> DistilledSet:
        images = np.full((1, 8, 8, 3), grey, dtype=np.uint8)
        clips_NTHWC = np.repeat(images[:, None], 4, axis=1)
        names = ("one", "two")
        return DistilledSet(clips_NTHWC, np.array([label]), names, form="still", stored={"images": images})

    whole = joined([part(1, 10), part(0, 20)])
    assert (whole.form, whole.stored["images"][:, 0, 0, 0].tolist()) == ("still", [20, 10])
    shared = dataclasses.replace(part(1, 10), stored={"images": np.zeros((3, 8, 8, 3), dtype=np.uint8)})
    with pytest.raises(ValueError, match=r"images.* belong to a whole part"):
        joined([shared, part(0, 20)])
    with pytest.raises(ValueError, match=r"form must be clips or one of still.*; got 'melted'"):
        dataclasses.replace(shared, form="melted")


# --- learned labels ----------------------------------------------------------------------------------------------


def test_learned_labels_are_the_sets_own_and_one_hot_where_it_has_none(bench: Bench) -> None:
    recipe = recipe_named("learned", 4.0, {})
    assert (recipe.kind, recipe.needs_teacher, recipe.temperature) == ("soft", False, 1.0)
    plain = bench.material((0, 1, 2), 1, 0).chosen(np.array([bench.clips.rows_of(label)[0] for label in range(3)]))
    logits_NK = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)

    def targets(made: DistilledSet) -> np.ndarray:
        draw = DistilledBatches(made, bench.clips.table, recipe, Order(3, 3, 0), bench.device, None, PLAIN)
        return draw(0)[1].numpy()[np.argsort(Order(3, 3, 0).rows(0))]

    np.testing.assert_array_equal(targets(plain), np.eye(3))
    expected = np.exp(logits_NK) / np.exp(logits_NK).sum(1, keepdims=True)
    np.testing.assert_allclose(targets(plain.with_logits(logits_NK)), expected, rtol=1e-5)


def test_noise_is_the_seeds_own_and_names_no_clip(bench: Bench) -> None:
    method = find_method("dm").method
    one, again, other = (
        method(method.Parameters(iterations=0, init="noise", precision="fp32")).distil(bench.material((0, 1), 1, seed))
        for seed in (0, 0, 1)
    )
    assert set(one.sources) == {""}
    np.testing.assert_array_equal(one.clips_NTHWC, again.clips_NTHWC)
    assert not np.array_equal(one.clips_NTHWC, other.clips_NTHWC)
    x_BCTHW = initial(bench.clips, np.arange(4), "noise", 5, bench.device)
    assert (float(x_BCTHW.mean()), float(x_BCTHW.std())) == pytest.approx((0, 1), abs=0.03)


@pytest.mark.parametrize(
    ("device", "shape_THWC", "wanted"),
    [("cpu", (8, 56, 56, 3), 8), ("cpu", (16, 112, 112, 3), 8), ("cpu", (8, 28, 28, 3), 32),
     ("cuda", (8, 56, 56, 3), 256), ("cuda", (16, 112, 112, 3), 32), ("cuda", (32, 224, 224, 3), 8)],
)  # fmt: skip
def test_a_pass_holds_as_many_clips_as_their_size_allows(device: str, shape_THWC: tuple[int, ...], wanted: int) -> None:
    """Of large clips fewer, on a GPU too: 256 of 16×112² take some 12 GB of graphs."""
    one = SimpleNamespace(torch_device=torch.device(device))
    material: Any = SimpleNamespace(clips=SimpleNamespace(shape_THWC=shape_THWC), device=one)
    assert core.a_pass(material, 512) == wanted


@pytest.mark.parametrize(("gigabytes", "kept"), [(8, 0.5), (80, 5), (140, 8)])
def test_graphs_that_are_kept_leave_room_on_a_small_gpu(
    gigabytes: int, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(total_memory=gigabytes * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    assert mtt._room(torch.device("cuda")) == kept * 2**30
    assert mtt._room(torch.device("cpu")) == 2**28
