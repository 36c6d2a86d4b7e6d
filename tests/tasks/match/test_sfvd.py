"""SFVD, SFVD-T and our reading of IDTD: what makes their clips, by loops, and what they keep."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from method_contract import Bench, MethodContract, fingerprint
from resuming import killed_and_whole
from tiny import double

from vidistill.models import temporal
from vidistill.storage.distilled import DistilledSet, materialised
from vidistill.storage.errors import RequestError
from vidistill.tasks.learning import training
from vidistill.tasks.learning.pixels import pixel_range
from vidistill.tasks.learning.training import generator, to_input
from vidistill.tasks.match import core, idtd, sfvd
from vidistill.tasks.methods import find_method

EXPERT = {"epochs": 2, "batch_size": 3, "precision": "fp32"}
MATCHED: dict[str, Any] = {
    "iterations": 2, "lr": 0.1, "syn_steps": 1, "experts": 1, "max_start_epoch": 2, "expert": EXPERT,
    "precision": "fp32",
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "sfvd": MATCHED,
    "sfvd_t": MATCHED,
    "idtd": {"iterations": 2, "batch_real": 1, "features": 3, "segments": 2, "precision": "fp32"},
}


class TestSFVD(MethodContract):
    spec = "sfvd"
    options: ClassVar = OPTIONS["sfvd"]


class TestSFVDT(MethodContract):
    spec = "sfvd_t"
    options: ClassVar = OPTIONS["sfvd_t"]


class TestIDTD(MethodContract):
    spec = "idtd"
    options: ClassVar = OPTIONS["idtd"]


def made_by(bench: Bench, name: str, ipc: int = 1, **changes: Any) -> DistilledSet:
    method = find_method(name).method
    distiller = method(method.Parameters(**(OPTIONS[name] | changes)))
    return distiller.distil(bench.material((0, 1, 2), ipc, 0, distiller))


# --- from images to clips ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keys", "frames"), [(1, 4), (2, 5), (3, 4), (4, 4), (3, 1), (1, 1)])
def test_keys_are_evenly_spread_and_linear_in_between(keys: int, frames: int) -> None:
    keys_BCFHW = double(2, 3, keys, 2, 2)
    made = temporal.interpolate(keys_BCFHW, frames)
    assert made.shape == (2, 3, frames, 2, 2)
    for t in range(frames):
        place = t * (keys - 1) / (frames - 1) if frames > 1 else 0.0
        low = min(math.floor(place + 1e-9), keys - 1)
        high = min(low + 1, keys - 1)
        expected = (1 - (place - low)) * keys_BCFHW[:, :, low] + (place - low) * keys_BCFHW[:, :, high]
        np.testing.assert_allclose(made[:, :, t], expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: temporal.interpolate(x, frames), keys_BCFHW.requires_grad_(True))


@pytest.mark.parametrize("keys", [1, 3])
def test_clips_of_all_frames_are_no_floats(bench: Bench, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made_by(bench, "sfvd", iterations=0)  # and its experts
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(training, "to_input", lambda clips, *given: seen.append(clips.shape) or to_input(clips, *given))
    made_by(bench, "sfvd", iterations=0, keys=keys)
    assert seen == [(3, keys, 48, 48, 3)]


def test_the_reshaping_layer_begins_as_the_mean_of_its_clips() -> None:
    weight, bias = temporal.averaging_weights()
    still, real = double(2, 3, 4, 5, 5, seed=1), double(2, 3, 4, 5, 5, seed=2)
    made = temporal.reshape_channels(still, real, weight.double(), bias.double())
    np.testing.assert_allclose(made, (still + real) / 2, rtol=1e-12)
    leaves = [tensor.requires_grad_(True) for tensor in (still[:1, :, :2], real[:1, :, :2], double(3, 6, 3, 3, 3))]
    assert torch.autograd.gradcheck(temporal.reshape_channels, [*leaves, bias.double()])


def test_a_selector_takes_softmax_means_of_its_pool() -> None:
    pool_PCHW, choice_BFP = double(3, 3, 2, 2, seed=1), double(2, 4, 3, seed=2)
    made = temporal.select(pool_PCHW, choice_BFP)
    for b in range(2):
        for f in range(4):
            powers = [math.exp(float(v)) for v in choice_BFP[b, f]]
            expected = sum(p / sum(powers) * pool_PCHW[i] for i, p in enumerate(powers))
            np.testing.assert_allclose(made[b, :, f], expected, rtol=1e-12, atol=1e-12)


def test_the_fusor_begins_as_interpolation() -> None:
    keys_BCFHW = double(2, 3, 2, 4, 4)
    made = temporal.fuse(keys_BCFHW, 5, torch.zeros(3, 3, 3, 3, 3).double(), torch.zeros(3).double())
    assert torch.equal(made, temporal.interpolate(keys_BCFHW, 5))
    weight = double(3, 3, 3, 3, 3, seed=3)
    x = temporal.interpolate(keys_BCFHW, 5)
    expected = x + torch.nn.functional.conv3d(x, weight, padding=1)
    assert torch.equal(temporal.fuse(keys_BCFHW, 5, weight, torch.zeros(3).double()), expected)


# --- SFVD --------------------------------------------------------------------------------------------------------


def test_one_image_an_instance_stands_still_and_more_move(bench: Bench) -> None:
    one, three = made_by(bench, "sfvd"), made_by(bench, "sfvd", keys=3)
    assert (one.clips_NTHWC == one.clips_NTHWC[:, :1]).all()
    np.testing.assert_array_equal(one.clips_NTHWC[:, 0], one.stored["images"][:, 0])
    assert three.stored["images"].shape == (3, 3, 48, 48, 3)
    np.testing.assert_array_equal(three.clips_NTHWC[:, [0, -1]], three.stored["images"][:, [0, -1]])
    assert (three.clips_NTHWC != three.clips_NTHWC[:, :1]).any()


def test_images_move_and_layers_too(bench: Bench) -> None:
    for name, parts in {"sfvd": ["images"], "sfvd_t": ["images", "weight"]}.items():
        begun, ended = made_by(bench, name, iterations=0), made_by(bench, name)
        for part in parts:
            assert not np.array_equal(begun.stored[part], ended.stored[part])
        assert ended.facts["lr"] != begun.facts["lr"]


def test_sfvd_t_keeps_a_real_clip_of_its_class_for_each_instance(bench: Bench) -> None:
    seen = set()
    for seed in range(40):
        real_NTHWC = sfvd.companions(bench.material((2, 0), 1, seed), np.array([2, 0]))
        for clip, label in zip(real_NTHWC, (2, 0), strict=True):
            own = bench.clips.read(bench.clips.rows_of(label))
            assert any((clip == other).all() for other in own)
        seen.add(real_NTHWC.tobytes())
    assert len(seen) == 2 * 2  # two clips a class


def test_sfvd_t_begins_as_the_mean_of_image_and_clip(bench: Bench) -> None:
    made = made_by(bench, "sfvd_t", iterations=0)
    mean = (made.stored["images"].astype(float) + made.stored["real"]) / 2
    assert np.abs(made.clips_NTHWC - mean).max() <= 0.51


def test_gradients_reach_images_and_layer_but_no_other_instance(bench: Bench) -> None:
    reshaped = sfvd.Reshaped(torch.randn(3, 3, 4, 48, 48), *pixel_range(bench.clips, bench.device))
    tensors = dict(zip(("weight", "bias"), temporal.averaging_weights(), strict=True))
    learnt = {name: t.requires_grad_(True) for name, t in ({"keys": torch.zeros(3, 3, 1, 48, 48)} | tensors).items()}
    part, found = core.Part(learnt), core.Learnt()
    part.differentiate(reshaped(part, np.array([1]), generator(0)).square().sum(), found)
    assert found["keys"].abs().amax((1, 2, 3, 4)).gt(0).tolist() == [False, True, False]
    assert (found["weight"] != 0).any()


def test_more_keys_than_frames_are_refused_before_anything_is_made(bench: Bench) -> None:
    for name in ("sfvd", "sfvd_t"):
        method = find_method(name).method
        with pytest.raises(RequestError, match="Clips of 4 frames cannot have 5 key frames: take at most 4"):
            method(method.Parameters(keys=5)).inputs(bench.given)
        method(method.Parameters(keys=4)).inputs(bench.given)


# --- IDTD --------------------------------------------------------------------------------------------------------


def test_diversity_is_the_mean_cosine_of_pairs_with_its_gradient() -> None:
    keys_NCFHW = double(4, 3, 2, 2, 2)  # two classes of two instances of two segments
    pairs = []
    for k in range(2):
        own = [keys_NCFHW[n, :, f].flatten().tolist() for n in (2 * k, 2 * k + 1) for f in range(2)]
        for i in range(4):
            for j in range(i):
                dot = math.fsum(a * b for a, b in zip(own[i], own[j], strict=True))
                pairs.append(dot / (math.hypot(*own[i]) * math.hypot(*own[j])))
    assert idtd.diversity_loss(keys_NCFHW, 2).item() == pytest.approx(math.fsum(pairs) / len(pairs), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: idtd.diversity_loss(x, 2), keys_NCFHW.requires_grad_(True))
    assert idtd.diversity_loss(double(2, 3, 1, 2, 2), 1).item() == 0


def test_idtd_begins_with_its_own_clips_and_shares_its_pool_within_a_class(bench: Bench) -> None:
    material = bench.material((0, 1, 2), 2, 0)
    rows_N = np.concatenate([bench.clips.rows_of(label) for label in range(3)])
    x_NCTHW = to_input(bench.clips.read(rows_N), bench.clips.table.mean, bench.clips.table.std, bench.device)
    assert idtd.spread(16, 4).tolist() == [0, 5, 10, 15]
    parameters = idtd.IDTDParameters(features=4, segments=2, sharpness=50)
    learnt = idtd.begin(material, x_NCTHW[:, :, idtd.spread(4, 4)], parameters)
    assert learnt["pool"].shape == (3, 3, 8, 48, 48)
    fused = idtd.Fused(2, 4, *pixel_range(bench.clips, bench.device))
    keys_NCFHW = fused.keys(core.Part(learnt), np.arange(6)).detach()
    clips_NTHWC = bench.clips.read(rows_N) / 255
    for n in range(6):
        for f, frame in enumerate((0, 3)):
            normalised = (clips_NTHWC[n, frame] - bench.clips.table.mean) / bench.clips.table.std
            np.testing.assert_allclose(keys_NCFHW[n, :, f].permute(1, 2, 0), normalised, atol=1e-4)
    part, found = core.Part(learnt), core.Learnt()
    part.differentiate(fused.keys(part, np.array([2])).sum(), found)
    assert found["pool"].abs().amax((1, 2, 3, 4)).gt(0).tolist() == [False, True, False]


def test_stochastic_temporal_augmentation_shows_segments_in_order(bench: Bench) -> None:
    """The pool's features have the values 0, 1 and 2, and each segment is one of them."""
    pool = torch.arange(3.0)[None, None, :, None, None].expand(1, 3, 3, 2, 2)
    learnt = {"pool": pool, "choice": 100 * torch.eye(3)[None], "weight": torch.zeros(3, 3, 3, 3, 3),
              "bias": torch.zeros(3)}  # fmt: skip
    fused = idtd.Fused(1, 3, torch.tensor(-9.0), torch.tensor(9.0))
    seen = set()
    for use in range(200):
        x_BCTHW = fused(core.Part(learnt), np.array([0]), core.draws(use, 1))
        seen.add(tuple(round(value, 4) for value in x_BCTHW[0, 0, :, 0, 0].tolist()))
    spread = {(0, 0, 0), (1, 1, 1), (2, 2, 2), (0, 0.5, 1), (0, 1, 2), (1, 1.5, 2)}
    assert seen == spread  # {0, 2} gives (0, 1, 2) too


def test_what_is_selected_does_not_go_by_the_clips_that_share_a_pass(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = made_by(bench, "idtd", ipc=2, segments=4).facts["loss"]
    monkeypatch.setattr(core, "a_pass", lambda _material, _size: 2)
    assert made_by(bench, "idtd", ipc=2, segments=4).facts["loss"] == pytest.approx(together, rel=1e-3)


@pytest.mark.parametrize("diversity", [0.0, 0.1])
def test_one_segment_has_nobody_to_differ_from(bench: Bench, diversity: float) -> None:
    made = made_by(bench, "idtd", segments=1, diversity=diversity)
    assert np.isfinite(made.facts["loss"]).all()


def test_diversity_pushes_segments_apart(bench: Bench) -> None:
    def likeness(diversity: float) -> float:
        made = made_by(bench, "idtd", iterations=4, lr=0.1, diversity=diversity, segments=3)
        learnt = {"pool": torch.from_numpy(made.stored["pool"]).permute(0, 4, 1, 2, 3) / 255.0 - 0.5}
        keys = idtd.Fused(1, 4, torch.tensor(-9.0), torch.tensor(9.0)).keys(
            core.Part(learnt | {"choice": torch.from_numpy(made.stored["choice"])}), np.arange(3)
        )
        return idtd.diversity_loss(keys, 1).item()

    assert likeness(1000.0) < likeness(0.0) - 0.01


# --- all ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_a_killed_run_goes_on_to_the_same_set(bench: Bench, name: str) -> None:
    again, whole, steps = killed_and_whole(bench, name, OPTIONS[name] | {"iterations": 3}, 3)
    assert steps == [3]
    assert again.facts == whole.facts
    for part, array in whole.stored.items():
        np.testing.assert_array_equal(again.stored[part], array)
    np.testing.assert_array_equal(again.clips_NTHWC, whole.clips_NTHWC)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_set_is_made_anew_from_what_it_keeps(bench: Bench, name: str, tmp_path: Path) -> None:
    made = made_by(bench, name, ipc=2)
    made.save(tmp_path)
    assert not (tmp_path / "clips").exists()
    loaded = DistilledSet.load(tmp_path)
    assert fingerprint(loaded) == fingerprint(made)
    np.testing.assert_array_equal(materialised(made.form, loaded.stored, made.clips_NTHWC.shape), made.clips_NTHWC)
    assert DistilledSet.training_bytes(tmp_path) <= 1.05 * sum(a.nbytes for a in made.stored.values()) + 8192


def test_bytes_count_images_layer_and_real_clips(bench: Bench) -> None:
    image, clip = 48 * 48 * 3, 4 * 48 * 48 * 3
    assert made_by(bench, "sfvd", ipc=2).values == 6 * image
    assert made_by(bench, "sfvd", keys=3).values == 9 * image
    assert made_by(bench, "sfvd_t", ipc=2).values == 6 * image + 6 * clip + (3 * 6 * 27 + 3) + 6
    assert made_by(bench, "idtd", ipc=2).values == 3 * 2 * 3 * image + 6 * 2 * 6 + (3 * 3 * 27 + 3) + 6
