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


def test_recolouring_is_the_same_in_every_frame_and_leaves_every_fifth_clip_grey(x_BCTHW: torch.Tensor) -> None:
    frame_BCTHW = x_BCTHW[:, :, :1].expand(-1, -1, 4, -1, -1)
    found = recolour(frame_BCTHW, 0.4, np.random.default_rng(0))
    assert torch.equal(found, found[:, :, :1].expand_as(found))
    many = recolour(x_BCTHW[:1].expand(400, -1, -1, -1, -1), 0.4, np.random.default_rng(0))
    grey = torch.isclose(many[:, 0], many[:, 1]).flatten(1).all(1)
    assert grey.double().mean().item() == pytest.approx(0.2, abs=0.06)


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
    assert watched.reads.empty()


def test_small_sets_are_passed_over_more_often() -> None:
    parameters = TrainingParameters(epochs=10, least_steps=30)
    assert parameters.steps(10) == 30
    assert parameters.steps(320) == 100
    assert parameters.steps(321) == 110


def test_clips_are_counted_to_the_last_one() -> None:
    order = Order(10, 4, 0)
    for step in range(9):
        assert order.clips_until(step) == sum(len(order.rows(place)) for place in range(step))
