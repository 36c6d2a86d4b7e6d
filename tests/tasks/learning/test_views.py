"""What is done to clips and targets before a network learns from them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from method_contract import Bench

from vidistill.storage.clips import Clips
from vidistill.tasks.learning import streams
from vidistill.tasks.learning.training import Order, TrainingParameters
from vidistill.tasks.learning.views import PLAIN, RealBatches, cutmix, recolour, smoothed, view


@pytest.fixture
def x_BCTHW() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(6, 3, 4, 8, 8)))


def test_smoothing_spreads_a_share_over_all_classes() -> None:
    found_BK = smoothed(torch.eye(4, dtype=torch.float64), 0.1)
    assert found_BK[0].tolist() == pytest.approx([0.925, 0.025, 0.025, 0.025])
    assert found_BK.sum(1).tolist() == pytest.approx([1.0] * 4)


def test_cutmix_pastes_the_same_box_in_every_frame_and_weighs_targets_by_its_share(x_BCTHW: torch.Tensor) -> None:
    targets_BK = torch.eye(6, dtype=torch.float64)
    mixes = [cutmix(x_BCTHW, targets_BK, 1.0, np.random.default_rng(seed)) for seed in range(40)]
    changed = [(mixed, targets) for mixed, targets in mixes if not torch.equal(mixed, x_BCTHW)]
    assert 8 < len(changed) < 32  # about half of the batches
    for mixed_BCTHW, mixed_BK in changed:
        pasted_BTHW = (mixed_BCTHW != x_BCTHW).any(1)
        assert torch.equal(pasted_BTHW.all(1), pasted_BTHW.any(1))
        for pasted_THW, weights_K, own in zip(pasted_BTHW, mixed_BK, range(6), strict=True):
            if pasted_THW.any():
                assert weights_K[own].item() == pytest.approx(1 - pasted_THW[0].double().mean().item())
            assert weights_K.sum().item() == pytest.approx(1)
    assert cutmix(x_BCTHW, targets_BK, 0.0, np.random.default_rng(0))[0] is x_BCTHW


def test_the_box_of_cutmix_has_the_area_that_beta_leaves(x_BCTHW: torch.Tensor) -> None:
    large_BCTHW = torch.arange(6.0)[:, None, None, None, None].expand(-1, 3, 2, 64, 64)
    seen = 0
    for seed in range(30):
        random = np.random.default_rng(seed)
        mixed_BCTHW, _ = cutmix(large_BCTHW, torch.eye(6), 1.0, np.random.default_rng(seed))
        if random.random() < 0.5:
            continue
        side, y, x = int(64 * (1 - random.beta(1, 1)) ** 0.5) // 2, random.integers(64), random.integers(64)
        moved_HW = (mixed_BCTHW != large_BCTHW)[:, 0, 0].any(0)
        box = (min(64, y + side) - max(0, y - side)) * (min(64, x + side) - max(0, x - side))
        assert int(moved_HW.sum()) in {0, box}  # none where everyone is their own partner
        seen += int(moved_HW.sum()) == box > 0
    assert seen > 8


def test_real_batches_are_recoloured_smoothed_and_mixed_where_that_is_asked_for(bench: Bench) -> None:
    clips, order = bench.clips.preload(), Order(len(bench.clips), 4, 0)
    own = TrainingParameters(crop_scale=1.0, cutmix=1.0, label_smoothing=0.3)
    batches = [RealBatches(clips, order, bench.device, own)(step)[1] for step in range(12)]
    classes = len(bench.clips.classes)
    assert min(float(targets_BK.min()) for targets_BK in batches) == pytest.approx(0.3 / classes)
    assert any(len(np.unique(targets_BK.numpy().round(5))) > 2 for targets_BK in batches), "none is mixed"
    x_BCTHW = torch.randn(3, 3, 2, 4, 4)
    jittered = view(x_BCTHW, PLAIN.model_copy(update={"jitter": 0.4}), False, np.random.default_rng(0))
    torch.testing.assert_close(jittered, recolour(x_BCTHW, 0.4, np.random.default_rng(0)))
    assert not torch.equal(jittered, x_BCTHW)


def test_recolouring_is_the_same_in_every_frame_and_leaves_every_fifth_clip_grey(x_BCTHW: torch.Tensor) -> None:
    frame_BCTHW = x_BCTHW[:, :, :1].expand(-1, -1, 4, -1, -1)
    found = recolour(frame_BCTHW, 0.4, np.random.default_rng(0))
    assert torch.equal(found, found[:, :, :1].expand_as(found))
    many = recolour(x_BCTHW[:1].expand(400, -1, -1, -1, -1), 0.4, np.random.default_rng(0))
    grey = torch.isclose(many[:, 0], many[:, 1]).flatten(1).all(1)
    assert grey.double().mean().item() == pytest.approx(0.2, abs=0.06)


def test_recolouring_by_hand(x_BCTHW: torch.Tensor) -> None:
    found = recolour(x_BCTHW, 0.4, np.random.default_rng(3)).numpy()
    random, x = np.random.default_rng(3), x_BCTHW.numpy()
    saturation, coin = random.uniform(0.6, 1.4, 6), random.uniform(0, 1, 6)
    contrast, brightness = random.uniform(0.6, 1.4, 6), random.uniform(-0.4, 0.4, 6)
    for b in range(6):
        grey = x[b].mean(0)
        coloured = grey + (x[b] - grey) * (saturation[b] if coin[b] >= 0.2 else 0)
        expected = coloured.mean() + (coloured - coloured.mean()) * contrast[b] + brightness[b]
        np.testing.assert_allclose(found[b], expected, rtol=1e-9, atol=1e-12)


def test_a_view_flips_only_where_the_data_allow_it(x_BCTHW: torch.Tensor) -> None:
    assert torch.equal(view(x_BCTHW, PLAIN, False, np.random.default_rng(0)), x_BCTHW)
    flipped = view(x_BCTHW, PLAIN, True, np.random.default_rng(0))
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, x_BCTHW, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, x_BCTHW, strict=True)]
    assert any(mirrored)
    assert any(kept)
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))


def test_batches_of_some_rows_are_of_those_rows_alone(bench: Bench) -> None:
    rows_N = np.array([1, 4])
    draw = RealBatches(bench.clips, Order(2, 2, 0), bench.device, PLAIN, streams.STUDENT_VIEWS, rows_N)
    for step in range(5):
        _, targets_BK = draw(step)
        assert sorted(targets_BK.argmax(1).tolist()) == sorted(bench.clips.labels_N[rows_N].tolist())


class Watched(Clips):
    """Tells who reads what."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.store, bench.given.train)
        self.reads: queue.Queue[tuple[str, list[int]]] = queue.Queue()

    def read(self, rows: Iterable[int], views: Iterable[int] | int = 0) -> np.ndarray:
        self.reads.put((threading.current_thread().name, sorted(rows)))
        return super().read(rows, views)


def test_a_set_on_the_disk_is_read_a_step_ahead_and_gives_the_same_batches(bench: Bench) -> None:
    order, parameters = Order(len(bench.clips), 2, 0), TrainingParameters(crop_scale=0.5)
    held = RealBatches(Clips(bench.store, bench.given.train).preload(), order, bench.device, parameters)
    watched = Watched(bench)
    draw = RealBatches(watched, order, bench.device, parameters)
    for step in (0, 1, 2, 7, 8):
        for ours, theirs in zip(draw(step), held(step), strict=True):
            assert torch.equal(ours, theirs)
        if step in (0, 7):  # nobody knew of it
            assert watched.reads.get(timeout=30) == ("MainThread", sorted(order.rows(step)))
        name, rows = watched.reads.get(timeout=30)  # before anybody asks for the next step
        assert name.startswith("ahead")
        assert rows == sorted(order.rows(step + 1))


def test_a_set_in_memory_is_read_when_it_is_used(bench: Bench) -> None:
    watched = Watched(bench)
    watched.preload()
    while not watched.reads.empty():
        watched.reads.get()
    RealBatches(watched, Order(4, 2, 0), bench.device)(0)
    assert watched.reads.get(timeout=30)[0] == "MainThread"
    with pytest.raises(queue.Empty):
        watched.reads.get(timeout=0.5)


def test_small_sets_are_passed_over_more_often() -> None:
    parameters = TrainingParameters(epochs=10, least_steps=30)
    assert parameters.steps(10) == 30
    assert parameters.steps(320) == 100
    assert parameters.steps(321) == 110


def test_clips_are_counted_to_the_last_one() -> None:
    order = Order(10, 4, 0)
    for step in range(9):
        assert order.clips_until(step) == sum(len(order.rows(place)) for place in range(step))
