"""VDSD: the hallucinator by loops, random pairs, its two stages resumed, and the published storage."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from method_contract import Bench, MethodContract, fingerprint
from pydantic import ValidationError
from resuming import killed_and_whole

from vidistill.models import forms
from vidistill.models.hallucinator import drawn_weights, hallucinate
from vidistill.storage import distilled
from vidistill.storage.distilled import DistilledSet, materialised
from vidistill.storage.errors import RequestError
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning.evaluate import DistilledBatches
from vidistill.tasks.learning.relabel import mixed
from vidistill.tasks.learning.training import Order
from vidistill.tasks.learning.views import PLAIN
from vidistill.tasks.match import core, vdsd
from vidistill.tasks.methods import HARD, find_method, recipe_named

STATIC = {"iterations": 2, "batch_real": 1, "depth": 2, "precision": "fp32"}
EXPERT = {"epochs": 2, "batch_size": 3, "precision": "fp32"}
SHARED: dict[str, Any] = {"static": STATIC, "iterations": 2, "lr_dynamic": 0.1, "precision": "fp32"}
OPTIONS: dict[str, dict[str, Any]] = {
    "dm_vdsd": SHARED | {"batch_real": 1, "lr_hallucinator": 1e-3},
    "mtt_vdsd": SHARED | {"syn_steps": 1, "experts": 1, "max_start_epoch": 1, "expert": EXPERT},
    "frepo_vdsd": SHARED | {"pool": 2, "batch_real": 3, "age": 3},
}


class TestDMVDSD(MethodContract):
    spec = "dm_vdsd"
    options: ClassVar = OPTIONS["dm_vdsd"]


class TestMTTVDSD(MethodContract):
    spec = "mtt_vdsd"
    options: ClassVar = OPTIONS["mtt_vdsd"]


class TestFRePoVDSD(MethodContract):
    spec = "frepo_vdsd"
    options: ClassVar = OPTIONS["frepo_vdsd"]


def made_by(bench: Bench, name: str, ipc: int = 1, **changes: Any) -> DistilledSet:
    method = find_method(name).method
    distiller = method(method.Parameters(**(OPTIONS[name] | changes)))
    return distiller.distil(bench.material((0, 1, 2), ipc, 0, distiller))


# --- the hallucinator --------------------------------------------------------------------------------------------


def hallucinate_by_loops(static: np.ndarray, motion: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    clips, frames, height, width = motion.shape
    made = np.zeros((clips, 3, frames, height, width))
    for b, c, t, y, x in np.ndindex(made.shape):
        total = bias[c]
        for dt, dy, dx in itertools.product((-1, 0, 1), repeat=3):
            if 0 <= t + dt < frames and 0 <= y + dy < height and 0 <= x + dx < width:
                tap = weight[c, :, dt + 1, dy + 1, dx + 1]
                total += float(tap[:3] @ static[b, :, y + dy, x + dx]) + tap[3] * motion[b, t + dt, y + dy, x + dx]
        made[b, c, t, y, x] = total
    return made


def test_a_clip_is_one_convolution_of_its_image_in_every_frame_and_its_motion() -> None:
    random = np.random.default_rng(0)
    static, motion = random.normal(size=(2, 3, 4, 3)), random.normal(size=(2, 3, 4, 3))
    weight, bias = random.normal(size=(3, 4, 3, 3, 3)), random.normal(size=3)
    tensors = [torch.from_numpy(array) for array in (static, motion[:, None], weight, bias)]
    expected = hallucinate_by_loops(static, motion, weight, bias)
    np.testing.assert_allclose(hallucinate(*tensors), expected, rtol=1e-12, atol=1e-12)
    leaves = [tensor.requires_grad_(True) for tensor in tensors]
    assert torch.autograd.gradcheck(hallucinate, leaves)


def test_the_hallucinator_has_327_weights_and_begins_as_torch_begins_a_layer() -> None:
    weight, bias = drawn_weights(torch.Generator().manual_seed(1))
    layer = torch.nn.Conv3d(4, 3, 3, padding=1)
    assert weight.numel() + bias.numel() == sum(p.numel() for p in layer.parameters()) == 327
    assert weight.abs().max().item() == pytest.approx(layer.weight.abs().max().item(), rel=0.05)
    assert bias.abs().max() <= 108**-0.5


# --- memory ------------------------------------------------------------------------------------------------------


def test_an_instance_shows_all_pairs_of_its_own_memories_and_no_others() -> None:
    """Image number s is all s, motion number d all 100·d, and the hallucinator adds them."""
    images_NCHW = torch.arange(6.0)[:, None, None, None].expand(6, 3, 2, 2).contiguous()
    weight = torch.zeros(3, 4, 3, 3, 3)
    weight[range(3), range(3), 1, 1, 1] = weight[:, 3, 1, 1, 1] = 1
    learnt = {"motion": 100 * torch.arange(6.0)[:, None, None, None].expand(6, 4, 2, 2), "weight": weight,
              "bias": torch.zeros(3)}  # fmt: skip
    memory = vdsd.Memory(images_NCHW, 2, torch.tensor(-1e9), torch.tensor(1e9))
    seen: list[set[float]] = [set(), set()]
    for use in range(60):
        x_BCTHW = memory(core.Part(learnt), np.array([2, 0]), core.draws(use, 1))
        assert x_BCTHW.shape == (2, 3, 4, 2, 2)
        for clip, shown in zip(x_BCTHW, seen, strict=True):
            assert clip.max() == clip.min()
            shown.add(float(clip.max()))
    assert seen == [{s + 100 * d for s in pair for d in pair} for pair in ((4, 5), (0, 1))]


def test_gradients_reach_the_memories_that_were_shown(bench: Bench) -> None:
    material = bench.material((0, 1, 2), 1, 0)
    images_NCHW = torch.randn(6, 3, 48, 48)
    learnt = vdsd.begin(material, vdsd.MemoryParameters(), images_NCHW)
    memory = vdsd.Memory(images_NCHW, 2, torch.tensor(-9.0), torch.tensor(9.0))
    part, found = core.Part(learnt), core.Learnt()
    part.differentiate(memory(part, np.array([1]), core.draws(0, 1)).square().sum(), found)
    moved = found["motion"].abs().amax((1, 2, 3)) > 0
    assert moved.sum() == 1
    assert moved[2:4].sum() == 1
    assert (found["weight"] != 0).all()


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_shown_does_not_go_by_the_clips_that_share_a_pass(
    bench: Bench, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU takes more of them, and makes the same set."""
    together = made_by(bench, name, ipc=2, lr_dynamic=1e-4).facts["loss"]
    for size in (1, 4):
        monkeypatch.setattr(core, "a_pass", lambda _material, _size, size=size: size)
        assert made_by(bench, name, ipc=2, lr_dynamic=1e-4).facts["loss"] == pytest.approx(together, rel=1e-3)


def test_options_that_would_say_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="memories says how many images an instance has"):
        vdsd.DMVDSDParameters(static={"images": 3})
    with pytest.raises(ValidationError, match="momentum"):
        vdsd.FRePoVDSDParameters(momentum=0.5)  # its optimiser is Adam
    assert vdsd.static_of(vdsd.MTTVDSDParameters(memories=3, momentum=0.5)).images == 3


@pytest.mark.parametrize("form", ["memory", "interpolated", "reshaped"])
def test_clips_are_made_some_at_a_time_and_are_the_same(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random, many = np.random.default_rng(0), forms.AT_ONCE + 3
    shape, keys = (many, 3, 4, 5, 3), (2 * many, 4, 5, 3) if form == "memory" else (many, 2, 4, 5, 3)
    channels = 4 if form == "memory" else 6
    stored = {
        "images": random.integers(256, size=keys, dtype=np.uint8),
        "real": random.integers(256, size=shape, dtype=np.uint8),
        "motion": random.normal(size=(2 * many, 3, 4, 5)).astype(np.float32), "mean": np.full(3, 0.5, np.float32),
        "weight": random.normal(size=(3, channels, 3, 3, 3), scale=0.1).astype(np.float32),
        "bias": np.zeros(3, np.float32), "std": np.full(3, 0.2, np.float32),
    }  # fmt: skip
    sizes: list[int] = []
    rounded = forms._rounded
    monkeypatch.setattr(forms, "_rounded", lambda x_NCTHW: sizes.append(len(x_NCTHW)) or rounded(x_NCTHW))
    made = materialised(form, stored, shape)
    assert set(sizes) == {forms.AT_ONCE, 3}
    monkeypatch.setattr(forms, "AT_ONCE", 1)
    one_by_one = materialised(form, stored, shape)
    assert made.shape == ((4, *shape) if form == "memory" else shape)
    assert np.abs(made.astype(int) - one_by_one).max() <= 1  # the last bit of a float may round the other way
    assert made.std() > 10


def test_a_variant_is_the_pair_of_its_images_and_maps() -> None:
    random = np.random.default_rng(0)
    images, motion = random.integers(256, size=(6, 4, 5, 3), dtype=np.uint8), random.normal(size=(6, 2, 4, 5))
    weight, bias = random.normal(size=(3, 4, 3, 3, 3), scale=0.1), random.normal(size=3, scale=0.1)
    stored = {"images": images, "mean": np.full(3, 0.5, np.float32), "std": np.full(3, 0.2, np.float32)}
    stored |= {name: value.astype(np.float32) for name, value in
               {"motion": motion, "weight": weight, "bias": bias}.items()}  # fmt: skip
    made = materialised("memory", stored, (3, 2, 4, 5, 3))
    x_NCHW = ((images / 255 - 0.5) / 0.2).transpose(0, 3, 1, 2)
    for n, s, d in itertools.product(range(3), range(2), range(2)):
        one = hallucinate_by_loops(x_NCHW[[2 * n + s]], motion[[2 * n + d]], weight, bias)[0]
        expected = ((one.transpose(1, 2, 3, 0) * 0.2 + 0.5) * 255).clip(0, 255)
        assert np.abs(made[2 * s + d, n] - expected).max() <= 0.51


def test_a_student_is_shown_every_variant(bench: Bench) -> None:
    made = made_by(bench, "dm_vdsd")
    assert made.others_VNTHWC.shape == (3, *made.clips_NTHWC.shape)
    every = [made.clips_NTHWC, *made.others_VNTHWC]
    assert len({clips.tobytes() for clips in every}) == 4
    batches = DistilledBatches(made, bench.clips.table, HARD, Order(3, 3, 0), bench.device, None, PLAIN)
    seen = {tuple(np.round(batches(step)[0][:, 0, 0, 0, 0].numpy(), 3)) for step in range(60)}
    assert len(seen) > 20  # of 64 ways to show three instances in four variants, in any order


def test_one_pair_is_no_variant_and_may_be_mixed(bench: Bench) -> None:
    made = made_by(bench, "frepo_vdsd", iterations=0)
    assert made.others_VNTHWC is None
    assert len(mixed(made, recipe_named("soft+tsgf", 1.0, {}), 0, bench.clips, bench.device)) == 3


def test_stage_2_makes_no_clips_of_the_images(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    images_of(bench, "dm_vdsd")
    made: list[str] = []
    clips_of = distilled.materialised
    monkeypatch.setattr(distilled, "materialised", lambda form, *given: made.append(form) or clips_of(form, *given))
    made_by(bench, "dm_vdsd")
    assert "still" not in made


def test_a_loaded_set_has_the_clips_that_were_made(bench: Bench, tmp_path: Path) -> None:
    """The clips of a loaded set are those of the set that was made, variants among them."""
    made = made_by(bench, "dm_vdsd", ipc=2)
    made.save(tmp_path)
    loaded = DistilledSet.load(tmp_path)
    assert fingerprint(loaded) == fingerprint(made)
    np.testing.assert_array_equal(loaded.others_VNTHWC, made.others_VNTHWC)
    again = materialised("memory", loaded.stored, made.clips_NTHWC.shape)
    np.testing.assert_array_equal(again[1:], made.others_VNTHWC)
    assert not (tmp_path / "clips").exists()


def test_the_first_stage_alone_makes_the_images_and_the_second_leaves_them(bench: Bench) -> None:
    short, long = (made_by(bench, "dm_vdsd", iterations=iterations) for iterations in (0, 2))
    np.testing.assert_array_equal(short.stored["images"], long.stored["images"])
    assert not np.array_equal(short.stored["motion"], long.stored["motion"])
    assert not np.array_equal(short.stored["weight"], long.stored["weight"])
    other = made_by(bench, "dm_vdsd", static=STATIC | {"iterations": 0})
    assert not np.array_equal(other.stored["images"], long.stored["images"])


def test_copying_begins_with_the_images_themselves(bench: Bench) -> None:
    made = made_by(bench, "dm_vdsd", hallucinator="copy", iterations=0)
    still_NTHWC = made.stored["images"][::2, None].astype(float)
    apart = np.abs(made.clips_NTHWC - still_NTHWC).mean()
    assert apart < np.abs(made_by(bench, "dm_vdsd", iterations=0).clips_NTHWC - still_NTHWC).mean() / 2


def test_a_hallucinator_that_copies_shows_each_image_in_its_own_frame(bench: Bench) -> None:
    images_NCHW = torch.randn(2, 3, *bench.clips.shape_THWC[1:3], generator=torch.Generator().manual_seed(0))
    memory = vdsd.MemoryParameters(hallucinator="copy")
    learnt = vdsd.begin(bench.material((0, 1), 1, 0), memory, images_NCHW)
    motion_N1THW = torch.zeros_like(learnt["motion"][:2, None])
    made = hallucinate(images_NCHW, motion_N1THW, learnt["weight"], torch.zeros_like(learnt["bias"]))
    expected = images_NCHW[:, :, None].expand_as(made)
    torch.testing.assert_close(made, expected)


# --- rates -------------------------------------------------------------------------------------------------------


def rates_of(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, ipc: int, **changes: Any) -> dict[str, float]:
    """The learning rate of each thing that stage 2 learns, as it begins."""
    rates: dict[str, float] = {}
    optimise = core.optimise

    def listened(learnt: core.Learnt, loss: Any, optimiser: torch.optim.Optimizer, *given: Any) -> Any:
        names = {id(tensor): name for name, tensor in learnt.items()}
        rates.update({names[id(one)]: group["lr"] for group in optimiser.param_groups for one in group["params"]})
        return optimise(learnt, loss, optimiser, *given)

    monkeypatch.setattr(core, "optimise", listened)
    made_by(bench, name, ipc, **{"iterations": 0, "lr_dynamic": None, "lr_hallucinator": None} | changes)
    return rates


@pytest.mark.parametrize(("name", "ipc", "published"), [
    ("dm_vdsd", 1, (1e-4, 1e-5)), ("dm_vdsd", 2, (1e3, 1e-6)), ("mtt_vdsd", 1, (1e4, 1e-3)),
    ("mtt_vdsd", 2, (1e4, 1e-3)), ("frepo_vdsd", 1, (1e2, 1e-3)), ("frepo_vdsd", 2, (1e2, 1e-3)),
])  # fmt: skip
def test_published_steps_have_the_rates_of_the_method_and_budget(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, ipc: int, published: tuple[float, float]
) -> None:
    """(motion, hallucinator); whatever is asked for goes before, and Adam has rates of its own."""
    cases = {
        published: {"step": "published"},
        (7.0, 0.5): {"step": "published", "lr_dynamic": 7.0, "lr_hallucinator": 0.5},
        (0.08, 0.01): {},
    }
    for (motion, layer), changes in cases.items():
        rates = rates_of(bench, monkeypatch, name, ipc, **changes)
        assert (rates["motion"], rates["weight"], rates["bias"]) == (motion, layer, layer)


@pytest.mark.parametrize(("ipc", "changes", "rate"), [
    (1, {"step": "published"}, 1e-5), (2, {"step": "published"}, 0.0), (2, {"step": "published", "lr_lr": 0.1}, 0.1),
    (2, {}, 1.5e-4),
])  # fmt: skip
def test_published_steps_hold_alpha_above_one_instance(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ipc: int, changes: dict[str, Any], rate: float
) -> None:
    assert rates_of(bench, monkeypatch, "mtt_vdsd", ipc, **changes)["lr"] == pytest.approx(rate)


# --- stages, storage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_that_was_killed_goes_on_to_the_same_set(bench: Bench, name: str) -> None:
    again, whole, done = killed_and_whole(bench, name, OPTIONS[name] | {"iterations": 3}, 2)
    assert done == [2, 3]
    assert again.facts == whole.facts
    for part, array in whole.stored.items():
        np.testing.assert_array_equal(again.stored[part], array)


def images_of(bench: Bench, name: str, ipc: int = 1, seed: int = 0, **changes: Any) -> ArtifactRef:
    method = find_method(name).method
    asked = method(method.Parameters(**(OPTIONS[name] | changes)))
    (ref,) = asked.inputs(replace(bench.given, ipc=ipc, seed=seed))["images"]
    return ref


def test_methods_that_ask_for_the_same_images_share_them(bench: Bench) -> None:
    shared = images_of(bench, "dm_vdsd")
    assert images_of(bench, "mtt_vdsd") == shared
    others = [images_of(bench, "mtt_vdsd", ipc=2), images_of(bench, "mtt_vdsd", seed=1),
              images_of(bench, "dm_vdsd", memories=1), images_of(bench, "dm_vdsd", static=STATIC | {"lr": 0.2}),
              images_of(bench, "dm_vdsd", static=STATIC | {"precision": "bf16"})]  # fmt: skip
    assert len({shared, *others}) == 6


def test_images_of_an_instance_begin_in_one_clip_and_are_those_of_static_dc(bench: Bench) -> None:
    made = DistilledSet.load(bench.store.folder(images_of(bench, "dm_vdsd", ipc=2)))
    assert made.sources[0] == made.sources[1] != made.sources[2] == made.sources[3]
    assert not np.array_equal(made.stored["images"][0], made.stored["images"][1])
    np.testing.assert_array_equal(made_by(bench, "dm_vdsd", ipc=2).stored["images"], made.stored["images"])
    static = find_method("static_dc").method
    alone = static(static.Parameters(**STATIC, images=1)).distil(bench.material((0, 1, 2), 1, 0))
    single = DistilledSet.load(bench.store.folder(images_of(bench, "frepo_vdsd")))
    np.testing.assert_array_equal(alone.stored["images"], single.stored["images"])
    odd = static(static.Parameters(**STATIC, images=2))
    with pytest.raises(RequestError, match=r"1 images a class do not divide by static_dc\.images=2"):
        odd.distil(bench.material((0, 1, 2), 1, 0))


def shapes_of(instances: int, memories: int, shape_THWC: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Of what is kept."""
    frames, height, width, colours = shape_THWC
    of_all = instances * memories
    return {
        "images": (of_all, height, width, colours),
        "motion": (of_all, frames, height, width),
        "weight": (3, 4, 3, 3, 3),
        "bias": (3,),
    }


def kept_bytes(classes: int, ipc: int, memories: int) -> int:
    shapes = shapes_of(classes * ipc, memories, (16, 112, 112, 3))
    stored = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    blank = DistilledSet(
        np.zeros((0, 16, 112, 112, 3), np.uint8), np.zeros(0, np.int64), (), form="memory", stored=stored
    )
    return 4 * blank.values


def test_published_storage_is_four_bytes_a_number() -> None:
    """94/455 MB with two of each, 48/228 MB with one: within 4 % of MiB (the sheet's arithmetic), 48 being decimal."""
    assert kept_bytes(50, 1, 2) / 2**20 == pytest.approx(94, rel=0.04)
    assert kept_bytes(50, 5, 2) / 2**20 == pytest.approx(455, rel=0.002)
    assert kept_bytes(50, 1, 1) / 1e6 == pytest.approx(48, rel=0.01)
    assert kept_bytes(50, 5, 1) / 2**20 == pytest.approx(228, rel=0.004)


@pytest.mark.parametrize(("name", "memories"), [("dm_vdsd", 2), ("frepo_vdsd", 1)])
def test_a_set_keeps_what_the_formula_says_and_no_clips(bench: Bench, tmp_path: Path, name: str, memories: int) -> None:
    made = made_by(bench, name, ipc=2)
    shapes = shapes_of(6, memories, bench.clips.shape_THWC)
    assert {part: array.shape for part, array in made.stored.items() if part in shapes} == shapes
    assert made.values == sum(int(np.prod(shape)) for shape in shapes.values()) + 6  # and mean and deviation
    made.save(tmp_path)
    assert DistilledSet.training_bytes(tmp_path) <= 1.05 * sum(a.nbytes for a in made.stored.values()) + 8192
